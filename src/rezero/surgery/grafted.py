"""A layer of somebody's model, with a block of ours before, behind or beside it."""

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.changed import Changed
from rezero.surgery.conditions import Condition, Conditions

__all__ = ["NAME", "Grafted", "Position", "Site", "first_tensor", "input_argument", "takes_context", "with_first"]

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
        conditions: What it is given.
    """

    name: str
    width: int
    position: Position
    argument: str
    attends: bool
    conditions: Conditions


class Grafted(Changed):
    """A layer with a block."""

    rezero_graft: Site

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note what the block is given, so that a checkpointed layer is run again with the same.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What `forward` does.
        """
        kwargs.setdefault(_CONDITION, self.rezero_graft.conditions.now)
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer and its block.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What the layer returns, its first tensor being changed.
        """
        condition: Condition = kwargs.pop(_CONDITION, None) or self.rezero_graft.conditions.now
        if not condition.enabled:
            return super().forward(*args, **kwargs)
        position, place = self.rezero_graft.position, self.rezero_graft.argument
        x = args[0] if args else kwargs[place]
        past = _seen_before(self, (*args, *kwargs.values())) if condition.mask is not None else None
        if position == "before":
            x = self._block(x, condition, past)
            if args:
                args = (x, *args[1:])
            else:
                kwargs[place] = x
            return super().forward(*args, **kwargs)
        output = super().forward(*args, **kwargs)
        y = first_tensor(output)
        if position == "after":
            return with_first(output, self._block(y, condition, past))
        return with_first(output, y + (self._block(x, condition, past) - x))

    def _block(self, x: Tensor, condition: Condition, past: int | None) -> Tensor:
        block: Any = self._modules[NAME]
        if not self.rezero_graft.attends:
            y: Tensor = block(x)
            return y
        if condition.context is None:
            raise UsageError(
                f"the block grafted at {self.rezero_graft.name!r} has nothing to attend to: call the model inside "
                "`with graft.condition(media):`, give it for good by graft.set_context(media), or leave the blocks "
                "out inside `with graft.disable():`"
            )
        condition = condition.rows(x.shape[0])
        mask = _rows_of_mask(condition.mask, x.shape[1], past)
        kept = _kept(block, condition)
        if kept is None:
            return block(x, condition.context, mask)  # type: ignore[no-any-return]
        return block(x, None, mask, kept=kept)  # type: ignore[no-any-return]


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states in what a layer returns: the tensor itself, or the first one of several.

    Args:
        output: A tensor, or a tuple, list, mapping or dataclass.

    Returns:
        The tensor.

    Raises:
        UsageError: If there is none in the first place.
    """
    first = output
    if isinstance(output, tuple | list) and output:
        first = output[0]
    elif isinstance(output, dict) and output:
        first = next(iter(output.values()))
    elif hasattr(output, "__dataclass_fields__"):
        first = getattr(output, next(iter(output.__dataclass_fields__)))
    if not isinstance(first, Tensor):
        raise UsageError(
            f"expected a layer that returns a tensor, or one as its first item: got {type(output).__name__}; graft at "
            "modules inside it with at="
        )
    return first


def with_first(output: Any, y: Tensor) -> Any:
    """Return what a layer returned, with other hidden states.

    Args:
        output: What it returned.
        y: The hidden states.

    Returns:
        The same container.
    """
    if isinstance(output, Tensor):
        return y
    if isinstance(output, dict):  # also the outputs of transformers
        again = type(output)(**output)
        again[next(iter(output))] = y
        return again
    if isinstance(output, tuple | list):
        rest = (y, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
    return replace(output, **{next(iter(output.__dataclass_fields__)): y})


def takes_context(block: nn.Module) -> bool:
    """Return whether a block attends to something: its ``forward`` takes a ``context``."""
    return "context" in inspect.signature(block.forward).parameters


def input_argument(layer: nn.Module) -> str:
    """Return the name of a layer's first argument, which holds the hidden states."""
    return next(iter(inspect.signature(layer.forward).parameters))


def _seen_before(layer: nn.Module, arguments: tuple[Any, ...]) -> int | None:
    """Return how many positions the layer's cache holds already; None if it is given none that tells."""
    cache_of = next((each for each in arguments if hasattr(each, "get_seq_length")), None)
    if cache_of is None:
        return None
    index = next((each.layer_idx for each in layer.modules() if isinstance(getattr(each, "layer_idx", None), int)), 0)
    return int(cache_of.get_seq_length(index))


def _rows_of_mask(mask: Tensor | None, length: int, past: int | None) -> Tensor | None:
    """Return the rows of a ``(B, T, M)`` mask for the positions of a call; those behind its end take the last row."""
    if mask is None or mask.ndim < 3 or (mask.shape[1] == length and not past):
        return mask
    if past is None:  # a state space keeps no positions: it is called for the next one, or for a part at the end
        past = mask.shape[1] - length if length > 1 else mask.shape[1] - 1
    places = torch.arange(past, past + length, device=mask.device).clamp(0, mask.shape[1] - 1)
    return mask[:, places]


def _kept(block: Any, condition: Condition) -> Any:
    """Return what a block computes from the context alone: once for a condition, where no gradient is asked for."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not hasattr(block, "keys_values"):
        return None
    versions = tuple(parameter._version for parameter in block.parameters() if not parameter.is_inference())
    found = condition.kept.get(id(block))
    if found is None or found[0] != versions:
        found = condition.kept[id(block)] = versions, block.keys_values(condition.context), block
    return found[1]
