"""How a module's output is added to its skip: in one operation, where nobody looks at the parts."""

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from rezero.functional import gated_residual

__all__ = ["add_branch", "is_plain", "probability"]


def add_branch(x: Tensor, f: Tensor, dropout: nn.Module, alpha: Tensor) -> Tensor:
    """Add a branch to its skip: ``x + alpha * dropout(f)``.

    Args:
        x: The skip, ``(*, D)``.
        f: The branch, ``(*, D)``.
        dropout: What it passes through.
        alpha: The gate, ``(1,)`` or ``(D,)``.

    Returns:
        ``(*, D)``.
    """
    p = probability(dropout)
    return gated_residual(x, dropout(f), alpha) if p is None else gated_residual(x, f, alpha, dropout=p)


def probability(dropout: nn.Module) -> float | None:
    """Return with which probability a dropout zeroes a number now; None if it is another module, or hooked."""
    if not (isinstance(dropout, nn.Dropout) and type(dropout) is nn.Dropout and is_plain(dropout)):
        return None
    return dropout.p if dropout.training else 0.0


def is_plain(module: nn.Module) -> bool:
    """Tell whether calling a module does what its class says and no more: it has no hook and no ``forward`` of its own.

    Args:
        module: The module.

    Returns:
        Whether that is so.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not (any(hooks) or torch_modules._has_any_global_hook() or "forward" in vars(module))
