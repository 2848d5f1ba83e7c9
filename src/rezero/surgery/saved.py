"""A converted model on disk: its weights, and the recipe that rebuilds it."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.recipe import Recipe, Undo, apply_, check_convertible

__all__ = ["from_pretrained", "load_converted_", "note", "recall", "remember", "save_converted"]

_KEY = "rezero"  # in the config of a model of transformers
_FILE = "rezero.json"


def remember(model: nn.Module, recipe: Recipe, undo: Undo) -> None:
    """Note what is changed now.

    Args:
        model: The changed model.
        recipe: All its changes.
        undo: Gets what puts back what was noted before.
    """
    undo.steps.append(partial(note, model, recall(model)))
    note(model, recipe)


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
    config = getattr(model, "config", None)
    if callable(getattr(config, "to_json_string", None)):
        notes.append((vars(config), _KEY, recipe.to_json()))
    for place, key, value in notes:
        if recipe:
            place[key] = value
        else:
            place.pop(key, None)


def save_converted(model: nn.Module, path: str | Path) -> None:
    """Write ``model.safetensors`` and ``rezero.json``.

    Args:
        model: The converted model.
        path: A folder, made if it is not there.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))
    (folder / _FILE).write_text(json.dumps(recall(model).to_json(), indent=1), encoding="utf-8")


def load_converted_(model: nn.Module, path: str | Path) -> nn.Module:
    """Convert a model as the one that was saved, and load its weights.

    Args:
        model: A model built as the original was, not converted.
        path: The folder that ``Conversion.save`` or ``save_pretrained`` wrote.

    Returns:
        The model.

    Raises:
        UsageError: If the folder holds no converted model, or one of another shape: the first difference. The model is
            left as it was.
    """
    folder = Path(path)
    recipe = _read_recipe(folder)
    check_convertible(model)
    _check_modules(model, recipe, folder)
    undo = Undo()
    try:
        apply_(model, recipe, undo)
        _load(model, folder)
        remember(model, recipe, undo)
    except BaseException:
        undo()
        raise
    return model


def from_pretrained(path: str | Path, **kwargs: Any) -> Any:
    """Rebuild a converted model of transformers from the folder that ``save_pretrained`` wrote.

    The ``from_pretrained`` of transformers itself would drop the gates as unexpected keys. Here it loads into a model
    that is converted as soon as it is built, so that all it knows of other names, shards and devices holds.

    Args:
        path: The folder.
        **kwargs: Passed on to it.

    Returns:
        The model, in evaluation mode.

    Raises:
        UsageError: If the folder holds no converted model of transformers, or one of another shape.
    """
    folder = Path(path)
    recipe = _read_recipe(folder)
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    architectures = getattr(config, "architectures", None) or []
    kind: Any = next((getattr(transformers, name, None) for name in architectures), None)
    if kind is None:
        raise UsageError(
            f"{folder} names no architecture of transformers: build the model yourself and call rezero.load_converted_"
        )

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        _check_modules(self, recipe, folder)
        apply_(self, recipe, Undo())
        note(self, recipe)

    converted: Any = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    model, info = converted.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
    model.__class__ = kind
    for name in recipe.frozen:  # the loader makes parameters anew, and all of them learn
        model.get_parameter(name).requires_grad_(False)
    for problem, names in info.items():
        if names:
            raise UsageError(f"{folder} was saved from another model, or is incomplete: {problem}: {sorted(names)[0]}")
    return model.eval()


def _check_modules(model: nn.Module, recipe: Recipe, folder: Path) -> None:
    names = {name for name, _ in model.named_modules()}
    for name in (*(gate.leaf for gate in recipe.gates), *recipe.norms, *recipe.activations):
        if name not in names:
            raise UsageError(f"{folder} was saved from another model: this one has no module {name!r}")


def _read_recipe(folder: Path) -> Recipe:
    for file in (folder / _FILE, folder / "config.json"):
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
        f"expected a converted model in {folder}, found no recipe in {_FILE} or config.json: save one with "
        "Conversion.save or save_pretrained"
    )


def _load(model: nn.Module, folder: Path) -> None:
    own = model.state_dict(keep_vars=True)
    loaded: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder):
        if name not in own:
            raise UsageError(f"{folder} was saved from another model: this one has no {name!r}")
        if own[name].shape != tensor.shape:
            expected, got = tuple(own[name].shape), tuple(tensor.shape)
            raise UsageError(f"{folder} was saved from another model: {name!r} is {expected} here and {got} there")
        loaded[name] = tensor
    present = {id(own[name]) for name in loaded}
    if missing := [name for name, tensor in own.items() if id(tensor) not in present]:
        raise UsageError(f"{folder} was saved from another model, or is incomplete: it has no {missing[0]!r}")
    model.load_state_dict(loaded, strict=False, assign=any(tensor.is_meta for tensor in own.values()))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"expected weights in {folder}, found no .safetensors file; other kinds are not read")
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} is damaged: {error}") from error
