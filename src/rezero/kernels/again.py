"""Derivatives of derivatives: those of the twin, which torch differentiates as often as is asked."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["differentiate"]


def differentiate(
    twin: Callable[..., Tensor], tensors: Sequence[Tensor | None], needs: Iterable[bool], g: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again.

    Args:
        twin: What is differentiated.
        tensors: What it is called with.
        needs: Of which of them a gradient is asked for.
        g: Gradient of its output.

    Returns:
        A gradient for each tensor, None where it is not asked for.
    """
    needs = list(needs)
    with torch.enable_grad():
        # Under other names, so that nothing flows through one of them into another that it was made from.
        tensors = [None if each is None else each.view_as(each) for each in tensors]
        asked = [each for each, needed in zip(tensors, needs, strict=True) if needed and each is not None]
        found = iter(torch.autograd.grad(twin(*tensors), asked, g, create_graph=True))
    return tuple(next(found) if needed else None for needed in needs)
