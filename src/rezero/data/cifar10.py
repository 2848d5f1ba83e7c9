"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in 10 classes."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rezero.data.batches import TensorData
from rezero.data.files import check, read_bytes
from rezero.data.sources import CIFAR10, Source, locate
from rezero.errors import UsageError

__all__ = ["crop_and_flip", "load_cifar10", "read_cifar10", "standardise"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PADDING = 4


def load_cifar10(
    *, layout: Literal["flat", "image"] = "image", holdout: int = 0, source: Source = CIFAR10
) -> TensorData:
    """Load CIFAR-10 the way one of the authors' two experiments takes it.

    ``flat`` is their fully connected network's: pixels ``(x / 255 - 0.5) / 0.5`` in a row, no augmentation. ``image``
    is their ResNet's: ImageNet's mean and deviation a channel; in training each image is mirrored with probability 1/2
    and cropped to 32 x 32 at random after a black frame of 4 pixels was put around it. Images are kept as bytes and
    made floats a batch at a time.

    Args:
        layout: ``flat`` gives inputs ``(B, 3072)``, ``image`` ``(B, 3, 32, 32)``, both float32, colour by colour.
        holdout: Number of training images that are held out as the validation part, for choosing between models: the
            last ones of a fixed shuffle. 0, as in the paper, validates on the 10,000 test images.
        source: Which files it must be; another one reads another data set of the same format.

    Returns:
        50,000 images less those held out for training, 10 classes.

    Raises:
        UsageError: If the files are not found, or one is not the official file.

    References:
        A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1 and 5, and the authors' code.
    """
    if layout not in ("flat", "image"):
        raise UsageError(f"layout must be flat or image: got {layout!r}")
    images, labels, val_images, val_labels = read_cifar10(locate(source), source)
    if not 0 <= holdout < len(images):
        raise UsageError(
            f"holdout must leave training images, 0 to {len(images) - 1:,} of {len(images):,}: got {holdout}"
        )
    if holdout:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        val_images, val_labels = images[order[-holdout:]], labels[order[-holdout:]]
        images, labels = images[order[:-holdout]], labels[order[:-holdout]]
    data = partial(TensorData, "cifar10", targets=labels, val_targets=val_labels, classes=10)
    if layout == "flat":
        half = partial(standardise, mean=(0.5,), std=(0.5,))
        return data(inputs=images, val_inputs=val_images, prepare=half)
    prepare = partial(standardise, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images, val_images = images.view(-1, 3, 32, 32), val_images.view(-1, 3, 32, 32)
    return data(inputs=images, val_inputs=val_images, prepare=prepare, augment=crop_and_flip)


def read_cifar10(folder: Path, source: Source = CIFAR10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read the files of CIFAR-10, none of which is unpickled before its checksum was found right.

    Args:
        folder: The folder ``cifar-10-batches-py``.
        source: Which files it must be.

    Returns:
        Training images ``(N, 3072)``, uint8, and labels ``(N,)``, int64; then those of the test part.

    Raises:
        UsageError: If a file is missing or not the official one.
    """
    batches: dict[str, dict[str, Any]] = {}
    advice = f"replace it, or remove {folder} and run `rezero download {source.name}`"
    for file, checksum in source.files.items():
        path = folder.parent / file
        if not path.is_file():
            raise UsageError(f"{path} is missing, one of the {len(source.files)} files of {source.name}: {advice}")
        content = read_bytes(path)
        check(content, checksum, str(path), advice)
        batches[path.name] = pickle.loads(content, encoding="latin1")  # noqa: S301 - checked, and in these very bytes
    test = batches["test_batch"]
    train = [batch for name, batch in batches.items() if name.startswith("data_batch_")]
    images = torch.cat([torch.from_numpy(batch["data"]) for batch in train])
    labels = torch.tensor([label for batch in train for label in batch["labels"]])
    return images, labels, torch.from_numpy(test["data"]), torch.tensor(test["labels"])


def standardise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale pixels to [0, 1] and standardise them by the channel, in the operations of torchvision's transforms.

    Args:
        pixels: ``(B, C, H, W)``, uint8; any shape where mean and deviation have one value.
        mean: Mean of each of the ``C`` channels after scaling.
        std: Deviation of each.

    Returns:
        The shape of ``pixels``, float32.
    """
    if len(mean) == 1:
        return pixels.float().div_(255).sub_(mean[0]).div_(std[0])
    channels = torch.tensor((mean, std), device=pixels.device)[:, :, None, None]
    return pixels.float().div_(255).sub_(channels[0]).div_(channels[1])


def crop_and_flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror each image with probability 1/2, frame it in 4 black pixels and crop it to its size again at random.

    Args:
        images: ``(B, C, H, W)``.
        numbers: One random whole number in ``[0, 2**62)`` an image, ``(B,)``: the lowest bit mirrors, the rest places.

    Returns:
        The shape of ``images``.
    """
    height, width = images.shape[2:]
    framed = F.pad(images, (PADDING,) * 4)
    corners = 2 * PADDING + 1
    flip, place = numbers % 2 == 1, numbers // 2
    top, left = place % corners, place // corners % corners
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], framed.shape[3] - 1 - columns, columns)
    pixels = (rows[:, :, None] * framed.shape[3] + columns[:, None, :]).flatten(1)
    chosen = framed.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1))
    return chosen.view_as(images)
