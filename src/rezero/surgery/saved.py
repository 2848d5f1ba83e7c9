"""A converted model on disk: its weights, and the recipe that rebuilds it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.apply import apply_, check_convertible, check_module, drop_
from rezero.surgery.beside import replacing
from rezero.surgery.fit import check_intact, misfit
from rezero.surgery.recipe import Recipe, Undo

__all__ = ["from_pretrained", "load_converted_", "note", "own_config", "recall", "remember", "save_converted", "write"]

_KEY = "rezero"  # in the config of a model of transformers
_FILE, _CONFIG, _WEIGHTS = "rezero.json", "config.json", "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def remember(model: nn.Module, recipe: Recipe, undo: Undo) -> None:
    """Note what is changed now.

    With its first changes a model's configuration becomes its own: others built from the same object are not changed.

    Args:
        model: The changed model.
        recipe: All its changes.
        undo: Gets what puts back what was noted before.
    """
    if not recall(model):
        own_config(model, undo)
    undo.steps.append(partial(note, model, recall(model)))
    note(model, recipe)


def own_config(model: nn.Module, undo: Undo) -> None:
    """Give a model a configuration of its own, which others that were built from the same object do not share.

    Args:
        model: The model.
        undo: Gets what gives it the old one back.
    """
    config = vars(model).get("config")
    if not callable(getattr(config, "to_json_string", None)):
        return
    copies: dict[int, Any] = {}  # also of those inside it
    deepcopy(config, copies)
    for module in model.modules():
        known = vars(module).get("config")
        if callable(getattr(known, "to_json_string", None)) and id(known) in copies:
            undo.steps.append(partial(vars(module).__setitem__, "config", known))
            vars(module)["config"] = copies[id(known)]


def recall(model: nn.Module) -> Recipe:
    """Return the changes of a model, none for one that is not converted."""
    recipe: Recipe = vars(model).get("rezero_recipe", Recipe(()))
    return recipe


def note(model: nn.Module, recipe: Recipe) -> None:
    """Keep a recipe with the model, and in its configuration, which transformers saves beside the weights.

    Args:
        model: The changed model.
        recipe: All its changes; the note is taken away if there are none.
    """
    notes: list[tuple[dict[str, Any], str, Any]] = [(vars(model), "rezero_recipe", recipe)]
    config = vars(model).get("config")
    if callable(getattr(config, "to_json_string", None)):
        notes.append((vars(config), _KEY, recipe.to_json()))
    for place, key, value in notes:
        if recipe:
            place[key] = value
        else:
            place.pop(key, None)


def save_converted(model: nn.Module, path: str | Path) -> None:
    """Write ``model.safetensors`` and ``rezero.json``, for `load_converted_`.

    Both are written beside what is there, which they replace at the end: it is kept if the writing fails.

    Args:
        model: A model that `convert_` or `load_converted_` has converted.
        path: A folder, made if it is not there.

    Raises:
        TypeError: If ``model`` is not a module.
        UsageError: If it is not converted, if a module that was converted has been replaced since, or if the
            folder can't be written.

    Example:
        >>> import tempfile
        >>> import rezero, torch
        >>> model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)
        >>> conversion = rezero.convert_(model, x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rezero.save_converted(model, folder)
        ...     again = rezero.load_converted_(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), folder)
        >>> torch.equal(again.eval()(x), model.eval()(x))
        True
    """
    check_module(model)
    if not recall(model):
        raise UsageError(
            "expected a model that rezero.convert_ or rezero.load_converted_ has converted, found nothing that is "
            "changed in this one: save it as any model, and a converted part of it by itself"
        )
    write(model, path)


def write(model: nn.Module, path: str | Path) -> None:
    """Write a model and its recipe, which is empty after all its gates were folded.

    Args:
        model: The model.
        path: A folder, made if it is not there.

    Raises:
        UsageError: If a module that was converted has been replaced since, or if the folder can't be written.
    """
    folder, recipe = Path(path), recall(model)
    check_intact(model, recipe)
    if odd := [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise UsageError(f"{odd[0]!r} is no tensor, and a file of safetensors holds nothing else: save without it")
    # never the recipe of one model beside the weights of another
    with replacing(folder, (_WEIGHTS, _FILE), what="the model", stale=(_FILE, _INDEX)) as beside:
        save_model(model, str(beside / _WEIGHTS))
        (beside / _FILE).write_text(json.dumps(recipe.to_json(), indent=1), encoding="utf-8")


def load_converted_(model: nn.Module, path: str | Path) -> nn.Module:
    """Convert a model as the one that was saved, and load its weights.

    Args:
        model: A model built as the original was, not converted; of a model that has grown, one that is as deep.
        path: The folder that ``Conversion.save`` wrote, or ``save_pretrained`` of a model whose keys transformers does
            not rename.

    Returns:
        The model.

    Raises:
        UsageError: If the folder holds no converted model, or one of another shape: the first difference. The model is
            left as it was.
    """
    folder = Path(path)
    recipe = _read_recipe(folder, _FILE, _CONFIG)
    check_convertible(model)
    _check_fit(model, recipe, folder)
    undo = Undo()
    try:
        apply_(model, recipe, undo)
        remember(model, recipe, undo)
        loaded = _matching(model, folder)
    except BaseException:
        undo()
        raise
    model.load_state_dict(loaded, strict=False, assign=any(tensor.is_meta for tensor in model.state_dict().values()))
    return model


def from_pretrained(path: str | Path, **kwargs: Any) -> Any:
    """Rebuild a converted model of transformers from the folder that ``save_pretrained`` wrote.

    The ``from_pretrained`` of transformers itself would drop the gates as unexpected keys.

    Args:
        path: The folder.
        **kwargs: Passed on to the ``from_pretrained`` of the model's class: ``dtype``, ``attn_implementation``, options
            of the model. Without a ``dtype`` the weights keep the one that they were saved in.

    Returns:
        The model, in evaluation mode.

    Raises:
        UsageError: If the folder holds no converted model of transformers, or not all of it.
    """
    folder = Path(path)
    recipe = _read_recipe(folder, _CONFIG)
    _check_files(folder)
    import transformers

    architectures = getattr(transformers.AutoConfig.from_pretrained(folder), "architectures", None) or []
    kind = next((getattr(transformers, name, None) for name in architectures), None)
    if kind is None:
        raise UsageError(
            f"{folder} names no architecture of transformers: build the model yourself and call rezero.load_converted_"
        )
    if not kwargs.keys() & {"dtype", "torch_dtype"}:
        kwargs["dtype"] = "auto"
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which _check_info refuses
    model, info = _converting(kind, recipe, folder).from_pretrained(folder, **kwargs)
    _check_info(info, model, folder)
    drop_(model, recipe.dropped, Undo())
    for name in recipe.frozen:  # the loaded parameters are new ones
        model.get_parameter(name).requires_grad_(False)
    _align(model)
    remember(model, recipe, Undo())
    return model


def _converting(kind: Any, recipe: Recipe, folder: Path) -> Any:
    """Make a class whose instances are converted models of another class, before their weights are loaded."""

    def build(_: Any, *args: Any, **kwargs: Any) -> Any:
        model = kind(*args, **kwargs)
        _check_fit(model, recipe, folder)
        apply_(model, replace(recipe, dropped=()), Undo())  # dropped last: the loader draws all that the file lacks
        if recipe.dropped:
            gone = (f"^{re.escape(name)}$" for name in recipe.dropped)
            model._keys_to_ignore_on_load_missing = [*(model._keys_to_ignore_on_load_missing or ()), *gone]
        return model

    return type(kind.__name__, (kind,), {"__new__": build, "__module__": kind.__module__})


def _align(model: nn.Module) -> None:
    """Copy weights that lie anywhere in a mapped file, where sums are rounded otherwise than in memory of their own."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _check_info(info: dict[str, Any], model: nn.Module, folder: Path) -> None:
    if info["mismatched_keys"]:
        first = min(info["mismatched_keys"])
        name = first if isinstance(first, str) else first[0]  # with the shapes, since transformers 5
        shape = tuple(model.state_dict()[name].shape)
        raise _other_model(folder, f"{name!r} is {shape} here and has another shape there")
    if info["unexpected_keys"]:
        raise _other_model(folder, f"this one has no {min(info['unexpected_keys'])!r}")
    if info["missing_keys"]:
        raise _incomplete(folder, min(info["missing_keys"]))


