"""Modules of other people's models that are passed by, or taken out."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rezero.surgery.changed import Changed

__all__ = ["Dropped", "Passed", "Silent"]

if TYPE_CHECKING:
    from rezero.surgery.recipe import SilentRecipe


class Passed(Changed):
    """A module that returns its input.

    Its parameters stay, frozen, for the state dict and for those who read them.
    """

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input.

        Args:
            x: Any tensor.
            *_: Ignored.
            **__: Ignored.

        Returns:
            ``x``.
        """
        return x


class _Empty(Changed):
    _is_hf_initialized = True  # transformers draws no weights for what is marked so

    def reset_parameters(self) -> None:
        """Do nothing: the parameters are gone."""

    def extra_repr(self) -> str:
        """Return nothing of what the module's own class shows, which may be gone."""
        return ""


class Dropped(_Empty, Passed):
    """A module that returns its input and has no parameters."""


class Silent(_Empty):
    """A module that returns zeros, in the shape and the container of what it returned, and computes nothing."""

    rezero_silent: "SilentRecipe"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros.

        Args:
            *args: As the module's own class takes them. The first tensor gives shape, dtype and device.
            **kwargs: Likewise.

        Returns:
            Zeros, alone or followed by None in place of what else the module returned.
        """
        x = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        shape = list(x.shape)
        if self.rezero_silent.axis is not None:
            shape[self.rezero_silent.axis] = self.rezero_silent.size
        zeros = x.new_zeros(shape)
        return (zeros, *[None] * (self.rezero_silent.items - 1)) if self.rezero_silent.items else zeros
