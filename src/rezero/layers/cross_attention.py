"""Gated cross-attention, through which a trained model comes to read something it was not trained on."""

# B batch, H heads, T positions, M positions of the context, D width, C width of the context

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.branch import add_branch, add_linear, is_plain
from rezero.kernels.fusing import is_autocast
from rezero.layers.arguments import Rebuildable, remembers
from rezero.layers.feed_forward import Activation, build_feed_forward
from rezero.layers.network import (
    build_gate,
    check_dropout,
    check_ff_mult,
    check_heads,
    check_input,
    check_sizes,
    reset_xavier,
)
from rezero.residual import ReZero

__all__ = ["CrossAttention", "GatedCrossAttention"]

KeysValues = tuple[Tensor, Tensor]


class GatedCrossAttention(Rebuildable, nn.Module):
    r"""Cross-attention to a context and feed-forward, each added through a gate that starts at zero.

    ``x = x + g(alpha) * attention(norm(x), context)``, then ``x = x + g(alpha) * feed_forward(norm(x))``, where ``g``
    is tanh or the identity, each branch has an ``alpha`` of its own and
    ``feed_forward(h) = W2 activation(W1 h)``. Put between the layers of a trained model, whose output it leaves bitwise
    as it is until it learns. The context is taken as it comes: end what makes it with a norm, as `PerceiverResampler`
    does.

    A position that may see nothing of the context gets exactly zero from the attention, before the gate and whatever
    the biases, and passes no gradient through it.

    Args:
        dim: Width ``D``.
        context_dim: Width ``C`` of the context; None for ``dim``.
        num_heads: Number of heads ``H``; divides ``dim``. Flamingo's heads are 128 wide.
        ff_mult: Width of the feed-forward branch inside, in units of ``dim``; 0 leaves the branch and its gate out.
        gate: ``"tanh"`` for ``g = tanh``, which keeps the scale below 1, as in Flamingo; ``"linear"`` for ``alpha``
            itself.
        activation: ``"squared_relu"`` as in Flamingo, ``"gelu"``, ``"relu"`` or ``"silu"``.
        qk_norm: Whether an RMSNorm is taken over each head's queries and keys, which bounds the scores; no part of
            Flamingo.
        dropout: Probability of dropping an entry in training: attention weights, inner activation, both branches.
        bias: Whether the linear maps have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.

    Raises:
        ValueError: If an argument is out of range or unknown.

    References:
        Alayrac et al. (2022), arXiv:2204.14198, sec. 2.2, fig. 4 (the formulas; where the norms are it doesn't show)
        and app. A.1.4 (activation, widths); Dehghani et al. (2023), arXiv:2302.05442, sec. 2 (norms of queries and
        keys, there LayerNorms).

    Example:
        >>> layer = GatedCrossAttention(16, 12, num_heads=2)
        >>> x, context = torch.randn(1, 5, 16), torch.randn(1, 3, 12)
        >>> torch.equal(layer(x, context), x)
        True
        >>> kept = layer.keys_values(context)  # once for many steps
        >>> torch.equal(layer(x[:, -1:], kept=kept), x[:, -1:])
        True
    """

    @remembers
    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        num_heads: int,
        ff_mult: int = 4,
        gate: Literal["tanh", "linear"] = "tanh",
        activation: Activation = "squared_relu",
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_ff_mult(ff_mult)
        self.dim = dim
        self.context_dim = dim if context_dim is None else context_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"dropout": dropout, "bias": bias, **factory}
        self.norm = nn.LayerNorm(dim, **factory)
        self.attention = CrossAttention(dim, self.context_dim, num_heads, qk_norm=qk_norm, **options)
        self.dropout = nn.Dropout(dropout)
        self.gate = build_gate(gate, **factory)
        self.feed_forward: ReZero | None = None
        if ff_mult:
            branch = build_feed_forward(dim, ff_mult * dim, activation=activation, **options)
            self.feed_forward = ReZero(branch, gate=build_gate(gate, **factory), dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights Xavier-uniform, biases zero, and set norms and gates back to their start."""
        reset_xavier(self)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Compute what depends on the context alone, to be given as ``kept`` to every step that has the same one.

        Args:
            context: ``(B, M, C)``.

        Returns:
            Keys and values, each ``(B, H, M, D / H)``.

        Raises:
            TypeError: If the context is no tensor.
            ValueError: If its shape, dtype or device does not fit.
        """
        check_input("context", context, "(B, M, C)", self.context_dim, self.norm.weight)
        return self.attention.keys_values(context)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, *, kept: KeysValues | None = None
    ) -> Tensor:
        """Pass a sequence through the layer.

        Args:
            x: ``(B, T, D)``.
            context: ``(B, M, C)``; not looked at where ``kept`` is given.
            mask: What may be seen, True where it may: ``(B, M)`` for all positions alike, or ``(B, T, M)``; None for
                everything.
            kept: What `keys_values` returned for the context.

        Returns:
            ``(B, T, D)``.

        Raises:
            TypeError: If there is neither a context nor ``kept``, or one is not of its type.
            ValueError: If a shape, dtype or device does not fit.
        """
        check_input("x", x, "(B, T, D)", self.dim, self.norm.weight)
        if kept is not None:
            keys, values = self._check_kept(kept, x)
        elif context is not None:
            check_input("context", context, "(B, M, C)", self.context_dim, self.norm.weight)
            keys, values = self.keys_values(_readable(context, mask))
        else:
            raise TypeError("expected a context, or kept=layer.keys_values(context): got neither")
        if keys.shape[0] != x.shape[0]:  # and not their len(), which torch.export takes for a constant
            whose = "context" if kept is None else "kept"
            raise ValueError(
                f"x and {whose} must have the same batch size: got {x.shape[0]} and {keys.shape[0]}; repeat the "
                "smaller one with repeat_interleave"
            )
        _check_mask(mask, x, keys)
        y = self._add_attention(x, (keys, values), mask)
        return y if self.feed_forward is None else cast(Tensor, self.feed_forward(y))

    def _add_attention(self, x: Tensor, kept: KeysValues, mask: Tensor | None) -> Tensor:
        attention, h = self.attention, self.norm(x)
        if type(attention) is not CrossAttention or not is_plain(attention):
            return add_branch(x, attention(h, kept, mask), self.dropout, self.gate.scale)
        heard, blind = attention.attend(h, kept, mask)
        out = attention.out
        if blind is None or (type(out) is nn.Linear and out.bias is None):  # which maps zeros to zeros
            return add_linear(x, heard, out, self.dropout, self.gate.scale)
        return add_branch(x, attention.project(heard, blind), self.dropout, self.gate.scale)

    def _check_kept(self, kept: KeysValues, x: Tensor) -> KeysValues:
        if not (isinstance(kept, tuple) and len(kept) == 2 and all(isinstance(part, Tensor) for part in kept)):
            raise TypeError(f"kept must be the two tensors that keys_values returns: got {type(kept).__name__}")
        keys, values = kept
        heads = self.attention.num_heads
        if (
            keys.ndim != 4
            or keys.shape != (keys.shape[0], heads, keys.shape[2], self.dim // heads)
            or values.shape != keys.shape
        ):
            raise ValueError(
                f"kept must be two tensors (B, {heads}, M, {self.dim // heads}): got {tuple(keys.shape)} and "
                f"{tuple(values.shape)}"
            )
        for part in kept:
            if part.device != x.device or (part.dtype != x.dtype and not is_autocast(x)):
                raise ValueError(
                    f"kept is {part.dtype} on {part.device}, x is {x.dtype} on {x.device}: call keys_values where and "
                    "in which precision its result is used"
                )
        return keys, values


def _readable(context: Tensor, mask: Tensor | None) -> Tensor:
    """Return a context with zeros where nobody may look: what a batch is padded with may be nan, and 0 * nan is nan."""
    if mask is None or not _fits(mask, context):  # of which the check will tell
        return context
    seen = mask if mask.ndim == 2 else mask.any(1)
    return context.masked_fill(seen.logical_not()[..., None], 0.0)


def _fits(mask: Any, context: Tensor) -> bool:
    return (
        isinstance(mask, Tensor)
        and (mask.dtype, mask.device) == (torch.bool, context.device)
        and mask.ndim in (2, 3)
        and (mask.shape[0], mask.shape[-1]) == context.shape[:2]
    )


class CrossAttention(nn.Module):
    r"""Multi-head attention from one sequence to another, without a skip.

    Args:
        dim: Width ``D`` of queries and output.
        context_dim: Width ``C`` of the context.
        num_heads: Number of heads ``H``; divides ``dim``.
        qk_norm: Whether an RMSNorm is taken over each head's queries and keys.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether the four maps have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, sec. 3.2.2.

    Example:
        >>> attention = CrossAttention(8, 6, 2)
        >>> attention(torch.randn(1, 3, 8), attention.keys_values(torch.randn(1, 5, 6))).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_sizes(context_dim=context_dim)
        check_dropout(dropout)
        self.num_heads = num_heads
        self.dropout = dropout
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Linear(dim, dim, bias=bias, **factory)
        self.key = nn.Linear(context_dim, dim, bias=bias, **factory)
        self.value = nn.Linear(context_dim, dim, bias=bias, **factory)
        self.out = nn.Linear(dim, dim, bias=bias, **factory)
        width = dim // num_heads
        self.query_norm = nn.RMSNorm(width, eps=1e-6, **factory) if qk_norm else None
        self.key_norm = nn.RMSNorm(width, eps=1e-6, **factory) if qk_norm else None

    def forward(self, x: Tensor, kept: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: ``(B, T, D)``.
            kept: What `keys_values` returned.
            mask: True where a position may be seen, ``(B, M)`` or ``(B, T, M)``; None for everywhere.

        Returns:
            ``(B, T, D)``; zeros where nothing may be seen.
        """
        return self.project(*self.attend(x, kept, mask))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return keys and values of a context ``(B, M, C)``, each ``(B, H, M, D / H)``."""
        return self._split(self.key(context), self.key_norm), self._split(self.value(context))

    def attend(self, x: Tensor, kept: KeysValues, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Do all but the output projection.

        Args:
            x: As for the call, likewise the others.
            kept: Keys and values.
            mask: Mask of positions and context.

        Returns:
            What goes into the projection, ``(B, T, D)``; and which positions see nothing, ``(B, T or 1, 1)``, where it
            is zero and the projection must be; None if all see something.
        """
        keys, values = kept
        seen = blind = None
        if mask is not None:
            seen = mask[:, None] if mask.ndim == 3 else mask[:, None, None]  # (B, 1, T or 1, M): all heads see the same
            blind = seen.any(-1, keepdim=True).logical_not()
            # As in the context: kept keys and values were computed without a mask.
            unseen = seen.any(-2).logical_not()[..., None]  # (B, 1, M, 1)
            keys, values = keys.masked_fill(unseen, 0.0), values.masked_fill(unseen, 0.0)
            # A position that sees nothing is let see all, so that no backend divides zero by zero.
            seen, blind = seen | blind, blind.squeeze(1)
        elif not keys.shape[2]:
            blind = torch.ones(x.shape[0], 1, 1, dtype=torch.bool, device=x.device)
        heard = F.scaled_dot_product_attention(
            self._split(self.query(x), self.query_norm),
            keys,
            values,
            attn_mask=seen,
            dropout_p=self.dropout if self.training else 0.0,
        )
        heard = heard.transpose(1, 2).flatten(2)
        return (heard if blind is None else heard.masked_fill(blind, 0.0)), blind

    def project(self, heard: Tensor, blind: Tensor | None) -> Tensor:
        """Return the output projection of what `attend` returns, ``(B, T, D)``."""
        output: Tensor = self.out(heard)
        return output if blind is None else output.masked_fill(blind, 0.0)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"num_heads={self.num_heads}, dropout={self.dropout:g}"

    def _split(self, x: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if norm is None:
            return heads
        normed: Tensor = norm(heads.to(norm.weight.dtype))  # under autocast the weight is the wider one
        return normed.to(heads.dtype)


def _check_mask(mask: Tensor | None, x: Tensor, keys: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean tensor: got {type(mask).__name__}")
    (batch, length), seen = x.shape[:2], keys.shape[2]
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where the context may be seen: got {mask.dtype}")
    if mask.shape != (batch, seen) and mask.shape != (batch, length, seen):
        either = f"{(batch, seen)} or {(batch, length, seen)}"
        raise ValueError(f"mask: expected shape {either}, got {tuple(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, x is on {x.device}: move it with .to()")
