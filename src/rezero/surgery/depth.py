"""Where a model keeps how many layers it has, and which layer is which."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.surgery.outputs import same
from rezero.surgery.recipe import Undo

__all__ = ["check_config", "deepen_configs_", "renumber_"]

_INDICES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
_DEPTH = re.compile(r"^(num_|n_)?((hidden|decoder|encoder)_)?(layers?|blocks)$|^depth$")
_SIDES = ("decoder", "encoder")
_SMALL = 300_000_000  # parameters


def renumber_(layers: Sequence[nn.Module], places: Sequence[int], undo: Undo) -> None:
    """Let every layer know its place, where it knew the one that it had.

    Args:
        layers: All layers, in their new order.
        places: The place that each had; that of its original for a copy.
        undo: Gets what puts the old numbers back.
    """
    for place, (layer, before) in enumerate(zip(layers, places, strict=True)):
        for module in layer.modules():
            for name in _INDICES:
                number = vars(module).get(name)
                if isinstance(number, int) and not isinstance(number, bool) and number in (before, before + 1):
                    undo.steps.append(partial(setattr, module, name, number))
                    setattr(module, name, place + number - before)


def deepen_configs_(model: nn.Module, path: str, places: Sequence[int], undo: Undo) -> None:
    """Write the new depth wherever the old one stands: in attributes beside the list, and in configurations.

    Args:
        model: The model.
        path: Qualified name of the list of layers.
        places: The place that each layer had, in the new order.
        undo: Gets what puts the old numbers back.
    """
    old = max(places) + 1
    owners = [model.get_submodule(name) for name in _ancestors(path)]
    if not owners:  # the list is the model
        return
    holder = owners[0]
    _write(vars(holder), holder, partial(_number_of_layers, old=old), places, undo)
    config = next((vars(each)["config"] for each in owners if _is_config(vars(each).get("config"))), None)
    if config is None:
        return
    whole = vars(model).get("config")
    for each in {id(each): each for each in (config, whole) if type(each) is type(config)}.values():
        sides = each is whole  # otherwise it is of one side alone
        _write(vars(each), each, partial(_field, path=path if sides else "", config=each, old=old), places, undo)


def check_config(model: nn.Module, run: Callable[[nn.Module], list[Any]]) -> None:
    """Refuse a model whose configuration would not build it again.

    Args:
        model: A grown model, without gates.
        run: Runs a model on the example; models of up to 300 million parameters are built and run.

    Raises:
        UsageError: If a model built from the configuration has other parameters, or does something else.
    """
    config = vars(model).get("config")
    if not _is_config(config):
        return
    small = sum(each.numel() for each in model.parameters()) <= _SMALL
    try:
        with torch.device(next(model.parameters()).device if small else "meta"), torch.random.fork_rng([]):
            twin = type(model)(type(config).from_dict(config.to_dict()))  # type: ignore[union-attr]
    except Exception:  # a class that takes more than its configuration
        return
    shapes = {name: each.shape for name, each in model.state_dict().items()}
    other = {name: each.shape for name, each in twin.state_dict().items()}
    if difference := next((name for name in sorted({*shapes, *other}) if shapes.get(name) != other.get(name)), None):
        raise UsageError(
            f"the configuration does not tell how deep the grown model is: {difference!r} differs in a model that is "
            f"built from it; grow another of its lists, or report {type(model).__name__}"
        )
    if not small:
        return
    twin.to(next(model.parameters()).dtype).load_state_dict(model.state_dict())
    if not all(isinstance(one, Exception) or same(one, two) for one, two in zip(run(model), run(twin), strict=True)):
        raise UsageError(
            "a model built from the grown one's configuration, with its weights, does something else, because its "
            "layers do what depends on their number: it could not be saved and loaded"
        )


def _ancestors(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _is_config(value: Any) -> bool:
    return callable(getattr(value, "to_json_string", None)) and callable(getattr(value, "to_dict", None))


def _write(
    fields: dict[str, Any], owner: Any, is_depth: Callable[[str, Any], bool], places: Sequence[int], undo: Undo
) -> None:
    old = max(places) + 1
    for name, value in list(fields.items()):
        if is_depth(name, value):
            new: Any = len(places)
        elif isinstance(value, list | tuple) and len(value) == old and "layer" in name:
            new = type(value)(value[place] for place in places)
        else:
            continue
        undo.steps.append(partial(setattr, owner, name, value))
        setattr(owner, name, new)


def _number_of_layers(name: str, value: Any, old: int) -> bool:
    return type(value) is int and value == old and _DEPTH.match(name) is not None


def _field(name: str, value: Any, path: str, config: Any, old: int) -> bool:
    """Return whether a field of a configuration is the depth of the list that has grown, and not of another one."""
    if not _number_of_layers(name, value, old):
        return False
    side = next((each for each in _SIDES if each in path.split(".")), None)
    if side is None or not getattr(config, "is_encoder_decoder", False):
        return True
    own = any(side in each and _DEPTH.match(each) for each in vars(config))
    return side in name if own else not any(each in name for each in _SIDES)
