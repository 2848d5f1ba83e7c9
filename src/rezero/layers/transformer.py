"""Transformer layers with the signatures of torch.nn, gated additions and no norms."""

# B batch, T target positions, S source positions, D width

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.branch import add_branch, add_linear, add_mlp, is_plain
from rezero.gate import Gate, gate_dtype
from rezero.layers.attention import Attention

__all__ = ["TransformerDecoderLayer", "TransformerEncoderLayer"]

_Activation = str | Callable[[Tensor], Tensor]


class TransformerEncoderLayer(nn.Module):
    r"""Self-attention and feed-forward, each added through a gate that starts at zero, without LayerNorm.

    ``x = x + alpha * dropout(self_attention(x))``, then ``x = x + alpha * dropout(feed_forward(x))``. The arguments,
    the masks and the state-dict keys are those of ``torch.nn.TransformerEncoderLayer``, without its norms and with
    ``gates.*.alpha``. ``nn.TransformerEncoder`` deep-copies one layer, so its layers start equal and their gates all
    get the same gradient. To start them apart, call ``reset_parameters`` on each, as below;
    ``enable_nested_tensor=False`` silences torch's remark that it has no fused path for layers other than its own.

    Args:
        d_model: Width ``D``.
        nhead: Number of attention heads.
        dim_feedforward: Inner width of the feed-forward branch.
        dropout: Probability of dropping an entry: attention weights, the inner activation, and both branches.
        activation: ``"relu"``, ``"gelu"`` or a callable.
        layer_norm_eps: Accepted for torch's signature and unused: there is no norm.
        batch_first: Whether inputs are ``(B, T, D)`` rather than ``(T, B, D)``.
        norm_first: Accepted for torch's signature and unused: there is no norm.
        bias: Whether the linear layers have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.
        share: ``"sublayer"`` for a gate a branch, ``"layer"`` for one gate that both branches share, as in the paper.
        init_value: Start of every ``alpha`` (dimensionless).

    Raises:
        ValueError: If an argument is out of range or the activation is unknown.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 5 (``share="layer"``).

    Example:
        >>> encoder = nn.TransformerEncoder(
        ...     TransformerEncoderLayer(16, 2, batch_first=True), num_layers=3, enable_nested_tensor=False)
        >>> for layer in encoder.layers:
        ...     layer.reset_parameters()
        >>> x = torch.randn(2, 5, 16)
        >>> torch.equal(encoder(x), x)
        True
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: _Activation = F.relu,
        layer_norm_eps: float = 1e-5,  # noqa: ARG002 - torch's signature
        batch_first: bool = False,
        norm_first: bool = False,  # noqa: ARG002 - torch's signature
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        share: Literal["sublayer", "layer"] = "sublayer",
        init_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias, device=device, dtype=dtype)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = _resolve_activation(activation)
        self.gates = nn.ModuleList(_build_gates(2, share=share, init_value=init_value, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw all weights anew and set the gates back to their start."""
        _reset(self.self_attn, self.linear1, self.linear2, *self.gates)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Pass a sequence through the layer.

        Args:
            src: ``(B, T, D)`` if ``batch_first``, else ``(T, B, D)``; or ``(T, D)``.
            src_mask: ``(T, T)`` or ``(B * nhead, T, T)``; True forbids, or a float that is added to the scores.
            src_key_padding_mask: ``(B, T)``; True forbids, or a float that is added. A row that is padded throughout
                gets nothing from attention.
            is_causal: Apply a causal mask; with ``src_mask`` a hint that it is the causal one.

        Returns:
            The shape of ``src``.
        """
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        x = _add_attention(src, self.self_attn, None, masks, self.dropout1, _scale(self.gates, 0))
        return _add_feed_forward(x, self, self.dropout2, _scale(self.gates, 1))


class TransformerDecoderLayer(nn.Module):
    r"""Self-attention, cross-attention and feed-forward, each added through a gate that starts at zero.

    The arguments, the masks and the state-dict keys are those of ``torch.nn.TransformerDecoderLayer``, without its
    norms and with ``gates.*.alpha``. What `TransformerEncoderLayer` says of copies and arguments holds here too.

    Args:
        d_model: Width ``D``.
        nhead: Number of attention heads.
        dim_feedforward: Inner width of the feed-forward branch.
        dropout: Probability of dropping an entry: attention weights, the inner activation, and the three branches.
        activation: ``"relu"``, ``"gelu"`` or a callable.
        layer_norm_eps: Accepted for torch's signature and unused: there is no norm.
        batch_first: Whether inputs are ``(B, T, D)`` rather than ``(T, B, D)``.
        norm_first: Accepted for torch's signature and unused: there is no norm.
        bias: Whether the linear layers have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.
        share: ``"sublayer"`` for a gate a branch, ``"layer"`` for one gate that the three branches share.
        init_value: Start of every ``alpha`` (dimensionless).

    Raises:
        ValueError: If an argument is out of range or the activation is unknown.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 5.

    Example:
        >>> layer = TransformerDecoderLayer(16, 2, batch_first=True)
        >>> target, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
        >>> torch.equal(layer(target, memory, tgt_is_causal=True), target)
        True
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: _Activation = F.relu,
        layer_norm_eps: float = 1e-5,  # noqa: ARG002 - torch's signature
        batch_first: bool = False,
        norm_first: bool = False,  # noqa: ARG002 - torch's signature
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        share: Literal["sublayer", "layer"] = "sublayer",
        init_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self.multihead_attn = Attention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias, device=device, dtype=dtype)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)
        self.activation = _resolve_activation(activation)
        self.gates = nn.ModuleList(_build_gates(3, share=share, init_value=init_value, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw all weights anew and set the gates back to their start."""
        _reset(self.self_attn, self.multihead_attn, self.linear1, self.linear2, *self.gates)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Pass a target sequence and the encoder's output through the layer.

        Args:
            tgt: ``(B, T, D)`` if ``batch_first``, else ``(T, B, D)``; or ``(T, D)``.
            memory: The encoder's output, laid out as ``tgt`` with ``S`` positions.
            tgt_mask: ``(T, T)`` or ``(B * nhead, T, T)``; True forbids, or a float that is added to the scores.
            memory_mask: ``(T, S)`` or ``(B * nhead, T, S)``, likewise.
            tgt_key_padding_mask: ``(B, T)``; True forbids, or a float that is added.
            memory_key_padding_mask: ``(B, S)``, likewise.
            tgt_is_causal: Apply a causal mask to the target; with ``tgt_mask`` a hint that it is the causal one.
            memory_is_causal: The same for the memory.

        Returns:
            The shape of ``tgt``.
        """
        masks = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask, "is_causal": tgt_is_causal}
        x = _add_attention(tgt, self.self_attn, None, masks, self.dropout1, _scale(self.gates, 0))
        masks = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask, "is_causal": memory_is_causal}
        x = _add_attention(x, self.multihead_attn, memory, masks, self.dropout2, _scale(self.gates, 1))
        return _add_feed_forward(x, self, self.dropout3, _scale(self.gates, 2))


