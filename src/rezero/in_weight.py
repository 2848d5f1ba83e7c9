"""A gated layer whose gate goes into its weights, where they are fewer than what the layer returns.

Beside what the layer keeps for the gradients, ``alpha * (W h + b)`` keeps a whole output, ``(alpha W) h + alpha b`` a
scaled weight, which of a norm is next to nothing.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rezero.kernels.reference import gate

__all__ = ["can_scale", "scaled_output"]

_Run = Callable[[Any, Tensor, Tensor | None, Tensor | None], Tensor]


def can_scale(kind: type[nn.Module]) -> bool:
    """Tell whether layers of a class can take a gate into their weights."""
    return kind in _RUNS


def scaled_output(kind: type[nn.Module], layer: Any, h: object, scale: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return what a layer gives, multiplied by its gate.

    Args:
        kind: Whose ``forward`` it runs.
        layer: The layer.
        h: What it is called with.
        scale: The gate, ``(1,)`` or ``(C,)``.
        shape: Its shape beside the output, ``(1,)``, ``(C,)`` or ``(C, 1, 1)``.

    Returns:
        The scaled output; None where the output itself has to be scaled: for a layer of another class, for one whose
        weights are no plain parameters, for inputs that do not lie in order, and where each output has more weights
        than there are places for it.
    """
    run = _RUNS.get(kind)
    if run is None or type(h) is not Tensor:
        return None
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if type(weight) is not nn.Parameter or not (bias is None or type(bias) is nn.Parameter):
        return None
    behind = weight.ndim - 2 if kind in _MAPS else 0 if kind in _ALONG_LAST else h.ndim - 2  # axes behind the features
    if len(scale) > 1 and len(shape) != 1 + behind:
        return None
    if kind not in _MAPS:
        return run(layer, h, gate(weight, scale), None if bias is None else gate(bias, scale))
    if weight[0].numel() > h.numel() // max(1, h.shape[-1 - behind]):
        return None
    if kind is nn.Linear and not h.is_contiguous():  # torch then rounds otherwise for a weight that learns
        return None
    rows = scale.view(-1, *[1] * (weight.ndim - 1))
    return run(layer, h, gate(weight, rows), None if bias is None else gate(bias, scale))


def _batch_norm(layer: Any, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Do what the layer does, which also counts what it has seen."""
    mean, variance, momentum = layer.running_mean, layer.running_var, layer.momentum
    tracks = layer.training and layer.track_running_stats
    if tracks and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:  # the mean over all batches
            momentum = 1 / float(layer.num_batches_tracked)
    if layer.training and not tracks:
        mean = variance = None
    layer._check_input_dim(h)
    return F.batch_norm(h, mean, variance, weight, bias, layer.training or mean is None, momentum or 0.0, layer.eps)


def _conv(layer: Any, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    output: Tensor = layer._conv_forward(h, weight, bias)
    return output


_MAPS: dict[type[nn.Module], _Run] = {
    nn.Linear: lambda _, h, weight, bias: F.linear(h, weight, bias),  # type: ignore[arg-type]
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
}
_ALONG_LAST: dict[type[nn.Module], _Run] = {
    nn.LayerNorm: lambda layer, h, weight, bias: F.layer_norm(h, layer.normalized_shape, weight, bias, layer.eps),
    nn.RMSNorm: lambda layer, h, weight, _: F.rms_norm(h, layer.normalized_shape, weight, layer.eps),
}
_RUNS: dict[type[nn.Module], _Run] = {
    **_MAPS,
    **_ALONG_LAST,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GroupNorm: lambda layer, h, weight, bias: F.group_norm(h, layer.num_groups, weight, bias, layer.eps),
}
