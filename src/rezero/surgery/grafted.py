"""A layer of somebody's model, with a block of ours before, behind or beside it."""

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.changed import Changed
from rezero.surgery.conditions import Condition, Conditions
from rezero.surgery.hidden import first_tensor, with_first

__all__ = [
    "NAME",
    "Grafted",
    "Position",
    "Site",
    "takes_context",
    "takes_mask",
]

Position = Literal["before", "after", "parallel"]
NAME = "graft"  # of the block in its layer
_CONDITION = "rezero_condition"


@dataclass(frozen=True)
class Site:
    """Where a block is.

    Attributes:
        name: Qualified name of the layer.
        width: Width of the layer, from which the block was made.
        position: Where the block is, seen from the layer.
        argument: Name of the layer's argument that holds the hidden states, if they are given by name.
        attends: Whether the block is given a context.
        masks: And whether a mask.
        conditions: What it is given.
    """

    name: str
    width: int
    position: Position
    argument: str
    attends: bool
    masks: bool
    conditions: Conditions


class Grafted(Changed):
    """A layer with a block."""

    rezero_graft: Site

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let a layer that transformers checkpoints run again with what its block is given now.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What `forward` does.
        """
        if getattr(self, "gradient_checkpointing", False) is True:
            kwargs.setdefault(_CONDITION, self.rezero_graft.conditions.now)
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and its block.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What the layer returns, its first tensor being changed.

        Raises:
            UsageError: If the layer is called without its hidden states, or changes their shape beside a block.
        """
        condition: Condition = kwargs.pop(_CONDITION, None) or self.rezero_graft.conditions.now
        if not condition.enabled:
            return super().forward(*args, **kwargs)
        site = self.rezero_graft
        if not args and site.argument not in kwargs:
            raise UsageError(f"the layer {site.name!r} was called without {site.argument!r}, which its block is for")
        x = args[0] if args else kwargs[site.argument]
        past = _seen_before(self, (*args, *kwargs.values())) if condition.mask is not None else None
        if site.position == "before":
            x = self._block(x, condition, past)
            if args:
                args = (x, *args[1:])
            else:
                kwargs[site.argument] = x
            return super().forward(*args, **kwargs)
        output = super().forward(*args, **kwargs)
        y = first_tensor(output)
        if site.position == "after":
            return with_first(output, self._block(y, condition, past))
        if y.shape != x.shape:
            raise UsageError(
                f"the layer {site.name!r} turns {tuple(x.shape)} into {tuple(y.shape)}: no block fits parallel to it"
            )
        return with_first(output, y + (self._block(x, condition, past) - x).to(y.dtype))

    def _block(self, x: Tensor, condition: Condition, past: int | None) -> Tensor:
        site, block = self.rezero_graft, self._modules[NAME]
        assert block is not None  # noqa: S101 - put there
        if not site.attends:
            return _same_shape(site, x, block(x))
        if condition.blank:
            condition = replace(condition, context=_nothing(site, block, x), kept=None)
        if condition.context is None:
            raise UsageError(
                f"the block grafted at {site.name!r} has nothing to attend to: call the model inside "
                "`with graft.condition(media):`, or condition(None) where there is nothing to attend to, give it for "
                "good by graft.set_context(media), or leave the blocks out inside `with graft.disable():`"
            )
        condition = condition.rows(x.shape[0])
        given: dict[str, Any] = {}
        if site.masks:
            given["mask"] = _rows_of_mask(condition.mask, x.shape[1], past)
        elif condition.mask is not None:
            raise UsageError(f"the block grafted at {site.name!r} takes no mask: give none, or let it take one")
        keys_values: Any = getattr(block, "keys_values", None)
        if keys_values is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _same_shape(site, x, block(x, context=condition.context, **given))
        kept = condition.keep(_dependence(block, x), lambda: keys_values(condition.context))
        return _same_shape(site, x, block(x, context=None, kept=kept, **given))


def _nothing(site: Site, block: nn.Module, x: Tensor) -> Tensor:
    width: Any = getattr(block, "context_dim", None)
    if not isinstance(width, int):
        raise UsageError(
            f"the block grafted at {site.name!r} can't be given nothing: it has no attribute context_dim; condition it "
            "on a context of your own that stands for nothing"
        )
    near = next((each for each in block.parameters() if each.is_floating_point()), x)
    return near.new_zeros(x.shape[0], 0, width)


def _same_shape(site: Site, x: Tensor, y: Tensor) -> Tensor:
    if y.shape != x.shape:
        raise UsageError(
            f"the block grafted at {site.name!r} turns {tuple(x.shape)} into {tuple(y.shape)}: it must keep the shape"
        )
    return y


def takes_context(block: nn.Module) -> bool:
    """Return whether a block attends to something: its ``forward`` takes a ``context``."""
    return "context" in inspect.signature(block.forward).parameters


def takes_mask(block: nn.Module) -> bool:
    """Return whether a block takes a ``mask`` too."""
    return "mask" in inspect.signature(block.forward).parameters


def _seen_before(layer: nn.Module, arguments: tuple[Any, ...]) -> int | None:
    """Return how many positions the cache holds already; None if the layer is given none that tells."""
    cache = next((each for each in arguments if hasattr(each, "get_seq_length")), None)
    if cache is None:
        return None
    own = next((each.layer_idx for each in layer.modules() if isinstance(getattr(each, "layer_idx", None), int)), 0)
    for index in (own, *range(len(getattr(cache, "layers", ())))):  # layers without attention count nothing
        try:
            return int(cache.get_seq_length(index))
        except (ValueError, AttributeError, IndexError):
            continue
    return None


def _rows_of_mask(mask: Tensor | None, length: int, past: int | None) -> Tensor | None:
    """Return the rows of a ``(B, T, M)`` mask for the positions of a call; those behind its end take the last row."""
    if mask is None or mask.ndim < 3 or (mask.shape[1] == length and not past):
        return mask
    if past is None:
        if torch.is_grad_enabled() or 1 < length < mask.shape[1]:
            raise UsageError(f"the mask has rows for {mask.shape[1]} positions, and the input has {length}")
        past = mask.shape[1] - 1 if length == 1 else 0  # a state space keeps no positions: it goes on at the end
    places = torch.arange(past, past + length, device=mask.device).clamp(0, mask.shape[1] - 1)
    return mask[:, places]


def _dependence(block: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Return what a block's keys and values depend on beside the context."""
    weights = tuple(
        (each.data_ptr(), 0 if each.is_inference() else each._version, each.dtype) for each in block.parameters()
    )
    kind = x.device.type
    return id(block), weights, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
