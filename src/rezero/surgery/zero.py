"""Branches that are zero to begin with: behind a gate at zero they would never learn."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.linear import is_matrix
from rezero.surgery.recipe import Undo
from rezero.surgery.sites import Branch, Residuals
from rezero.surgery.verify import silent_branches

__all__ = ["wake_"]


def wake_(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals, *, reset: bool, undo: Undo
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give branches that output only zeros their usual start.

    Gains and scales become one, matrices are drawn anew by their own layer. What is zero is judged by the branch's
    output: some norms multiply by ``1 + weight``.

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
        UsageError: If there is a branch with a parameter at zero and ``reset`` is false.
    """
    changed: list[str] = []
    while True:
        silent = silent_branches(model, args, kwargs, found)
        names: list[str] = []
        for branch in (branch for site in silent for branch in site.branches):
            name = next((name for name in _zeros(model, branch) if name not in changed + names), None)
            if name is not None and not reset:
                raise UsageError(
                    f"the branch of {branch.leaf!r} outputs only zeros and would never learn behind a gate at zero, "
                    f"because {name!r} is zero: convert with zero_last='reset', or initialise it otherwise"
                )
            names += [] if name is None else [name]
        if not names:
            return tuple(changed), tuple(branch.leaf for site in silent for branch in site.branches)
        for name in dict.fromkeys(names):
            _wake(model, name, undo)
        changed += dict.fromkeys(names)


def _zeros(model: nn.Module, branch: Branch) -> Iterator[str]:
    """Name the parameters of a branch that are zero, the last ones first; biases do not count."""
    names = [*branch.scale]
    for layer in (branch.leaf, *reversed(branch.leaves)):
        own = model.get_submodule(layer).named_parameters(recurse=layer == branch.leaf)
        names += [f"{layer}.{name}".lstrip(".") for name, _ in own if not name.endswith("bias")]
    yield from (name for name in dict.fromkeys(names) if not bool(model.get_parameter(name).any()))


@torch.no_grad()
def _wake(model: nn.Module, name: str, undo: Undo) -> None:
    parameter = model.get_parameter(name)
    layer = model.get_submodule(name.rpartition(".")[0])
    draw = getattr(layer, "reset_parameters", None)
    if not is_matrix(parameter.shape) or draw is None:
        undo.steps.append(partial(_fill, parameter, parameter.detach().clone()))
        parameter.fill_(1.0)
        return
    for each in layer.parameters(recurse=False):
        undo.steps.append(partial(_fill, each, each.detach().clone()))
    draw()


@torch.no_grad()
def _fill(parameter: Tensor, numbers: Tensor) -> None:
    parameter.copy_(numbers)
