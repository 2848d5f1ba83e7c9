"""Branches that are zero to begin with: behind a gate at zero they would never learn."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.linear import is_matrix
from rezero.surgery.recipe import Undo
from rezero.surgery.sites import Branch, Residuals
from rezero.surgery.skips import silent_branches
from rezero.surgery.undisturbed import undisturbed, unwritten

__all__ = ["wake_"]


def wake_(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals, *, reset: bool, undo: Undo
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give branches that output only zeros their usual start.

    Gains and scales become one, matrices are drawn anew by their own layer, or from a normal distribution where it does
    not know how. What is zero is judged by the branch's output: some norms multiply by ``1 + weight``. The random
    generators stay as they were.

    Args:
        model: The model, not converted yet.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: Its residual additions.
        reset: Whether to do so, or to refuse.
        undo: Gets what puts the numbers back.

    Returns:
        Names of the parameters that were set, and of the modules whose branch is zero on this example for another
        reason, such as a ReLU that is never open.

    Raises:
        UsageError: If there is a branch with a parameter at zero and ``reset`` is false, or if the model writes into
            its parameters when it runs.
    """
    changed: list[str] = []
    with undisturbed(model):
        while True:
            with unwritten(model):
                silent = silent_branches(model, args, kwargs, found)
            names: list[str] = []
            for branch in silent:
                name = next((name for name in _zeros(model, branch) if name not in changed + names), None)
                if name is not None and not reset:
                    raise UsageError(
                        f"the branch of {branch.leaf!r} outputs only zeros and would never learn behind a gate at "
                        f"zero, because {name!r} is zero: convert with zero_last='reset', or initialise it otherwise"
                    )
                names += [] if name is None else [name]
            if not names:
                return tuple(changed), tuple(branch.leaf for branch in silent)
            for name in names:
                _wake(model, name, undo)
            changed += names


def _zeros(model: nn.Module, branch: Branch) -> Iterator[str]:
    """Name the parameters of a branch that are zero, the last ones first; biases do not count."""
    names = [*branch.scale]
    for layer in (branch.leaf, *reversed(branch.leaves)):
        own = model.get_submodule(layer).named_parameters(recurse=layer == branch.leaf)
        names += [f"{layer}.{name}".lstrip(".") for name, _ in own if not name.endswith("bias")]
    yield from (name for name in dict.fromkeys(names) if not bool(model.get_parameter(name).any()))


@torch.no_grad()
def _wake(model: nn.Module, name: str, undo: Undo) -> None:
    """Give one parameter numbers, and leave all others alone."""
    parameter = model.get_parameter(name)
    layer: Any = model.get_submodule(name.rpartition(".")[0])
    before = parameter.detach().clone()
    try:
        _draw(layer, parameter)
    finally:
        undo.steps.append(partial(_put_back, parameter, before, parameter.detach().clone()))


def _draw(layer: Any, parameter: nn.Parameter) -> None:
    if not is_matrix(parameter.shape):
        parameter.fill_(1.0)
        return
    if hasattr(layer, "reset_parameters"):
        others = [(each, each.detach().clone()) for each in layer.parameters() if each is not parameter]
        layer.reset_parameters()
        for each, numbers in others:
            each.copy_(numbers)
    if not bool(parameter.any()):
        nn.init.normal_(parameter, std=_spread(layer, parameter.shape))


def _spread(layer: nn.Module, shape: Sequence[int]) -> float:
    """Return the standard deviation that a layer starts with; which axis of a matrix is its input is unknown."""
    if type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        return 0.02
    inputs = math.prod(shape[1:]) if len(shape) > 3 else (shape[-2] + shape[-1]) / 2
    return float(inputs**-0.5)


@torch.no_grad()
def _put_back(parameter: Tensor, before: Tensor, drawn: Tensor) -> None:
    if torch.equal(parameter, drawn.to(parameter)):  # otherwise it has learned since, or a gate was folded into it
        parameter.copy_(before)
