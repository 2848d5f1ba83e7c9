"""Branches that are scaled already, by a LayerScale of the model's own."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.linear import is_matrix
from rezero.surgery.recipe import Recipe
from rezero.surgery.sites import Branch, Residuals

__all__ = ["choose_scales", "neutral"]


def choose_scales(model: nn.Module, found: Residuals, layer_scale: str) -> Mapping[str, str]:
    """Find the LayerScales that become gates.

    Args:
        model: The model, not converted yet.
        found: Its residual additions.
        layer_scale: ``keep``, ``reuse`` or ``refuse``, as for `rezero.convert_`.

    Returns:
        The module that ends a branch to the name of its parameter; empty if none becomes a gate.

    Raises:
        UsageError: If there is a LayerScale that is not wanted, or can't become a gate.
    """
    scaled = [branch for branch in found.branches if branch.scale]
    if layer_scale == "keep":
        return {}
    if layer_scale == "refuse" and scaled:
        names = ", ".join(scaled[0].scale)
        raise UsageError(
            f"layer_scale='refuse': the branch of {scaled[0].leaf!r} is scaled by {names} already (and so are "
            f"{len(scaled) - 1} more): build the model without, or convert with layer_scale='keep' or 'reuse'"
        )
    return {branch.leaf: _parameter(model, branch) for branch in scaled}


def _parameter(model: nn.Module, branch: Branch) -> str:
    """Name the parameter of a module that is nothing but a LayerScale."""
    name = branch.scale[-1].rpartition(".")[2]
    if branch.scale != (f"{branch.leaf}.{name}",) or not _multiplies(model.get_submodule(branch.leaf), name, branch):
        raise UsageError(
            f"layer_scale='reuse': the branch of {branch.leaf!r} is scaled by {', '.join(branch.scale)}, which is not "
            "the only parameter of a module that does nothing else: keep it with layer_scale='keep', or take it out "
            "before, as the model's code allows: such a parameter set to None, or filled with ones and kept"
        )
    return name


def _multiplies(layer: nn.Module, name: str, branch: Branch) -> bool:
    """Try whether a layer multiplies by its only parameter, one number a channel."""
    if [each for each, _ in layer.named_parameters()] != [name] or is_matrix(layer.get_parameter(name).shape):
        return False
    layer = copy.deepcopy(layer).to_empty(device="cpu").double().eval().requires_grad_(False)
    x = torch.randn(branch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 3.0):
        layer.get_parameter(name).fill_(factor)
        try:
            output = layer(x.clone())
        except Exception:  # somebody's layer may refuse an input in any way
            return False
        if not (isinstance(output, Tensor) and torch.equal(output, factor * x)):
            return False
    return True


@contextmanager
def neutral(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Set the LayerScales that become gates to one, and put their numbers back."""
    parameters = [model.get_parameter(f"{gate.leaf}.{gate.parameter}") for gate in recipe.gates if gate.reused]
    numbers = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = torch.ones_like(parameter)
        yield
    finally:
        for parameter, data in zip(parameters, numbers, strict=True):
            parameter.data = data
