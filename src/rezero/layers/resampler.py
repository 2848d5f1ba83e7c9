"""The Perceiver resampler, which turns any number of vectors into a fixed number."""

# B batch, S inputs, L latents, D width

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.layers.arguments import Rebuildable, remembers
from rezero.layers.cross_attention import CrossAttention
from rezero.layers.feed_forward import Activation, build_feed_forward
from rezero.layers.network import check_ff_mult, check_input, check_sizes, reset_xavier

__all__ = ["PerceiverResampler"]


class PerceiverResampler(Rebuildable, nn.Module):
    r"""Learned latents that read a sequence of any length: ``(*, S, D) -> (*, L, D)``.

    Each layer is ``z = z + attention(norm(z), concat(norm(x), norm(z)))``, then ``z = z + feed_forward(norm(z))``: keys
    and values come from the inputs ``x`` and from the latents ``z``, queries from the latents alone. Its residuals are
    plain ones, **without gates**, as in Flamingo: it stands before a `GatedCrossAttention`, whose gates already keep
    all of it out at the start. A LayerNorm ends it. The inputs' order plays no part: add embeddings of time or place to
    them yourself.

    Args:
        dim: Width ``D`` of inputs and latents.
        depth: Number of layers; 6 in Flamingo.
        num_latents: Number ``L`` of latents, and of vectors that come out; 64 in Flamingo.
        num_heads: Number of heads; divides ``dim``. Flamingo's heads are 96 wide.
        ff_mult: Width of the feed-forward branches inside, in units of ``dim``; 0 leaves them out.
        activation: ``"squared_relu"`` as in Flamingo, ``"gelu"``, ``"relu"`` or ``"silu"``.
        qk_norm: Whether an RMSNorm is taken over each head's queries and keys.
        dropout: Probability of dropping an entry in training: attention weights, inner activation, branches.
        bias: Whether the linear maps have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range or unknown.

    References:
        Alayrac et al. (2022), arXiv:2204.14198, sec. 2.1 and app. A.1.1, fig. 5 (the formulas; it shows no norms) and
        A.1.4 (activation, widths).

    Example:
        >>> resampler = PerceiverResampler(16, depth=2, num_latents=4, num_heads=2)
        >>> resampler(torch.randn(3, 50, 16)).shape
        torch.Size([3, 4, 16])
    """

    @remembers
    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        num_latents: int,
        num_heads: int,
        ff_mult: int = 4,
        activation: Activation = "squared_relu",
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, num_latents=num_latents)
        check_ff_mult(ff_mult)
        self.dim = dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"qk_norm": qk_norm, "dropout": dropout, "bias": bias, **factory}
        layers = (_Layer(dim, num_heads, ff_mult, activation=activation, **options) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim, **factory)
        self.latents = nn.Parameter(torch.empty(num_latents, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights Xavier-uniform, biases zero, and the latents as embeddings, with standard deviation 1."""
        reset_xavier(self)
        nn.init.normal_(self.latents)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read a sequence.

        Args:
            x: ``(*, S, D)``.
            mask: ``(*, S)``, True at the inputs that may be seen; None for all. The latents see each other in any
                case.

        Returns:
            ``(*, L, D)``.

        Raises:
            TypeError: If ``x`` or the mask is no tensor.
            ValueError: If a shape, dtype or device does not fit.
        """
        check_input("x", x, "(*, S, D)", self.dim, self.latents)
        outer, length = x.shape[:-2], x.shape[-2]
        if mask is not None and not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a boolean tensor: got {type(mask).__name__}")
        if mask is not None and mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}, x is on {x.device}: move it with .to()")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:-1]):
            raise ValueError(
                f"mask must be boolean {tuple(x.shape[:-1])}, True at the inputs that may be seen: got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        batch = math.prod(outer)
        x = x.reshape(batch, length, self.dim)
        if mask is not None:
            mask = mask.reshape(batch, length)
            x = x.masked_fill(mask.logical_not()[..., None], 0.0)  # padding may be nan, and 0 * nan is nan
            mask = F.pad(mask, (0, len(self.latents)), value=True)
        z = self.latents.expand(batch, -1, -1)
        for layer in self.layers:
            z = layer(z, x, mask)
        y: Tensor = self.norm(z)
        return y.reshape(*outer, *y.shape[1:])


class _Layer(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        ff_mult: int,
        *,
        activation: str,
        qk_norm: bool,
        dropout: float,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"dropout": dropout, "bias": bias, **factory}
        self.attention = CrossAttention(dim, dim, num_heads, qk_norm=qk_norm, **options)
        self.norm = nn.LayerNorm(dim, **factory)
        self.input_norm = nn.LayerNorm(dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward: nn.Sequential | None = None
        if ff_mult:
            self.feed_forward = build_feed_forward(dim, ff_mult * dim, activation=activation, **options)

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm(z)
        kept = self.attention.keys_values(torch.cat((self.input_norm(x), h), dim=1))
        z = z + self.dropout(self.attention(h, kept, mask))
        return z if self.feed_forward is None else z + self.dropout(self.feed_forward(z))
