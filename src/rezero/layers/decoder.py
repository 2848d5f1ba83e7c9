"""The branches of a causal Transformer, and the layer that joins them."""

# B batch, T positions, S positions with the cached ones, H heads, D width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.functional import gated_residual
from rezero.gate import Gate
from rezero.layers.kv_cache import LayerCache
from rezero.layers.positions import rotate

__all__ = ["CausalAttention", "DecoderLayer", "FeedForward"]


class CausalAttention(nn.Module):
    r"""Self-attention in which position ``t`` sees the positions up to ``t``.

    Args:
        dim: Width ``D``.
        num_heads: Number of heads ``H``; divides ``dim``.
        dropout: Probability of dropping an entry in training: attention weights and output.
        gains: Gains of the Xavier-uniform start of ``value`` and ``out``, the two layers on the path of the signal.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, sec. 3.2.

    Example:
        >>> CausalAttention(8, 2)(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        gains: tuple[float, float] = (1.0, 1.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.gains = gains
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, device=device, dtype=dtype) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights Xavier-uniform with their gains; biases are zero."""
        for layer, gain in zip((self.query, self.key, self.value, self.out), (1.0, 1.0, *self.gains), strict=True):
            _xavier_(layer, gain)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend to the positions so far.

        Args:
            x: ``(B, T, D)``.
            table: Cosine and sine of the ``T`` positions, to rotate queries and keys by; None leaves them.
            cache: Keys and values of earlier positions, to which those of ``x`` are added; None if there are none.

        Returns:
            ``(B, T, D)``.
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        seen = 0
        if cache is not None:
            k, v = cache.extend(k, v)
            seen = k.shape[2] - q.shape[2]
        context = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_causal_mask(q, k) if seen else None,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=seen == 0,
        )
        return F.dropout(self.out(context.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    r"""Feed-forward branch: ``W2 gelu(W1 x + b1) + b2``, position by position.

    Args:
        dim: Width ``D`` of input and output.
        hidden: Width between the two layers.
        dropout: Probability of dropping an entry in training: hidden activation and output.
        gains: Gains of the Xavier-uniform start of ``W1`` and ``W2``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, sec. 3.3; Hendrycks and Gimpel (2016), arXiv:1606.08415 (GELU).

    Example:
        >>> FeedForward(8, 32)(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        gains: tuple[float, float] = (1.0, 1.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.gains = gains
        self.linear1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.linear2 = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights Xavier-uniform with their gains; biases are zero."""
        for layer, gain in zip((self.linear1, self.linear2), self.gains, strict=True):
            _xavier_(layer, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch.

        Args:
            x: ``(*, D)``.

        Returns:
            ``(*, D)``.
        """
        hidden = F.dropout(F.gelu(self.linear1(x)), self.dropout, self.training)
        return F.dropout(self.linear2(hidden), self.dropout, self.training)


class DecoderLayer(nn.Module):
    r"""Causal attention, then feed-forward.

    Args:
        attention: Block around `CausalAttention`, or with ``gate`` its bare branch.
        feed_forward: Block around `FeedForward`, or with ``gate`` its bare branch.
        gate: One gate that scales both branches, as in the paper, and whose ``branches`` become 2; None if the blocks
            do their own additions.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 5 (one gate).

    Example:
        >>> layer, x = DecoderLayer(CausalAttention(8, 2), FeedForward(8, 16), Gate()), torch.randn(1, 3, 8)
        >>> torch.equal(layer(x), x)
        True
    """

    def __init__(self, attention: nn.Module, feed_forward: nn.Module, gate: Gate | None = None) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.gate = gate
        if gate is not None:
            gate.branches = 2

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None) -> Tensor:
        """Pass a sequence through the layer.

        Args:
            x: ``(B, T, D)``.
            table: Cosine and sine of the positions, for the attention.
            cache: Keys and values of earlier positions, for the attention.

        Returns:
            ``(B, T, D)``.
        """
        if self.gate is None:
            y: Tensor = self.feed_forward(self.attention(x, table, cache))
            return y
        x = gated_residual(x, self.attention(x, table, cache), self.gate.scale)
        return gated_residual(x, self.feed_forward(x), self.gate.scale)


def _xavier_(layer: nn.Linear, gain: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """Let the last ``T`` of ``S`` positions see themselves and what is before them."""
    queries, keys = q.shape[2], k.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
