"""Multi-head attention with the parameters of torch.nn.MultiheadAttention, always fused."""

# B batch, H heads, T query positions, S key positions, D width

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention"]


class Attention(nn.Module):
    r"""Multi-head attention through ``scaled_dot_product_attention``, in training and in evaluation.

    Parameters, their names and their initialisation are those of ``torch.nn.MultiheadAttention`` with equal widths, so
    state dicts are interchangeable. Attention weights are never returned. A query that may attend to no key gets
    zeros, not nan, and passes no gradient.

    Args:
        embed_dim: Width ``D`` of queries, keys, values and output.
        num_heads: Number of heads; divides ``embed_dim``.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether both projections have a bias.
        batch_first: Whether inputs are ``(B, T, D)`` rather than ``(T, B, D)``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``embed_dim`` is not a positive multiple of ``num_heads``.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, sec. 3.2.2.

    Example:
        >>> attention, x = Attention(8, 2, batch_first=True), torch.randn(1, 3, 8)
        >>> attention(x, is_causal=True).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a positive multiple of num_heads: got {embed_dim} and {num_heads}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability from 0 to 1: got {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``torch.nn.MultiheadAttention`` does: Xavier-uniform input projection, zero biases."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend from ``query`` to ``memory``, or to itself.

        Args:
            query: ``(B, T, D)`` if ``batch_first``, else ``(T, B, D)``; or ``(T, D)``.
            memory: Keys and values, laid out as ``query`` with ``S`` positions; None for self-attention.
            attn_mask: ``(T, S)`` or ``(B * H, T, S)``; True forbids, or a float that is added to the scores.
            key_padding_mask: ``(B, S)``, or ``(S,)`` without a batch; True forbids, or a float that is added.
            is_causal: Position ``t`` sees positions up to ``t``. With an ``attn_mask`` this is torch's hint that
                the mask is the causal one.

        Returns:
            The layout and shape of ``query``.

        Raises:
            ValueError: If a mask has the wrong shape or dtype.
        """
        context, silent = self.attend(
            query, memory, attn_mask=attn_mask, key_padding_mask=key_padding_mask, is_causal=is_causal
        )
        return self.project(context, silent)

    def project(self, context: Tensor, silent: Tensor | None) -> Tensor:
        """Return the output projection of what `attend` returns, ``(*, D)``."""
        output: Tensor = self.out_proj(context)
        return output if silent is None else output.masked_fill(silent, 0.0)

    def attend(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Do all but the output projection.

        Args:
            query: As for the call, likewise the others.
            memory: Keys and values.
            attn_mask: Mask of queries and keys.
            key_padding_mask: Mask of keys.
            is_causal: Position ``t`` sees positions up to ``t``.

        Returns:
            What goes into the projection, in the shape of ``query``; and where it must give zeros, because a query may
            attend to no key, ``(*, 1)``, or None where it need not.
        """
        batched = query.ndim == 3
        batch, position = (0, 1) if self.batch_first or not batched else (1, 0)
        if not batched:
            query = query.unsqueeze(0)
            memory = None if memory is None else memory.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = (self._split_heads(part, batch, position) for part in self._project(query, memory))
        shape = q.shape[0], self.num_heads, q.shape[2], k.shape[2]
        mask, dead = _merge_masks(attn_mask, key_padding_mask, shape, is_causal=is_causal, dtype=q.dtype)
        context = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal and mask is None,
        )
        if dead is not None and dead.shape[1] > 1:
            context = context.masked_fill(dead, 0.0)
        merged = (context.permute(0, 2, 1, 3) if batch == 0 else context.permute(2, 0, 1, 3)).flatten(2)
        if not batched:
            merged = merged.squeeze(0)
        if dead is None:
            return merged, None
        silent = dead.all(1)  # (B or 1, T or 1, 1)
        silent = silent if batch == 0 else silent.transpose(0, 1)
        return merged, silent if batched else silent.squeeze(0)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout:g}, batch_first={self.batch_first}"

    def _project(self, query: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if memory is None:
            return F.linear(query, weight, bias).chunk(3, dim=-1)
        q_bias, kv_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
        return (F.linear(query, weight[:dim], q_bias), *F.linear(memory, weight[dim:], kv_bias).chunk(2, dim=-1))

    def _split_heads(self, x: Tensor, batch: int, position: int) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.permute(batch, 2, position, 3)


def _merge_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    shape: tuple[int, int, int, int],
    *,
    is_causal: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """Join the masks into one that broadcasts to ``(B, H, T, S)``, and mark the queries that see no key."""
    batch, heads, queries, keys = shape
    masks: list[Tensor] = []
    if attn_mask is not None:
        if attn_mask.shape == (queries, keys):
            masks.append(attn_mask.view(1, 1, queries, keys))
        elif attn_mask.shape == (batch * heads, queries, keys):
            masks.append(attn_mask.view(shape))
        else:
            either = f"{(queries, keys)} or {(batch * heads, queries, keys)}"
            raise ValueError(f"attention mask: expected shape {either}, got {tuple(attn_mask.shape)}")
    if key_padding_mask is not None:
        if key_padding_mask.shape != (batch, keys):
            raise ValueError(f"key padding mask: expected shape {(batch, keys)}, got {tuple(key_padding_mask.shape)}")
        masks.append(key_padding_mask.view(batch, 1, 1, keys))
    if not masks or (is_causal and attn_mask is not None and key_padding_mask is None):
        return None, None
    for mask in masks:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(
                f"masks must be boolean (True forbids) or floating (added to the scores): got {mask.dtype}"
            )
    if is_causal and attn_mask is None:
        future = torch.ones(queries, keys, dtype=torch.bool, device=masks[0].device).triu(1)
        masks.append(future.view(1, 1, queries, keys))
    # A query that sees no key is let see them all, so that no backend divides zero by zero: forward erases its output.
    if all(mask.dtype == torch.bool for mask in masks):
        forbidden = reduce(torch.logical_or, masks)
        dead = forbidden.all(-1, keepdim=True)
        return forbidden.logical_not() | dead, dead
    scores = reduce(torch.add, (_as_scores(mask, dtype) for mask in masks))
    dead = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(dead, 0.0), dead


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
