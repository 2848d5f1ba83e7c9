"""The blocks that were put into a trained model, and what is done with them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.apply import check_unwrapped
from rezero.surgery.changed import restore_class, swap_class
from rezero.surgery.conditions import Condition, Conditions
from rezero.surgery.grafted import NAME, Grafted, Position, Site, takes_context, takes_mask
from rezero.surgery.hidden import input_argument
from rezero.surgery.recipe import Undo
from rezero.surgery.sites import counted

__all__ = ["Graft", "put_"]


@dataclass(frozen=True, eq=False, repr=False)
class Graft:
    """The blocks that `graft_` put into a model.

    Attributes:
        model: The model.
        sites: Qualified names of the layers that have a block.
        position: Where the blocks are, seen from their layers.
        conditions: What the blocks are given.
    """

    model: nn.Module
    sites: tuple[str, ...]
    position: Position
    conditions: Conditions = field(repr=False)
    _undo: Undo = field(repr=False)

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks, by the names of their layers."""
        self._check_there()
        return {name: self.model.get_submodule(_inside(name)) for name in self.sites}

    @property
    def widths(self) -> dict[str, int]:
        """The widths of the layers that have a block, by their names."""
        self._check_there()
        layers: list[Any] = [self.model.get_submodule(name) for name in self.sites]
        return {layer.rezero_graft.name: layer.rezero_graft.width for layer in layers}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the blocks, each with its name in the model."""
        for name, block in self.blocks.items():
            yield from block.named_parameters(prefix=_inside(name))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the blocks: what an optimizer is given."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the blocks, by their names in the model."""
        blocks = self.blocks.items()
        return {
            key: value for name, block in blocks for key, value in block.state_dict(prefix=f"{_inside(name)}.").items()
        }

    def condition(self, context: Tensor | None, mask: Tensor | None = None) -> AbstractContextManager[Condition]:
        """Give the blocks something to attend to, in this thread, while the context lasts.

        Where no gradient is asked for, as in ``generate()``, keys and values are computed once for it, and a batch of
        more rows, as in beam search, repeats each row of the context. What is written through ``.data`` meanwhile, into
        the context or the blocks, is not seen: condition anew after that. It is the thread's: tasks of one event loop
        share it. Inside of `disable` blocks stay left out.

        Args:
            context: What the blocks attend to, ``(B, M, C)``; None for nothing: attention then adds exactly zero, and a
                block's feed-forward, which the base model has not, what it adds to a row that sees nothing.
            mask: What of it may be seen, True for yes: ``(B, M)``, or ``(B, T, M)`` for each position of the input. A
                call with a cache takes the rows of its own positions; those behind the end take the last row.

        Returns:
            A context manager.

        Raises:
            TypeError: If ``context`` or ``mask`` is no tensor.
            UsageError: If no block takes a context.
        """
        self._check_context(context, mask)
        return self.conditions.held(context=context, blank=context is None, mask=mask)

    def set_context(self, context: Tensor | None, mask: Tensor | None = None) -> None:
        """Give the blocks something to attend to for good, in every thread that has no condition of its own.

        Args:
            context: As for `condition`; None takes it away.
            mask: As for `condition`.

        Raises:
            TypeError: If ``context`` or ``mask`` is no tensor.
            UsageError: If no block takes a context.
        """
        if context is not None:
            self._check_context(context, mask)
        self.conditions.always = Condition(context, mask)

    def disable(self) -> AbstractContextManager[Condition]:
        """Leave the blocks out, in this thread, while the context lasts: the model is the base model, bit for bit."""
        return self.conditions.held(enabled=False)

    def remove(self) -> None:
        """Take the blocks out: the classes, the keys and the gradients of the base model are back. Once is enough.

        Raises:
            UsageError: If the model has been compiled or distributed since, or a layer has been replaced.
        """
        if self._undo.steps:
            self._check_there()
            check_unwrapped(self.model)
            self._undo()

    def save(self, path: str | Path) -> int:
        """Write the new tensors and what rebuilds them, for `rezero.load_graft_`.

        Args:
            path: A folder, made if it is not there. What an earlier graft saved there is replaced at the end.

        Returns:
            The size of the file of tensors, in bytes.

        Raises:
            UsageError: If the blocks are not there any more, or the folder can't be written.
        """
        from rezero.surgery.graft_file import write

        return write(self, path)

    def merge(self) -> None:
        """Write blocks that are linear, at layers that are linear, into the weights of these, and take them out.

        Raises:
            UsageError: If a block or its layer is not linear, or the model has been compiled or distributed since.
        """
        from rezero.surgery.merge import merge_

        self._check_there()
        check_unwrapped(self.model)
        merge_(self)

    def _check_there(self) -> None:
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for name in self.sites:
            layer = modules.get(name)
            if not isinstance(layer, Grafted) or layer.rezero_graft.conditions is not self.conditions:
                raise UsageError(
                    f"the block at {name!r} is not there any more: it was removed, or its layer was replaced since"
                )

    def _check_context(self, context: Any, mask: Any) -> None:
        for what, given in (("context", context), ("mask", mask)):
            if not (isinstance(given, Tensor) or given is None):
                raise TypeError(f"the {what} must be a tensor: got {type(given).__name__}")
        if context is None and mask is not None:
            raise UsageError("a mask without a context says nothing: leave it out")
        if context is not None and context.ndim < 2:
            raise UsageError(f"the context must be (B, M, C), a row for each of the batch: got {tuple(context.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.ndim not in (2, 3) or 0 in mask.shape[:2]):
            raise UsageError(
                f"the mask must be boolean, (B, M) or (B, T, M), True for what may be seen: got {mask.dtype}, "
                f"{tuple(mask.shape)}"
            )
        if not any(map(takes_context, self.blocks.values())):
            raise UsageError("none of the blocks takes a context: their forward has no argument of that name")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        try:
            blocks = self.blocks
        except UsageError:
            return f"blocks {self.position} {', '.join(self.sites)}, which are not there any more"
        new = sum(parameter.numel() for parameter in self.parameters())
        all_of_them = sum(parameter.numel() for parameter in self.model.parameters())
        frozen = sum(1 for parameter in self.model.parameters() if not parameter.requires_grad)
        kinds = dict.fromkeys(type(block).__name__ for block in blocks.values())
        places = self.sites if len(self.sites) < 5 else (self.sites[0], self.sites[1], "...", self.sites[-1])
        return "\n".join(
            (
                f"{counted(len(self.sites), 'block')} {' and '.join(kinds)} {self.position} {', '.join(places)}",
                f"{new:,} new parameters beside {all_of_them - new:,}; {frozen} tensors of the base are frozen",
            )
        )


def put_(model: nn.Module, blocks: Mapping[str, tuple[nn.Module, int]], position: Position, undo: Undo) -> Graft:
    """Put blocks into a model that was found fit for them.

    Args:
        model: The model.
        blocks: The blocks and the widths of their layers, by the names of these.
        position: Where they are, seen from the layers.
        undo: Gets what takes them out.

    Returns:
        The blocks.
    """
    conditions = Conditions()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _keep_whole(module, undo)
    for name, (block, width) in blocks.items():
        layer = model.get_submodule(name)
        argument = input_argument(layer.forward) or ""
        undo.steps.append(partial(_take_out, layer))
        vars(layer).pop("forward", None)
        swap_class(layer, Grafted)
        vars(layer)["rezero_graft"] = Site(
            name, width, position, argument, takes_context(block), takes_mask(block), conditions
        )
        layer._modules[NAME] = block.train(layer.training)
    return Graft(model, tuple(blocks), position, conditions, undo)


_NESTING = WeakKeyDictionary[nn.Module, set[int]]()  # encoder that nested tensors by itself to who has stopped it


def _keep_whole(encoder: Any, undo: Undo) -> None:
    """Let an encoder give its layers no nested tensors, which know no operations that a block needs."""
    if getattr(encoder, "use_nested_tensor", False) or encoder in _NESTING:
        _NESTING.setdefault(encoder, set()).add(id(undo))
        undo.steps.append(partial(_let_nest, encoder, id(undo)))
        encoder.use_nested_tensor = False


def _let_nest(encoder: Any, holder: int) -> None:
    holders = _NESTING.get(encoder, set())
    holders.discard(holder)
    if not holders:
        _NESTING.pop(encoder, None)
        encoder.use_nested_tensor = True


def _take_out(layer: nn.Module) -> None:
    if isinstance(layer, Grafted):
        layer._modules.pop(NAME, None)
        restore_class(layer)


def _inside(name: str) -> str:
    return f"{name}.{NAME}".lstrip(".")
