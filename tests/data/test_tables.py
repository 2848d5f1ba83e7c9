"""Small real data sets with classes."""

import os
from pathlib import Path

import pytest
import torch

from rezero.data.tables import TABLES, load_table
from rezero.errors import UsageError

OF_SKLEARN = [name for name in TABLES if not name.startswith("cifar10")]


@pytest.mark.parametrize("name", OF_SKLEARN)
def test_each_class_is_in_both_parts_and_features_are_standardised(name: str) -> None:
    """By the training part alone; 30% of each class are for validation, the same ones each time."""
    data, again = load_table(name), load_table(name)
    assert data.name == name
    assert torch.equal(data.val_inputs, again.val_inputs)
    for label in range(data.classes):
        of_class = int((data.targets == label).sum()), int((data.val_targets == label).sum())
        assert of_class[1] == round(0.3 * sum(of_class)) > 0
    deviations = data.inputs.std(0)
    assert data.inputs.mean(0).abs().max() < 1e-5
    assert ((deviations - 1).abs() < 1e-4).logical_or(deviations == 0).all()
    assert data.val_inputs.isfinite().all()


def test_no_example_is_in_both_parts() -> None:
    """Of wine, whose examples all differ."""
    data = load_table("wine")
    assert not (data.inputs[:, None] == data.val_inputs[None]).all(-1).any()


def test_the_beginning_of_cifar10_is_that() -> None:
    """As many training images, and 2,000 of the test part."""
    if not (Path(os.environ.get("REZERO_DATA", "/nowhere")) / "cifar-10-batches-py").is_dir():
        pytest.skip("needs REZERO_DATA, a folder with cifar-10-batches-py")
    data = load_table("cifar10-1000")
    assert (len(data.targets), len(data.val_targets), data.classes) == (1000, 2000, 10)
    assert data.batch(0, 0, 4)[0].shape == (4, 3072)


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    """And the nearest."""
    with pytest.raises(
        UsageError, match=r"no small data set is called 'wines' \(did you mean 'wine'\?\); choose from bre"
    ):
        load_table("wines")
