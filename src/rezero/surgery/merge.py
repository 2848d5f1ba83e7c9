"""Write a linear block into the linear layer that it is grafted at."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError

if TYPE_CHECKING:
    from rezero.surgery.graft import Graft

__all__ = ["merge_"]


def merge_(graft: "Graft") -> None:
    """Change the layers' weights so that they do what layer and block did; the blocks are taken out.

    Args:
        graft: The blocks.

    Raises:
        UsageError: If a block or its layer is not linear. The model is left as it was.
    """
    merged = []
    for name, block in graft.blocks.items():
        layer: Any = graft.model.get_submodule(name)
        if layer.original_class is not nn.Linear:
            raise UsageError(
                f"{name!r} is a {layer.original_class.__name__}, and only an nn.Linear can take a block in: where "
                "the model has some, graft at these, with at="
            )
        if (reason := _not_its_own(graft.model, name, layer)) is not None:
            raise UsageError(f"the weight of {name!r} {reason}: the block there stays a block")
        if (culprit := _not_linear(block)) is not None:
            raise UsageError(f"the block at {name!r} is not linear because of {culprit}: it stays a block")
        _check_fits(name, block, layer, graft.position)
        merged.append((layer, *_product(layer, graft.position, *_as_matrix(block, layer))))
    graft.remove()
    with torch.no_grad():
        for layer, weight, bias in merged:
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)
            elif bias.any():
                layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _not_its_own(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Say why a block can't be written into a layer's weight; None if it can."""
    if layer._parameters.get("weight") is None:
        return "is computed from other parameters"
    if layer._forward_pre_hooks:
        return "may be changed by a hook"
    own = {f"{name}.{kind}".lstrip("."): each for kind, each in layer._parameters.items() if each is not None}
    for key, each in model.named_parameters(remove_duplicate=False):
        for mine, parameter in own.items():
            if each is parameter and key != mine:
                of = "" if mine.endswith("weight") else "stands beside a bias that "
                return f"{of}is used elsewhere too, as {key!r}"
    return None


def _check_fits(name: str, block: nn.Module, layer: Any, position: str) -> None:
    """Refuse a block whose matrix is not that of the layer's input or output."""
    matrices = [each for each in block.parameters() if each.ndim == 2]
    if not matrices:
        raise UsageError(f"the block at {name!r} has no matrix that could be written into a weight: it stays a block")
    if position == "parallel" and layer.in_features != layer.out_features:
        raise UsageError(f"{name!r} turns {layer.in_features} features into {layer.out_features}: no block is parallel")
    width = layer.out_features if position == "after" else layer.in_features
    if matrices[0].shape[-1] != width:
        raise UsageError(f"the block at {name!r} is {matrices[0].shape[-1]} wide, where {width} features come through")


def _not_linear(block: nn.Module) -> str | None:
    """Name the part of a block that may not be linear; None if all are."""
    from rezero.gate import Gate
    from rezero.layers import GatedAdapter
    from rezero.residual import ReZero

    known = (nn.Linear, nn.Identity, nn.Dropout, nn.Sequential, Gate, ReZero, GatedAdapter)
    for each in block.modules():
        if type(each) not in known:
            return type(each).__name__
        if each._forward_hooks or each._forward_pre_hooks:
            return f"a hook on its {type(each).__name__}"
    return None


def _as_matrix(block: nn.Module, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return ``A^T`` and ``c`` of a block that does ``A x + c``, in float64."""
    exact = copy.deepcopy(block).double().eval()
    width = next(each for each in exact.parameters() if each.ndim == 2).shape[-1]
    points = torch.cat([torch.zeros(1, width), torch.eye(width)]).double().to(layer.weight.device)
    with torch.no_grad():
        zero, *rows = exact(points)
    return torch.stack(rows) - zero, zero


def _product(layer: nn.Linear, position: str, rows: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer with a block ``x A^T + c``, in float64."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    if position == "before":  # W (A x + c) + b
        return weight @ rows.t(), weight @ shift + bias
    if position == "after":  # A (W x + b) + c
        return rows.t() @ weight, bias @ rows + shift
    return weight + rows.t() - torch.eye(len(rows), dtype=rows.dtype, device=rows.device), bias + shift
