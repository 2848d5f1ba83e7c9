"""Find a branch that outputs only zeros because of how its last layer was initialised."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["find_zero_last", "probe_shapes"]

# The inputs a layer of each kind takes, from its own attributes: a zero output is judged by running the layer.
# Zero parameters prove nothing: some norms multiply by 1 + weight.
_PROBES: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., list[tuple[int, ...]]]], ...] = (
    ((nn.Linear,), lambda layer: [(2, layer.in_features), (2, 3, layer.in_features)]),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        lambda layer: [(2, layer.in_channels, *_room(layer))],
    ),
    ((nn.BatchNorm1d,), lambda layer: [(2, layer.num_features), (2, layer.num_features, 8)]),
    ((nn.BatchNorm2d,), lambda layer: [(2, layer.num_features, 8, 8)]),
    ((nn.BatchNorm3d,), lambda layer: [(2, layer.num_features, 8, 8, 8)]),
    ((nn.GroupNorm,), lambda layer: [(2, layer.num_channels, 8, 8), (2, layer.num_channels, 8)]),
    ((nn.LayerNorm, nn.RMSNorm), lambda layer: [(2, *layer.normalized_shape), (2, 3, *layer.normalized_shape)]),
)


def find_zero_last(branch: nn.Module) -> str | None:
    """Name the layer because of which a branch outputs only zeros at initialisation.

    A layer is suspected when its parameters are all zero. Then a copy of the branch is run on random input, if the
    shape of that can be read from its first layer: a zero layer that does not silence the branch is not blamed. A
    branch that cannot be run is judged by its last layer alone, on random input likewise.

    Args:
        branch: A residual branch, ``(*, D) -> (*, D)``.

    Returns:
        The layer, as ``"fc2: Linear(...)"``, or None if the branch is alive or cannot be judged without an input
        (other arguments than one tensor and no zero layer at its end, lazy layers, the meta device).
    """
    layers = [(name, layer) for name, layer in branch.named_modules() if _owns_parameters(layer)]
    parameters = list(branch.parameters())
    if any(p.is_meta or isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        return None
    try:
        suspects = [(name, layer) for name, layer in layers if _is_zero(layer)]
    except RuntimeError:  # fake tensors have no values to look at
        return None
    if not suspects:
        return None
    silent = _outputs_zeros(branch, probe_of=layers[0][1])
    if silent is None:
        silent = suspects[-1] == layers[-1] and _outputs_zeros(layers[-1][1], probe_of=layers[-1][1])
    if not silent:
        return None
    name, layer = suspects[-1]
    return f"{name}: {layer}" if name else repr(layer)


def probe_shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes of input that a layer of torch takes.

    Args:
        layer: A linear layer, a convolution or a norm.

    Returns:
        The shapes; none for another kind of layer.
    """
    return next((make(layer) for kinds, make in _PROBES if isinstance(layer, kinds)), [])


def _owns_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(recurse=False), None) is not None


def _is_zero(layer: nn.Module) -> bool:
    return not any(bool(p.any()) for p in layer.parameters(recurse=False))


def _outputs_zeros(module: nn.Module, *, probe_of: nn.Module) -> bool | None:
    """Tell whether the module is zero on random input of a shape that ``probe_of`` takes; None if it can't be run."""
    for shape in probe_shapes(probe_of):
        try:
            output = _run_copy(module, shape)
        except Exception:  # noqa: S112 - a branch of the user's may raise anything: it stays unjudged
            continue
        first = output[0] if isinstance(output, tuple) else output
        return not bool(first.any()) if isinstance(first, Tensor) else None
    return None


def _run_copy(module: nn.Module, shape: tuple[int, ...]) -> object:
    """Run a copy of the module in evaluation mode, so that nothing of the original can change."""
    parameter = next(module.parameters())
    probe = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    devices = [parameter.device] if parameter.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        return copy.deepcopy(module).eval()(probe.to(parameter.device, parameter.dtype))


def _room(layer: "nn.modules.conv._ConvNd") -> tuple[int, ...]:
    """Return a spatial size that a convolution's kernel fits into."""
    sizes = zip(layer.kernel_size, layer.dilation, strict=True)
    return tuple(dilation * (int(size) - 1) + 8 for size, dilation in sizes)
