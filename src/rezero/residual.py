"""The ReZero block."""

from typing import Any

import torch
from torch import Tensor, nn

from rezero.branch import add_branch, add_sequence
from rezero.gate import Gate
from rezero.zero_last import find_zero_last

__all__ = ["ReZero"]


class ReZero(nn.Module):
    r"""Residual block ``y = x + alpha * dropout(branch(x))`` that starts as the identity.

    At the start the output equals the input bitwise, whatever the branch computes as long as it is finite
    (``0 * inf`` is ``nan``). The branch's parameters then have a gradient of exactly zero, a tensor and not None,
    while ``alpha`` has ``sum(dL/dy * branch(x))``: the first step opens the gate, the second trains the branch.

    If the branch is an ``nn.Sequential``, of others too, that ends in a linear map, a convolution or a norm, the gate
    goes into that layer's product or weights, where this is less work; then no second output is kept for the gradients.

    Args:
        branch: Shape-preserving module, ``(*, D) -> (*, D)``. If it returns a tuple, the first item is gated and the
            others pass through.
        gate: The scale; by default ``Gate()``, one ``alpha`` that starts at 0. Give one gate to several blocks to tie
            their ``alpha``.
        dropout: Probability of zeroing an entry of the branch's output in training.

    Raises:
        TypeError: If ``branch`` is not a module or ``gate`` is not a `Gate`.
        ValueError: If ``dropout`` is no probability, or the gate starts at zero and the branch's last layer is zero
            too: both gradients are then zero for ever. At the call: if the branch changes the shape of its input.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, eq. 1.

    Example:
        >>> import torch
        >>> block, x = ReZero(nn.Linear(4, 4)), torch.randn(2, 4)
        >>> torch.equal(block(x), x)
        True
    """

    def __init__(self, branch: nn.Module, *, gate: Gate | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(branch, nn.Module):
            raise TypeError(f"branch must be an nn.Module: got {type(branch).__name__}")
        if gate is not None and not isinstance(gate, Gate):
            raise TypeError(
                f"gate must be a rezero.Gate: got {type(gate).__name__}; make one, such as "
                "rezero.Gate(init_value=0.1, activation='tanh')"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability from 0 to 1: got {dropout}")
        gate = Gate() if gate is None else gate
        if _is_closed(gate) and (culprit := find_zero_last(branch)) is not None:
            raise ValueError(
                f"the branch outputs only zeros because of {culprit}, and alpha starts at zero: the gradients of both "
                "would be zero for ever; initialise that layer as usual, or start alpha elsewhere with "
                "gate=Gate(init_value=1.0)"
            )
        self.branch = branch
        self.gate = gate
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return ``x + alpha * branch(x)``.

        Args:
            x: Input of the block and of its branch, ``(*, D)``.
            *args: Passed on to the branch.
            **kwargs: Passed on to the branch.

        Returns:
            The sum, in the shape of ``x`` and the dtype of ``x + branch(x)``; where the branch returns a tuple, that
            tuple with the sum as its first item.

        Raises:
            TypeError: If the branch returns neither a tensor nor a tuple that begins with one.
            ValueError: If the branch changes ``x`` in place, or returns another shape.
        """
        version = _version(x)
        modules: dict[str, Any] = self._modules  # found sooner than as attributes
        branch, gate, dropout = modules["branch"], modules["gate"], modules["dropout"]
        output, y = None, None
        if type(branch) is nn.Sequential and not args and not kwargs:
            y = add_sequence(x, branch, dropout, gate)
        if y is None:
            output = branch(x, *args, **kwargs)
        if version is not None and version != x._version:
            raise ValueError(
                "the branch changes its input in place, and with it the skip: make its first operation an ordinary "
                "one, such as nn.ReLU(inplace=False)"
            )
        if y is not None:
            return y
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor):
            raise TypeError(
                "a residual branch must return a tensor, or a tuple whose first item is one: got "
                f"{type(output).__name__}; wrap it in a module that returns the tensor to be added"
            )
        y = add_branch(x, first, dropout, gate.scale)
        if not isinstance(output, tuple):
            return y
        named = hasattr(output, "_fields")
        return type(output)(y, *output[1:]) if named else (y, *output[1:])


def _version(x: Tensor) -> int | None:
    """Count the in-place changes of a tensor; None where torch does not."""
    return None if torch.compiler.is_compiling() or x.is_inference() else x._version


def _is_closed(gate: Gate) -> bool:
    try:
        return not bool(gate.alpha.any())
    except RuntimeError:  # meta and fake tensors have no values to look at
        return gate.init_value == 0
