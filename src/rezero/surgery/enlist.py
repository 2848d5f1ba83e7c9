"""Give an optimizer that is at work the parameters of new layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.surgery.recipe import Undo

__all__ = ["extend_", "home_of_gates"]


def home_of_gates(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Choose the group that gates join.

    Args:
        optimizer: The optimizer.

    Returns:
        The group; None for one of their own, which a scheduler could not take.

    Raises:
        UsageError: If there is a scheduler, and no group without decay.
    """
    groups = optimizer.param_groups
    named = next((group for group in groups if group.get("name") == "gates"), None)
    if named is not None or not any("initial_lr" in group for group in groups):
        return named
    undecayed = next((group for group in groups if not group.get("weight_decay")), None)
    if undecayed is None:
        raise UsageError(
            "the optimizer has a learning-rate scheduler and no group without weight decay, which the gates could "
            "join: let one that was made with rezero.param_groups go on in its place (new.state.update(old.state)), "
            "and make the scheduler after the growth"
        )
    return undecayed


def extend_(
    optimizer: torch.optim.Optimizer,
    home: dict[str, Any] | None,
    model: nn.Module,
    names: Sequence[str],
    originals: Sequence[str],
    undo: Undo,
) -> None:
    """Give an optimizer the parameters of new layers: in the groups of their originals, the gates in one without decay.

    Groups that hold parameters in the order of the model do so afterwards, so that an optimizer that is made anew for
    the deeper model, by the same rule, has them at the same places, by which a state dict tells them.

    Args:
        optimizer: The optimizer.
        home: The group of the gates; None for a new one.
        model: The model.
        names: Names of the new layers.
        originals: Those of the layers that they were made from.
        undo: Gets what takes them out again.
    """
    groups = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    added: set[int] = set()
    order = {id(each): place for place, each in enumerate(model.parameters())}
    undo.steps.append(partial(_shrink, optimizer, added, optimizer.param_groups[-1] if home is None else None))
    if home is None:
        home = {**optimizer.param_groups[0], "params": [], "weight_decay": 0.0, "name": "gates"}
        if "param_names" in home:
            home["param_names"] = []
        optimizer.param_groups.append(home)
    sorted_before = [group for group in optimizer.param_groups if _is_sorted(group, order)]
    for name, original in zip(names, originals, strict=True):
        twin = dict(model.get_submodule(original).named_parameters())
        for key, parameter in model.get_submodule(name).named_parameters():
            group = groups.get(id(twin[key])) if key in twin else home
            if group is None and parameter.requires_grad:
                group = optimizer.param_groups[0]  # its original does not learn, and it does
            if id(parameter) in groups or id(parameter) in added or group is None:
                continue
            added.add(id(parameter))
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(f"{name}.{key}")
    for group in sorted_before:
        _sort(group, order)


def _is_sorted(group: dict[str, Any], order: dict[int, int]) -> bool:
    places = [order.get(id(each), -1) for each in group["params"]]
    return -1 not in places and places == sorted(places)


def _sort(group: dict[str, Any], order: dict[int, int]) -> None:
    places = sorted(range(len(group["params"])), key=lambda place: order[id(group["params"][place])])
    for name in ("params", "param_names"):
        if name in group:
            group[name][:] = [group[name][place] for place in places]


def _shrink(optimizer: torch.optim.Optimizer, added: set[int], last: dict[str, Any] | None) -> None:
    """Take out what has come in; what somebody else has added since stays."""
    for group in optimizer.param_groups:
        stay = [place for place, each in enumerate(group["params"]) if id(each) not in added]
        for name in ("params", "param_names"):
            if name in group:
                group[name][:] = [group[name][place] for place in stay]
    if last is not None:  # behind which there is a group for the gates alone
        groups = optimizer.param_groups
        place = next((place for place, each in enumerate(groups) if each is last), len(groups))
        if place + 1 < len(groups) and not groups[place + 1]["params"]:
            del groups[place + 1]
    for parameter in [each for each in optimizer.state if id(each) in added]:
        del optimizer.state[parameter]