def _other_model(folder: Path, difference: str) -> UsageError:
    return UsageError(f"{folder} was saved from another model: {difference}")


def _incomplete(folder: Path, name: str) -> UsageError:
    return UsageError(f"{folder} was saved from another model, or is incomplete: it has no {name!r}")


def _check_fit(model: nn.Module, recipe: Recipe, folder: Path) -> None:
    if (difference := misfit(model, recipe)) is not None:
        raise _other_model(folder, difference)


def _read_recipe(folder: Path, *names: str) -> Recipe:
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder on this machine: a converted model is loaded from one, so download a model of the "
            "hub first, with huggingface_hub.snapshot_download"
        )
    for file in (folder / name for name in names):
        if not file.is_file():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            data = data if file.name == _FILE else data.get(_KEY)
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{file} is damaged: {error}") from error
        if data is not None:
            return Recipe.from_json(data, str(file))
    raise UsageError(
        f"expected a converted model in {folder}, found no recipe in {' or '.join(names)}: save one with "
        "Conversion.save or save_pretrained, and load a model whose gates are folded as the original"
    )


def _matching(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the saved tensors, if a model has all of them in the same shape and no others."""
    own = model.state_dict(keep_vars=True)
    loaded: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder):
        if name not in own:
            raise _other_model(folder, f"this one has no {name!r}")
        if own[name].shape != tensor.shape:
            raise _other_model(folder, f"{name!r} is {tuple(own[name].shape)} here and {tuple(tensor.shape)} there")
        loaded[name] = tensor
    present = {id(own[name]) for name in loaded}
    if missing := [name for name, tensor in own.items() if id(tensor) not in present]:
        raise _incomplete(folder, missing[0])
    return loaded


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _files(folder):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                yield name, tensors.get_tensor(name)


def _check_files(folder: Path) -> None:
    """Look into the files, as transformers does not say which of them is damaged, nor miss what only the index has."""
    there: set[str] = set()
    for file in _files(folder):
        with _opened(file) as tensors:
            there.update(tensors.keys())
    if missing := sorted(_index(folder).keys() - there):
        raise _incomplete(folder, missing[0])


def _files(folder: Path) -> list[Path]:
    """Return the files of weights: all that the index names, or the only one."""
    files = [folder / name for name in sorted(set(_index(folder).values()) or {_WEIGHTS})]
    for file in files:
        if not file.is_file():
            raise UsageError(f"expected weights in {folder}, found no {file.name}; other kinds are not read")
    return files


def _index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor as the index of a sharded checkpoint has them; empty if there is none."""
    file = folder / _INDEX
    if not file.is_file():
        return {}
    try:
        files = dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
        if odd := [each for each in files.values() if not isinstance(each, str)]:
            raise TypeError(f"{odd[0]!r} is no name of a file")
        return files
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged: {error!r}") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged: {error}") from error
