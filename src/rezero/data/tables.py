"""Small real data sets with classes: those that come with scikit-learn, and the beginning of CIFAR-10."""

import torch
from torch import Tensor

from rezero.data.batches import TensorData
from rezero.data.cifar10 import load_cifar10
from rezero.errors import UsageError, near

__all__ = ["TABLES", "load_table"]

TABLES = ("breast_cancer", "digits", "iris", "wine", "cifar10-1000", "cifar10-5000")
VALIDATION = 0.3
VALIDATION_IMAGES = 2000


def load_table(name: str) -> TensorData:
    """Load a small data set.

    Of scikit-learn's, 30% of each class, drawn by a fixed shuffle, are for validation; features are standardised with
    means and deviations of the training part. ``cifar10-N`` is the first ``N`` training images of CIFAR-10 with the
    first 2,000 of its test images.

    Args:
        name: One of `TABLES`.

    Returns:
        Inputs ``(N, F)`` and classes.

    Raises:
        UsageError: If there is none of that name, or CIFAR-10 is not found.

    Example:
        >>> wine = load_table("wine")
        >>> wine.inputs.shape, wine.val_inputs.shape, wine.classes
        (torch.Size([125, 13]), torch.Size([53, 13]), 3)
    """
    if name not in TABLES:
        raise UsageError(f"no small data set is called {name!r}{near(name, TABLES)}; choose from {', '.join(TABLES)}")
    if name.startswith("cifar10-"):
        return _beginning(name, int(name.partition("-")[2]))
    from sklearn import datasets  # part of the lab extra, slow to import

    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    inputs, targets = torch.as_tensor(features, dtype=torch.float64), torch.as_tensor(labels, dtype=torch.int64)
    val = _drawn(targets)
    train = inputs[~val]
    deviation = train.std(0)
    inputs = ((inputs - train.mean(0)) / deviation.where(deviation > 0, 1.0)).float()
    return TensorData(name, inputs[~val], targets[~val], inputs[val], targets[val], classes=int(targets.max()) + 1)


def _drawn(targets: Tensor) -> Tensor:
    """Draw the validation part of each class."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        places = (targets == label).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        chosen[places[: round(VALIDATION * len(places))]] = True
    return chosen


def _beginning(name: str, images: int) -> TensorData:
    whole = load_cifar10(layout="flat")
    return TensorData(
        name,
        whole.inputs[:images],
        whole.targets[:images],
        whole.val_inputs[:VALIDATION_IMAGES],
        whole.val_targets[:VALIDATION_IMAGES],
        classes=whole.classes,
        prepare=whole.prepare,
    )
