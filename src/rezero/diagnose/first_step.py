"""How far an optimizer's next step would move parameters, without making it."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["first_step"]

_SIGNS = ("Ada", "NAdam", "RAdam", "RMSprop", "Rprop", "Lion", "LAMB", "Lamb", "Sophia")  # step by their rate at first


def first_step(optimizer: Any, gradients: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, float]:
    """Let a copy of an optimizer make a step with copies of parameters; where that fails, estimate its size.

    Args:
        optimizer: The optimizer, which has these parameters and may have others.
        gradients: Parameter to gradient.

    Returns:
        Parameter to the mean size of what would be added to one of its numbers.
    """
    try:
        return _made(optimizer, gradients)
    except Exception:  # of one that wants a closure, or is more than the torch optimizer's own three attributes
        return _estimated(optimizer, gradients)


def _made(optimizer: torch.optim.Optimizer, gradients: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, float]:
    twins = {each: nn.Parameter(each.detach().clone()) for each in gradients}
    twin = _twin(optimizer, twins)
    for each, gradient in gradients.items():
        twins[each].grad = gradient.detach().clone()
    devices = {each.device.index for each in gradients if each.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(sorted(devices)):
        inspect.unwrap(type(twin).step)(twin)  # without the hooks of all optimizers
    return {each: float((twins[each] - each).detach().abs().mean()) for each in gradients}


def _twin(optimizer: torch.optim.Optimizer, twins: Mapping[nn.Parameter, nn.Parameter]) -> torch.optim.Optimizer:
    """Copy an optimizer as pickle does, with other parameters in place of some, and without the rest."""
    kind = type(optimizer)
    twin = kind.__new__(kind)
    groups = [
        {**group, "params": [each for each in group["params"] if each in twins]} for group in optimizer.param_groups
    ]
    told = {
        "defaults": optimizer.defaults,
        "state": defaultdict(dict, {each: kept for each, kept in optimizer.state.items() if each in twins}),
        "param_groups": [group for group in groups if group["params"]],
    }
    twin.__setstate__(copy.deepcopy(told, {id(each): other for each, other in twins.items()}))
    return twin


def _estimated(optimizer: Any, gradients: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, float]:
    rates = {each: group.get("lr") or 0.0 for group in optimizer.param_groups for each in group["params"]}
    like_signs = type(optimizer).__name__.startswith(_SIGNS)
    return {
        each: float(rates[each]) * (1.0 if like_signs else float(gradient.abs().mean()))
        for each, gradient in gradients.items()
    }
