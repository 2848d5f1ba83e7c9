"""Grafted blocks on disk: their tensors, and what puts them into another copy of the base model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.layers.arguments import Rebuildable
from rezero.surgery.apply import check_module, check_trainable, check_unwrapped
from rezero.surgery.beside import replacing
from rezero.surgery.graft import Graft, put_
from rezero.surgery.grafted import NAME, Position
from rezero.surgery.insert import check_factory, check_layer, check_separate, freeze_, make_block
from rezero.surgery.recipe import Undo

__all__ = ["load_graft_", "write"]

_TENSORS, _COPY, _VERSION = "graft.safetensors", "graft.json", 1
_KEY = "rezero"  # in the metadata of the tensors, so that both are always of one graft


def write(graft: Graft, path: str | Path) -> int:
    """Write ``graft.safetensors``, which holds the recipe too, and a copy of the recipe to be read, ``graft.json``.

    Args:
        graft: The blocks.
        path: A folder, made if it is not there.

    Returns:
        The size of the file of tensors, in bytes.

    Raises:
        UsageError: If the blocks are not there any more or hold what is no tensor, or the folder can't be written.
    """
    folder, state = Path(path), graft.state_dict()
    if odd := next((name for name, each in state.items() if not isinstance(each, Tensor) or each.is_meta), None):
        raise UsageError(f"{odd!r} is no tensor with numbers, and a file of safetensors holds nothing else")
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    recipe = {
        "version": _VERSION,
        "position": graft.position,
        "blocks": {name: _recipe_of(block, graft.widths[name]) for name, block in graft.blocks.items()},
        "base": _shapes(graft.model),
    }
    text = json.dumps(recipe, default=lambda number: number.item())
    with replacing(folder, (_TENSORS, _COPY), what="the graft") as beside:
        save_file(tensors, str(beside / _TENSORS), {_KEY: text})
        (beside / _COPY).write_text(json.dumps(json.loads(text), indent=1) + "\n", encoding="utf-8")
    return (folder / _TENSORS).stat().st_size


def load_graft_(
    model: nn.Module, path: str | Path, *, block: Callable[[int], nn.Module] | None = None, freeze: bool = True
) -> Graft:
    """Put blocks that `Graft.save` wrote into another copy of the base model.

    Args:
        model: A model like the one that they were saved from.
        path: The folder.
        block: Makes the block of a layer from its width, as for `rezero.graft_`; needed where the blocks are not of
            this library's classes, whose arguments are in the file.
        freeze: Whether the base model's parameters stop to learn.

    Returns:
        The blocks.

    Raises:
        TypeError: If ``model`` is no module, or ``block`` makes none.
        UsageError: If the folder holds no graft or a damaged one, or the model is another: the first difference. The
            model is left as it was.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from rezero import ReZero, graft_
        >>> def base():
        ...     return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)))
        >>> def block(width):
        ...     return ReZero(nn.Linear(width, width))
        >>> graft, again = graft_(base(), block, "*.0", width=4), base()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = graft.save(folder)
        ...     loaded = load_graft_(again, folder, block=block)
        >>> loaded.sites
        ('0.0', '1.0')
    """
    check_module(model)
    if block is not None:
        check_factory(block)
    check_unwrapped(model)
    check_trainable(model)
    if any(each.is_meta for each in model.parameters()):
        raise UsageError("the model is on the meta device and has no numbers: load them before the blocks")
    if torch.is_inference_mode_enabled():
        raise UsageError("torch.inference_mode is on, blocks made in it could not be trained: load outside of it")
    folder = Path(path)
    recipe, tensors = _read(folder)
    _check_base(model, recipe["base"], folder)
    made = _built(model, recipe["blocks"], tensors, block, folder)
    undo = Undo()
    try:
        if freeze:
            freeze_(model, undo)
        return put_(model, made, recipe["position"], undo)
    except BaseException:
        undo()
        raise


def _built(
    model: nn.Module,
    blocks: Mapping[str, Any],
    tensors: dict[str, Tensor],
    block: Callable[[int], nn.Module] | None,
    folder: Path,
) -> dict[str, tuple[nn.Module, int]]:
    """Build the blocks of a model that is found fit for them, with their numbers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[str, tuple[nn.Module, int]] = {}
    for name, described in blocks.items():
        if name not in modules:
            raise _other(folder, f"this one has no {name!r}")
        check_layer(name, modules[name], model)
        numbers = sum(each.numel() for key, each in tensors.items() if key.startswith(f"{name}.{NAME}."))
        factory = block or _factory(described, name, folder, numbers)
        made[name] = make_block(factory, name, modules[name], described["width"])
        _load(made[name][0], f"{name}.{NAME}.", tensors, folder)
    check_separate(made)
    if tensors:
        raise _other(folder, f"there is a {next(iter(tensors))!r}, which no block here has")
    return made


