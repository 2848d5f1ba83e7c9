"""Put zero-gated blocks of one's own at the layers of a trained model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import index
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from rezero.errors import UsageError
from rezero.surgery.apply import check_module, check_trainable, check_unwrapped
from rezero.surgery.calls import watch
from rezero.surgery.changed import Changed, has_own_forward
from rezero.surgery.example import read_example
from rezero.surgery.graft import Graft, put_
from rezero.surgery.grafted import NAME, Grafted, Position, takes_context
from rezero.surgery.hidden import first_tensor, input_argument
from rezero.surgery.layer_lists import choose_sites, width_of
from rezero.surgery.outputs import MODES, Outputs, all_outputs, same
from rezero.surgery.recipe import Undo
from rezero.surgery.undisturbed import unfused

__all__ = ["check_factory", "check_layer", "check_separate", "freeze_", "graft_", "make_block"]


def graft_(
    model: nn.Module,
    block: Callable[[int], nn.Module],
    at: str | Sequence[str] | None = None,
    *,
    every: int = 1,
    position: Position = "before",
    freeze: bool = True,
    width: int | None = None,
    example: Any = None,
) -> Graft:
    r"""Put new blocks at the layers of a trained model, in place: ``block(x)`` before, after or parallel to a layer.

    With blocks that start as the identity, as those of `rezero.layers` and `rezero.ReZero` do, every output stays as it
    was, bit for bit. The layers change their class for one with a block, so the keys of the state dict stay, and only
    those of the blocks are new: ``<layer>.graft.<parameter>``.

    Args:
        model: The model.
        block: Makes the block of a layer from the layer's width ``D``: a module ``(*, D) -> (*, D)``. One whose
            ``forward`` has an argument ``context`` is called with ``(x, context, mask)``; see `Graft.condition`.
        at: The layers: a pattern such as ``"transformer.h.*"``, in which ``*`` stands for one part of a name,
            from point to point, or several patterns; by default the longest run of equal blocks in one of the lists.
        every: Each how many of these layers: 2 takes the second, the fourth, and so on.
        position: ``"before"``: the layer gets ``block(x)``; ``"after"``: its output goes through the block;
            ``"parallel"``: what the block adds to the layer's input is added to the layer's output.
        freeze: Whether the base model's parameters stop to learn.
        width: The layers' width, where it can't be read.
        example: Arguments of the model's ``forward``: a tensor, a tuple, or a dictionary of arguments by name. The
            widths are then read from what the layers are given, and the output is held against the base model's.

    Returns:
        The blocks, and what is done with them.

    Raises:
        TypeError: If ``model`` is no module, or ``block`` makes none.
        UsageError: If there is no such layer, a width can't be read, a layer has a block already, or the output
            differs. The model is left as it was.

    References:
        Alayrac et al. (2022), arXiv:2204.14198, sec. 2.2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from rezero import ReZero
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)
        >>> graft = graft_(model, lambda width: ReZero(nn.Linear(width, width)), every=2)
        >>> graft.sites
        ('layers.1', 'layers.3')
        >>> print(next(iter(graft.state_dict())))
        layers.1.graft.branch.weight
    """
    check_module(model)
    width = _check_request(block, position, width)
    check_unwrapped(model)
    check_trainable(model)
    sites = choose_sites(model, at, every)
    layers = {name: model.get_submodule(name) for name in sites}
    for name, layer in layers.items():
        check_layer(name, layer, model)
    arguments = None if example is None else read_example(example)
    seen = {} if arguments is None else _widths(model, layers, position, *arguments)
    widths = {name: width or seen.get(name) or width_of(layer) for name, layer in layers.items()}
    made = {name: make_block(block, name, layer, widths[name]) for name, layer in layers.items()}
    check_separate(made)
    undo = Undo()
    try:
        if freeze:
            freeze_(model, undo)
        expected = None if arguments is None else _outputs(model, *arguments)
        graft = put_(model, made, position, undo)
        if expected is not None and arguments is not None:
            _verify(graft, expected, *arguments)
    except BaseException:
        undo()
        raise
    return graft


_FROZEN = WeakTensorKeyDictionary()  # parameter to whether it learned, and who has frozen it


def freeze_(model: nn.Module, undo: Undo) -> None:
    """Let no parameter of a model learn.

    Args:
        model: The model.
        undo: Gets what lets the same ones learn again.
    """
    grafted: list[Any] = [module for module in model.modules() if isinstance(module, Grafted)]
    blocks = {id(parameter) for module in grafted for parameter in module._modules[NAME].parameters()}
    for parameter in model.parameters():
        if id(parameter) in blocks:
            continue
        _, holders = _FROZEN.setdefault(parameter, (parameter.requires_grad, set()))
        holders.add(id(undo))
        undo.steps.append(partial(_thaw, parameter, id(undo)))
        parameter.requires_grad_(False)


def _thaw(parameter: nn.Parameter, holder: int) -> None:
    """Let a parameter learn as it did, when the last one has gone that had frozen it."""
    learned, holders = _FROZEN.get(parameter, (parameter.requires_grad, set()))
    holders.discard(holder)
    if not holders:
        _FROZEN.pop(parameter, None)
        parameter.requires_grad_(learned)


def check_factory(block: Any) -> None:
    """Refuse what can't make a block.

    Args:
        block: What is to make the block of a layer from its width.

    Raises:
        TypeError: If it is a module itself, or can't be called.
    """
    if isinstance(block, nn.Module) or not callable(block):
        raise TypeError(
            "block must make the block of a layer from its width, such as `lambda width: GatedAdapter(width)`: got "
            f"{type(block).__name__}"
        )


def check_separate(made: Mapping[str, tuple[nn.Module, int]]) -> None:
    """Refuse blocks that are one.

    Args:
        made: The blocks and the widths of their layers, by the names of these.

    Raises:
        UsageError: If two are the same module.
    """
    if len({id(each) for each, _ in made.values()}) < len(made):
        raise UsageError("block must make a new module at each call: it gave the same one for two layers")


def _check_request(block: Any, position: Any, width: Any) -> int | None:
    check_factory(block)
    if position not in get_args(Position):
        raise UsageError(f"position must be one of {', '.join(get_args(Position))}: got {position!r}")
    if width is not None and (isinstance(width, bool) or not hasattr(width, "__index__") or index(width) < 1):
        raise UsageError(f"width must be a whole number from 1, or None to read it: got {width!r}")
    if torch.is_inference_mode_enabled():
        raise UsageError("torch.inference_mode is on, blocks made in it could not be trained: graft outside of it")
    return None if width is None else index(width)


def check_layer(name: str, layer: nn.Module, model: nn.Module) -> None:
    """Refuse a layer that can't have a block.

    Args:
        name: Its qualified name.
        layer: The layer.
        model: The model.

    Raises:
        UsageError: If it is changed already, a container, scripted, hooked by accelerate or several times in the model.
    """
    where = f"{name!r} ({type(layer).__name__})"
    if isinstance(layer, Grafted):
        raise UsageError(f"{where} has a block already: call remove() of that graft first, or graft elsewhere with at=")
    if isinstance(layer, Changed):
        raise UsageError(
            f"{where} has gates in it, by rezero.convert_ or rezero.grow_, and takes no block: fold them first "
            "(rezero.fold_), or graft at a module around it, or at others with at="
        )
    if isinstance(layer, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise UsageError(f"{where} is a container, in which a block would be one of its layers: name modules inside it")
    if isinstance(layer, torch.jit.ScriptModule):
        raise UsageError(f"{where} is scripted, nothing can be put into it: graft before torch.jit")
    if has_own_forward(layer):
        raise UsageError(
            f"{where} has a forward of its own, as hooks of accelerate set it, which would pass the block by: take the "
            "hooks off first (accelerate.hooks.remove_hook_from_module), and dispatch the model afterwards"
        )
    if any(isinstance(each, UninitializedParameter) for each in layer.parameters()):
        raise UsageError(f"{where} is lazy, its shapes are not known yet: run the model once before")
    if parametrize.is_parametrized(layer):
        raise UsageError(f"{where} is parametrized, which makes its class: graft at the module around it")
    if input_argument(layer.forward) is None:
        raise UsageError(f"{where} takes no argument by its place, which a block could be given: graft around it")
    if NAME in vars(layer) or NAME in layer._modules or hasattr(type(layer), NAME):
        raise UsageError(f"{where} has a {NAME!r} of its own, which is the name that a block gets")
    if sum(each is layer for _, each in model.named_modules(remove_duplicate=False)) > 1:
        raise UsageError(
            f"{where} is in the model several times, so that its block would be too: name another with at="
        )
    while name:
        name = name.rpartition(".")[0]
        if isinstance(around := model.get_submodule(name), nn.TransformerEncoderLayer | nn.MultiheadAttention):
            raise UsageError(
                f"{where} is inside of a {type(around).__name__}, which reads it without calling it: graft there"
            )


def _widths(
    model: nn.Module, layers: Mapping[str, nn.Module], position: Position, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, int]:
    """Return the width of what goes through each block in a pass: of the last axis, or of the channels of images."""
    calls = watch(model, layers, args, kwargs)
    widths = {}
    for name, layer in layers.items():
        if name not in calls:
            raise UsageError(
                f"{name!r} is not called on the example, and its block would not be: name another with at="
            )
        x, output = calls[name]
        shape = (first_tensor(output) if position == "after" else x).shape
        known = width_of(layer)
        widths[name] = known if len(shape) == 4 and known in shape else shape[1 if len(shape) == 4 else -1]
    return widths


def make_block(block: Callable[[int], Any], name: str, layer: nn.Module, width: int | None) -> tuple[nn.Module, int]:
    """Make the block of a layer, on its device and in its dtype.

    Args:
        block: Makes it from a width.
        name: Qualified name of the layer.
        layer: The layer.
        width: Its width; None if it can't be read.

    Returns:
        The block and the width.

    Raises:
        TypeError: If what is made is no module.
        UsageError: If there is no width.
    """
    if width is None:
        raise UsageError(
            f"the width of {name!r} ({type(layer).__name__}) can't be read, as its outermost norms are none or differ: "
            "give width=, or example= to read it from a pass"
        )
    made = block(width)
    if not isinstance(made, nn.Module):
        raise TypeError(f"block must make an nn.Module, got {type(made).__name__} for a width of {width}")
    if isinstance(dim := getattr(made, "dim", None), int) and dim != width:
        raise UsageError(
            f"the block for {name!r} is {dim} wide, and the layer {width}: make it of the width that is given"
        )
    if (near := next((each for each in layer.parameters() if each.is_floating_point()), None)) is None:
        return made, width
    default = {each.dtype for each in made.parameters()} <= {torch.get_default_dtype()}
    return (made.to(near.device, near.dtype) if default else made.to(near.device)), width


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outputs:
    with unfused():  # which paths torch takes by itself where nothing learns, and rounds otherwise
        return all_outputs(model, args, kwargs)


def _verify(graft: Graft, expected: Outputs, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    context = _any_context(graft)
    with nullcontext() if context is None else graft.condition(context), _quiet(graft.blocks.values()):
        got = _outputs(graft.model, args, kwargs)
    for mode in MODES:
        if isinstance(expected[mode], Exception):
            continue
        if isinstance(got[mode], Exception):
            raise UsageError(f"{mode} the model fails with the blocks where it ran without: {got[mode]}")
        if not same(expected[mode], got[mode], exact=True):
            raise UsageError(
                f"{mode} the output with the blocks differs from the base model's: let the blocks start as the "
                "identity, as those of rezero.layers and rezero.ReZero do, or leave example= out"
            )


@contextmanager
def _quiet(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let the dropout of blocks draw nothing, which would shift what that of the model draws behind it."""
    modules: list[Any] = [each for block in blocks for each in block.modules()]
    names = ((each, "p" if isinstance(each, _DropoutNd) else "dropout") for each in modules)
    found = ((each, name, vars(each).get(name)) for each, name in names)
    drawing = [(each, name, value) for each, name, value in found if isinstance(value, float)]
    try:
        for each, name, _ in drawing:
            setattr(each, name, 0.0)
        yield
    finally:
        for each, name, value in drawing:
            setattr(each, name, value)


def _any_context(graft: Graft) -> Tensor | None:
    """Return a context to try the blocks with, if they take one."""
    for name, block in graft.blocks.items():
        if takes_context(block):
            width = getattr(block, "context_dim", None)
            if not isinstance(width, int):
                raise UsageError(
                    f"the block at {name!r} can't be tried on the example, as the width of its context is not known: "
                    "give it an attribute context_dim, or leave example= out"
                )
            near = next((each for each in (*block.parameters(), *graft.model.parameters())), torch.empty(0))
            return torch.ones(1, 1, width, device=near.device, dtype=near.dtype)
    return None
