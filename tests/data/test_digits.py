"""The digits data set."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

import pytest
import torch
from sklearn import datasets
from torch import Tensor

from rezero.data.batches import TensorData
from rezero.data.digits import load_digits

# Made on 2026-11-23 with torch 2.13.0 and scikit-learn 1.9.1 from sklearn.datasets.load_digits() in the order of
# torch.randperm(1797, generator=torch.Generator().manual_seed(0)): pixels 0 to 16 and then labels, a byte each.
TRAIN_SHA256 = "b3f33a8c79b9427a5250b9461d7bc906f023d3a9fa4cb7bb581d2593d70e3727"
VAL_SHA256 = "a6270317d33c5697bb20d6f050901b66f8c4170fceb384f49a19d4b46f6dbc54"


@pytest.fixture(scope="module")
def digits() -> TensorData:
    return load_digits()


@pytest.fixture(scope="module")
def raw() -> tuple[Tensor, Tensor]:
    pixels, labels = datasets.load_digits(return_X_y=True)
    return torch.as_tensor(pixels), torch.as_tensor(labels)


def test_split_is_stable(digits: TensorData, raw: tuple[Tensor, Tensor]) -> None:
    """The same images are in each part, in the same order, as when the checksums were made."""
    train, val = unstandardised(digits, raw)
    assert checksum(train, digits.targets) == TRAIN_SHA256
    assert checksum(val, digits.val_targets) == VAL_SHA256


def test_split_takes_every_example_once(digits: TensorData, raw: tuple[Tensor, Tensor]) -> None:
    """Training and validation are disjoint and together are scikit-learn's 1,797 images with their labels."""
    train, val = unstandardised(digits, raw)
    split = Counter([*examples(train, digits.targets), *examples(val, digits.val_targets)])
    pixels, labels = raw
    assert split == Counter(examples(pixels.to(torch.uint8), labels))
    assert not {*examples(train, digits.targets)} & {*examples(val, digits.val_targets)}


def test_shapes_and_types(digits: TensorData) -> None:
    """1,500 examples train and 297 validate, 64 float32 pixels each, int64 labels of 10 classes."""
    assert (digits.inputs.shape, digits.inputs.dtype) == ((1500, 64), torch.float32)
    assert (digits.val_inputs.shape, digits.val_inputs.dtype) == ((297, 64), torch.float32)
    assert (digits.targets.shape, digits.targets.dtype) == ((1500,), torch.int64)
    assert (digits.val_targets.shape, digits.val_targets.dtype) == ((297,), torch.int64)
    assert digits.classes == 10
    assert {*digits.targets.tolist()} == {*digits.val_targets.tolist()} == {*range(10)}
    assert digits.name == "digits"


def test_pixels_are_standardised_by_the_training_part(digits: TensorData, raw: tuple[Tensor, Tensor]) -> None:
    """One mean and one deviation, those of the training part, standardise both parts."""
    pixels, _ = raw
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, val = pixels[order[:1500]], pixels[order[1500:]]
    for inputs, source in ((digits.inputs, train), (digits.val_inputs, val)):
        torch.testing.assert_close(inputs.double(), (source - train.mean()) / train.std(), rtol=0, atol=1e-6)
    assert digits.inputs.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert digits.inputs.double().std().item() == pytest.approx(1, abs=1e-6)
    # The whole set has other statistics, so the checks above can tell the two apart.
    assert abs(pixels.mean() - train.mean()) / train.std() > 1e-4


def test_loading_depends_on_no_global_state() -> None:
    """Two loads are equal bit for bit under different global seeds, and leave torch's generator where it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_digits()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = load_digits()
    for name in ("inputs", "targets", "val_inputs", "val_targets"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def unstandardised(digits: TensorData, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Both parts as scikit-learn's pixels again, from the values alone: the darkest is 0, the brightest 16."""
    low, high = digits.inputs.min(), digits.inputs.max()
    parts = [(inputs - low) / (high - low) * 16 for inputs in (digits.inputs, digits.val_inputs)]
    for part in parts:
        torch.testing.assert_close(part, part.round(), rtol=0, atol=1e-4)
    train, val = (part.round().to(torch.uint8) for part in parts)
    return train, val


def examples(pixels: Tensor, labels: Tensor) -> Iterator[bytes]:
    for image, label in zip(pixels, labels.to(torch.uint8), strict=True):
        yield image.numpy().tobytes() + label.numpy().tobytes()


def checksum(pixels: Tensor, labels: Tensor) -> str:
    return sha256(pixels.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()).hexdigest()