def _recipe_of(block: nn.Module, width: int) -> dict[str, Any]:
    """Describe a block: of this library, by its class and arguments; of another, by no more than its width."""
    from rezero import layers

    kind, arguments = type(block), getattr(block, "arguments", None)
    if getattr(layers, kind.__name__, None) is not kind or not callable(arguments):
        return {"width": width, "class": None}
    return {"width": width, "class": kind.__name__, "arguments": arguments()}


def _factory(recipe: Any, name: str, folder: Path, numbers: int) -> Callable[[int], nn.Module]:
    """Return what builds a block from its class and arguments, of which none is larger than its numbers are many."""
    from rezero import layers

    if recipe["class"] is None:
        raise UsageError(
            f"the block at {name!r} is of a class of your own: give what makes it, load_graft_(..., block=)"
        )
    known: Any = getattr(layers, str(recipe["class"]), None)
    arguments = recipe["arguments"]
    if not (isinstance(known, type) and issubclass(known, Rebuildable)) or {"device", "dtype"} & arguments.keys():
        raise UsageError(f"{folder / _TENSORS} is damaged at {name!r}, or of a newer rezero: {recipe['class']!r}")
    if large := [key for key, value in arguments.items() if isinstance(value, int) and value > numbers]:
        raise UsageError(f"{folder / _TENSORS} is damaged at {name!r}: {large[0]} is {arguments[large[0]]}")

    def make(_: int) -> Any:
        try:
            return known(**arguments)
        except Exception as error:  # whatever a constructor says to odd numbers
            raise UsageError(f"{folder / _TENSORS} is damaged at {name!r}, or of a newer rezero: {error!r}") from error

    return make


def _shapes(model: nn.Module) -> Mapping[str, list[int]]:
    """Return the shapes of the base model's floating-point parameters."""
    return {
        name: list(each.shape)
        for name, each in model.named_parameters()
        if each.is_floating_point() and f".{NAME}." not in f".{name}"
    }


def _check_base(model: nn.Module, base: Mapping[str, list[int]], folder: Path) -> None:
    here = {name: each for name, each in model.named_parameters() if f".{NAME}." not in f".{name}"}
    for name, shape in base.items():
        if name not in here:
            if not _is_quantized(model, name.rpartition(".")[0]):
                raise _other(folder, f"this one has no {name!r}")
        elif here[name].is_floating_point() and list(here[name].shape) != shape:
            raise _other(folder, f"{name!r} is {tuple(here[name].shape)} here and {tuple(shape)} there")
    if new := [name for name, each in here.items() if each.is_floating_point() and name not in base]:
        raise _other(folder, f"that one has no {new[0]!r}")


def _is_quantized(model: nn.Module, name: str) -> bool:
    """Tell whether a module keeps its weights in another form, which is no difference."""
    module = dict(model.named_modules()).get(name)
    if module is None:
        return False
    return any(not each.is_floating_point() for each in (*module.parameters(), *module.buffers()))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the recipe and the tensors of a file that holds both."""
    file = folder / _TENSORS
    try:
        if not file.is_file():
            raise UsageError(f"expected a graft in {folder}, found no {_TENSORS}: save one with Graft.save")
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged, or no file of safetensors: {error}") from error
    if text is None:
        raise UsageError(f"{file} holds tensors and no graft: save one with Graft.save")
    try:
        data = json.loads(text)
        if isinstance(data["version"], int) and data["version"] > _VERSION:
            raise UsageError(f"{file} was written by a newer version of rezero: update it")
        base = {str(name): [int(size) for size in shape] for name, shape in data["base"].items()}
        blocks = {str(name): {**each, "width": int(each["width"])} for name, each in data["blocks"].items()}
        for name, each in blocks.items():
            if each["width"] < 1 or not (each["class"] is None or isinstance(each["arguments"], dict)):
                raise ValueError(f"the block at {name!r} is {each!r}")
        if data["position"] not in get_args(Position) or not blocks or data["version"] != _VERSION:
            raise ValueError(f"version {data['version']!r}, position {data['position']!r}, {len(blocks)} blocks")
    except UsageError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{file} is damaged: {error!r}") from error
    return {"position": data["position"], "blocks": blocks, "base": base}, tensors


def _load(block: nn.Module, prefix: str, tensors: dict[str, Tensor], folder: Path) -> None:
    own = block.state_dict()
    for key, value in own.items():
        found = tensors.pop(prefix + key, None)
        if found is None:
            raise _other(folder, f"there is no {prefix + key!r}")
        if found.is_floating_point() != value.is_floating_point() or found.is_complex() != value.is_complex():
            raise _other(folder, f"{prefix + key!r} is {value.dtype} here and {found.dtype} there")
        if found.shape != value.shape:
            raise _other(folder, f"{prefix + key!r} is {tuple(value.shape)} here and {tuple(found.shape)} there")
        own[key] = found
    block.load_state_dict(own)


def _other(folder: Path, difference: str) -> UsageError:
    return UsageError(f"{folder} was saved from another model, or other blocks: {difference}")
