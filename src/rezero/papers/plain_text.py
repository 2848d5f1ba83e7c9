"""Real English text, and how a model learns from it: Tiny Shakespeare, else what scikit-learn says of its data sets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.data.text import load_tiny_shakespeare, split_text
from rezero.data.windows import TextData
from rezero.errors import MissingDataError

__all__ = ["load_plain_text", "loss_of", "measure", "take_step"]

_SETS = ("digits", "iris", "wine", "diabetes", "breast_cancer", "linnerud")


def load_plain_text(context: int) -> TextData:
    """Load a text of which the last tenth is for validation.

    Args:
        context: Length of a window (bytes).

    Returns:
        The text, which says its name.

    Raises:
        UsageError: If Tiny Shakespeare is there and damaged.
    """
    try:
        return load_tiny_shakespeare(context)
    except MissingDataError:
        return split_text("descriptions", _descriptions().encode(), context)


def _descriptions() -> str:
    from sklearn import datasets  # part of the lab extra, slow to import

    return "\n".join(getattr(datasets, f"load_{name}")().DESCR for name in _SETS)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss a byte, in nats.

    Args:
        logits: ``(B, T, 256)``.
        targets: ``(B, T)``.

    Returns:
        A number.
    """
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def take_step(
    model: Any, optimizer: torch.optim.Optimizer, text: TextData, seed: int, step: int, batch: int, clip: float = 1.0
) -> None:
    """Take a step on a batch of text.

    Args:
        model: A language model.
        optimizer: Its optimizer.
        text: The text.
        seed: Of the order of the text.
        step: From 0.
        batch: Rows.
        clip: Largest norm of the gradient.
    """
    inputs, targets = text.batch(seed, step, batch)
    optimizer.zero_grad()
    loss_of(model(inputs), targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@torch.no_grad()
def measure(model: Any, text: TextData, windows: int) -> float:
    """Return the loss on the beginning of the validation part, in nats a byte.

    Args:
        model: A language model.
        text: The text.
        windows: How many windows.

    Returns:
        The loss.
    """
    inputs, targets = text.val_batch(0, windows)
    return float(loss_of(model(inputs), targets))
