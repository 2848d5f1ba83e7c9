"""What the networks of every family have in common: checks of their arguments, and a fresh start."""

from torch import nn

from rezero.layers.residuals import RESIDUALS

__all__ = ["check_residual", "check_sizes", "reset_children"]


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1.

    Args:
        **sizes: Name of the argument to its value.

    Raises:
        ValueError: If one is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1: got {size}")


def check_residual(residual: str) -> None:
    """Refuse a residual formula that does not exist.

    Args:
        residual: Name of the formula.

    Raises:
        ValueError: If it is no key of ``RESIDUALS``.
    """
    if residual not in RESIDUALS:
        raise ValueError(f"no residual formula is called {residual!r}: choose from {', '.join(RESIDUALS)}")


def reset_children(model: nn.Module) -> None:
    """Reset every module inside a model, each after those inside it, so that the outermost has the last word.

    Args:
        model: The model; its own ``reset_parameters`` is not called.
    """
    for module in reversed(list(model.modules())):
        reset = getattr(module, "reset_parameters", None)
        if module is not model and reset is not None:
            reset()
