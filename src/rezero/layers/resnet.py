"""Residual networks for small images, one block for each residual formula."""

# B batch, C channels, H height, W width

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.functional import gated_residual
from rezero.gate import Gate, gate_dtype
from rezero.layers.network import check_residual, check_sizes, reset_children
from rezero.layers.residuals import LayerScale, Residual, ScalarBias, ScalarScale
from rezero.residual import ReZero

__all__ = ["PreActResNet18", "ResNet"]

_Parts = dict[str, nn.Module]  # of a Sequential, by name

_NO_PLAIN_NORM = "the plain network has its norms inside its blocks already"
_NO_DEEPNORM = "its constants are derived for Transformers only"
_REFUSED = {
    "ResNet": {"plain-norm": _NO_PLAIN_NORM, "deepnorm": _NO_DEEPNORM},
    "PreActResNet18": {
        "plain-norm": _NO_PLAIN_NORM,
        "deepnorm": _NO_DEEPNORM,
        "pre-norm": "the pre-activation network without a gate is the arm 'residual' here",
        "post-norm": "a pre-activation network has its norms before the convolutions; use ResNet",
        "fixup": "its block has a ReLU after the addition, which a pre-activation network has not; use ResNet",
    },
}


class ResNet(nn.Module):
    r"""Residual network for 32 x 32 images with ``6 n + 2`` layers: three stages of ``n`` blocks.

    A 3 x 3 convolution, ``n`` blocks each with ``width``, ``2 width`` and ``4 width`` channels, global average pooling
    and a linear output. The first blocks of the second and the third stage have stride 2; their shortcut ``s`` takes
    every second pixel and pads the channels with zeros (option A), so shortcuts have no parameters. The block of each
    arm, layers being applied from right to left and ``bn`` standing for batch norm:

    - ``plain``: ``relu bn conv relu bn conv x``, and no skip.
    - ``residual``: ``relu(s(x) + bn conv relu bn conv x)``, He et al. (2015).
    - ``rezero``: ``s(x) + alpha * relu bn conv relu bn conv x``, the authors' block: batch norm is kept, and the last
      ReLU moves into the branch, because after the addition it would not be the identity for negative ``x``.
    - ``pre-norm``: ``s(x) + conv relu bn conv relu bn x``, and ``relu bn`` after the last block, He et al. (2016).
    - ``post-norm``: ``relu bn(s(x) + conv relu bn conv x)``, the same paper, fig. 4(b).
    - ``skipinit``: ``s(x) + alpha * conv relu conv relu x``. No batch norm anywhere; convolutions have biases.
    - ``layerscale``: ``s(x) + scale * conv relu bn conv relu bn x``: ``pre-norm`` with one learned scale a channel.
    - ``fixup``: ``relu(s(x) + m * conv(relu(conv(x + b1) + b2) + b3) + b4)`` with learned numbers ``m`` and ``b``. No
      batch norm anywhere; a scalar bias follows the first convolution and another precedes the output. The first
      convolution of each of the ``L`` blocks starts ``L ** -0.5`` times smaller, the second one and the output at zero.

    ``plain-norm`` and ``deepnorm`` are not defined. Convolutions and the output start He-normal, biases of convolutions
    at zero.

    Args:
        depth: Number of layers with weights, ``6 n + 2``: 20, 32, 44, 56, 110.
        num_classes: Number of outputs.
        residual: Name of the residual formula, a key of ``rezero.layers.residuals.RESIDUALS``.
        width: Channels of the first stage.
        in_channels: Channels of the image.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.

    Raises:
        ValueError: If ``depth`` is not ``6 n + 2``, a size is below 1, the formula is unknown, or it is not defined for
            this family.

    References:
        He et al. (2015), arXiv:1512.03385, sec. 4.2; He et al. (2016), arXiv:1603.05027; De and Smith (2020),
        arXiv:2002.10444; Touvron et al. (2021), arXiv:2103.17239; Zhang et al. (2019), arXiv:1901.09321; Bachlechner
        et al. (2020), arXiv:2003.04887, sec. 4.2 and the authors' code.

    Example:
        >>> ResNet(20)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        *,
        residual: str = "rezero",
        width: int = 16,
        in_channels: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            below = max(8, depth - (depth - 2) % 6)
            raise ValueError(f"depth must be 6 n + 2 with n >= 1: got {depth}; the nearest are {below} and {below + 6}")
        _check(self, residual, num_classes=num_classes, width=width, in_channels=in_channels)
        self.residual = residual
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.input = nn.Sequential(OrderedDict(_stem(residual, in_channels, width, **factory)))
        stages = [width << stage for stage in range(3) for _ in range((depth - 2) // 6)]
        self.blocks = nn.Sequential(
            *(
                _block(residual, before, after, depth=len(stages), **factory)
                for before, after in zip([width, *stages], stages, strict=False)
            )
        )
        self.final = nn.Sequential(OrderedDict(_final(residual, 4 * width, **factory)))
        self.output = nn.Linear(4 * width, num_classes, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew and set norms, gates and scales back to their start."""
        _reset(self)
        if self.residual == "fixup":
            _shrink_by_depth(self, len(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            ``(B, num_classes)``, unnormalised log-probabilities.
        """
        h = self.final(self.blocks(self.input(x)))
        y: Tensor = self.output(F.adaptive_avg_pool2d(h, 1).flatten(1))
        return y


class PreActResNet18(nn.Module):
    r"""Pre-activation residual network with 18 layers for 32 x 32 images.

    A 3 x 3 convolution, four stages of two blocks with ``width``, 2, 4 and 8 times ``width`` channels, batch norm and
    ReLU, global average pooling and a linear output. The first block of each later stage has stride 2. With
    ``h = relu bn x`` the branch is ``f = conv relu bn conv h``; the skip is ``x`` itself, or a 1 x 1 convolution of
    ``h`` where the shape changes. ``plain`` is ``f`` alone, ``residual`` the usual network ``x + f``, ``rezero`` has
    ``alpha`` on ``f`` and keeps the norms, ``skipinit`` has no norm and biases in all convolutions, ``layerscale`` has
    one learned scale a channel on ``f``. The other arms are not defined. Convolutions and the output start He-normal,
    biases of convolutions at zero.

    Args:
        num_classes: Number of outputs.
        residual: Name of the residual formula, a key of ``rezero.layers.residuals.RESIDUALS``.
        width: Channels of the first stage.
        in_channels: Channels of the image.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.

    Raises:
        ValueError: If a size is below 1, the formula is unknown, or it is not defined for this family.

    References:
        He et al. (2016), arXiv:1603.05027, fig. 4(e); Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.2.

    Example:
        >>> PreActResNet18(width=8)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        residual: str = "rezero",
        width: int = 64,
        in_channels: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(self, residual, num_classes=num_classes, width=width, in_channels=in_channels)
        self.residual = residual
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.input = _conv(in_channels, width, bias=residual == "skipinit", **factory)
        stages = [width << stage for stage in range(4) for _ in range(2)]
        self.blocks = nn.Sequential(
            *(
                _pre_activation_block(residual, before, after, depth=len(stages), **factory)
                for before, after in zip([width, *stages], stages, strict=False)
            )
        )
        self.final = nn.Sequential(OrderedDict(_activation("", 8 * width, norm=residual != "skipinit", **factory)))
        self.output = nn.Linear(8 * width, num_classes, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew and set norms, gates and scales back to their start."""
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            ``(B, num_classes)``, unnormalised log-probabilities.
        """
        h = self.final(self.blocks(self.input(x)))
        y: Tensor = self.output(F.adaptive_avg_pool2d(h, 1).flatten(1))
        return y


def _check(model: nn.Module, residual: str, **sizes: int) -> None:
    check_sizes(**sizes)
    family = type(model).__name__
    if residual in _REFUSED[family]:
        raise ValueError(f"{residual} is not defined for {family}: {_REFUSED[family][residual]}")
    check_residual(residual)


def _reset(model: nn.Module) -> None:
    reset_children(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _shrink_by_depth(model: nn.Module, depth: int) -> None:
    """Start as Fixup does: L ** (-1 / (2 m - 2)) with m = 2 convolutions a branch, the last layers zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("conv1.weight"):
            parameter.mul_(depth**-0.5)
        elif name.endswith("conv2.weight") or name.startswith("output."):
            parameter.zero_()


# Blocks


def _block(residual: str, before: int, after: int, *, depth: int, **factory: Any) -> nn.Module:
    branch = nn.Sequential(OrderedDict(_branch(residual, before, after, **factory)))
    skip = None if before == after else _PadShortcut(before, after)
    block = _join(residual, branch, skip, after, depth=depth, **factory)
    return nn.Sequential(block, nn.ReLU()) if residual in {"residual", "post-norm", "fixup"} else block


def _pre_activation_block(residual: str, before: int, after: int, *, depth: int, **factory: Any) -> nn.Module:
    parts = _branch("skipinit" if residual == "skipinit" else "pre-norm", before, after, **factory)
    if before == after or residual == "plain":
        return _join(residual, nn.Sequential(OrderedDict(parts)), None, after, depth=depth, **factory)
    activation = {name: parts.pop(name) for name in ("norm1", "relu1") if name in parts}
    skip = nn.Conv2d(before, after, 1, 2, bias=residual == "skipinit", **factory)
    addition = _join(residual, nn.Sequential(OrderedDict(parts)), skip, after, depth=depth, **factory)
    return nn.Sequential(OrderedDict(activation | {"addition": addition}))


def _join(
    residual: str, branch: nn.Module, skip: nn.Module | None, channels: int, *, depth: int, **factory: Any
) -> nn.Module:
    match residual:
        case "plain":
            return branch
        case "rezero" | "skipinit":
            gate = Gate(device=factory["device"], dtype=gate_dtype(factory["dtype"]))
            return ReZero(branch, gate=gate) if skip is None else _Transition(branch, skip, gate)
        case "layerscale":
            return Residual(branch, skip=skip, scale=LayerScale(channels, depth=depth, axis=-3, **factory))
        case "post-norm":
            return Residual(branch, skip=skip, post_norm=nn.BatchNorm2d(channels, **factory))
    return Residual(branch, skip=skip)


# Parts


def _stem(residual: str, before: int, after: int, **factory: Any) -> _Parts:
    conv = _conv(before, after, bias=residual == "skipinit", **factory)
    if residual == "fixup":
        return {"conv": conv, "bias": ScalarBias(**factory), "relu": nn.ReLU()}
    return {"conv": conv, **_activation("", after, norm=residual != "skipinit", **factory)}


def _final(residual: str, channels: int, **factory: Any) -> _Parts:
    if residual == "fixup":
        return {"bias": ScalarBias(**factory)}
    return _activation("", channels, norm=True, **factory) if residual in {"pre-norm", "layerscale"} else {}


def _branch(residual: str, before: int, after: int, **factory: Any) -> _Parts:
    norm = residual != "skipinit"
    conv1: _Parts = {"conv1": _conv(before, after, _stride(before, after), bias=not norm, **factory)}
    conv2: _Parts = {"conv2": _conv(after, after, bias=not norm, **factory)}
    if residual == "fixup":
        bias1, bias2, bias3, bias4 = ({f"bias{i}": ScalarBias(**factory)} for i in (1, 2, 3, 4))
        return bias1 | conv1 | bias2 | {"relu": nn.ReLU()} | bias3 | conv2 | {"scale": ScalarScale(**factory)} | bias4
    if residual in {"pre-norm", "layerscale", "skipinit"}:
        first = _activation("1", before, norm=norm, **factory)
        return first | conv1 | _activation("2", after, norm=norm, **factory) | conv2
    parts = conv1 | _activation("1", after, norm=True, **factory) | conv2
    match residual:
        case "post-norm":
            return parts
        case "residual":
            return parts | {"norm2": nn.BatchNorm2d(after, **factory)}
    return parts | _activation("2", after, norm=True, **factory)


def _activation(name: str, channels: int, *, norm: bool, **factory: Any) -> _Parts:
    normed: _Parts = {f"norm{name}": nn.BatchNorm2d(channels, **factory)} if norm else {}
    return normed | {f"relu{name}": nn.ReLU()}


def _conv(before: int, after: int, stride: int = 1, *, bias: bool, **factory: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias, **factory)


def _stride(before: int, after: int) -> int:
    return 1 if before == after else 2


class _PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels, half of them on each side."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        new = after - before
        self.padding = (0, 0, 0, 0, new // 2, new - new // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., ::2, ::2], self.padding)


class _Transition(nn.Module):
    """``y = skip(x) + alpha * branch(x)``: ReZero where the branch changes the shape."""

    def __init__(self, branch: nn.Module, skip: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.skip = skip
        self.branch = branch
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return gated_residual(self.skip(x), self.branch(x), self.gate.scale)