def _add_attention(
    x: Tensor, attention: Attention, memory: Tensor | None, masks: dict[str, Any], dropout: nn.Module, alpha: Tensor
) -> Tensor:
    """Add attention to its skip; its output projection is the end of the branch where no query is without a key."""
    if type(attention) is not Attention or not is_plain(attention):
        return add_branch(x, attention(x, memory, **masks), dropout, alpha)
    context, silent = attention.attend(x, memory, **masks)
    if silent is None:
        return add_linear(x, context, attention.out_proj, dropout, alpha)
    return add_branch(x, attention.project(context, silent), dropout, alpha)


def _add_feed_forward(
    x: Tensor, layer: TransformerEncoderLayer | TransformerDecoderLayer, dropout: nn.Module, alpha: Tensor
) -> Tensor:
    y = add_mlp(x, layer.linear1, layer.activation, layer.linear2, (layer.dropout, dropout), alpha)
    if y is not None:
        return y
    hidden = layer.dropout(layer.activation(layer.linear1(x)))
    return add_linear(x, hidden, layer.linear2, dropout, alpha)


def _resolve_activation(activation: _Activation) -> Callable[[Tensor], Tensor]:
    named: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
    if callable(activation):
        return activation
    if activation not in named:
        raise ValueError(f"activation must be 'relu', 'gelu' or a callable: got {activation!r}")
    return named[activation]


def _build_gates(
    branches: int,
    *,
    share: str,
    init_value: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> list[Gate]:
    """Build one gate a branch, or a single one for all: a shared alpha is in the state dict once."""
    if share not in ("sublayer", "layer"):
        raise ValueError(f"share must be 'sublayer' or 'layer': got {share!r}")
    count = branches if share == "sublayer" else 1
    gates = [Gate(init_value=init_value, device=device, dtype=gate_dtype(dtype)) for _ in range(count)]
    for gate in gates:
        gate.branches = branches // count
    return gates


def _scale(gates: nn.ModuleList, branch: int) -> Tensor:
    return cast(Gate, gates[branch % len(gates)]).scale


def _reset(*parts: Attention | nn.Linear | Gate) -> None:
    for part in parts:
        part.reset_parameters()
