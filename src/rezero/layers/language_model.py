"""A causal Transformer over bytes, one network for each residual formula."""

# B batch, T positions, D width, V size of the vocabulary

import math
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.gate import Gate, gate_dtype
from rezero.layers.decoder import CausalAttention, DecoderLayer, FeedForward
from rezero.layers.kv_cache import KVCache
from rezero.layers.network import check_residual, check_sizes, reset_children
from rezero.layers.positions import rotary_table
from rezero.layers.residuals import Residual, ScalarBias, ScalarScale, residual_block

__all__ = ["LanguageModel"]

_GATED = ("rezero", "skipinit")


class LanguageModel(nn.Module):
    r"""Decoder-only causal Transformer over bytes: ``depth`` layers of causal attention and feed-forward.

    An embedding, ``L = 2 depth`` residual branches, and a linear output without bias that shares no weights with the
    embedding. Each branch ``f`` is joined to its skip by the formula of the arm:

    - ``plain``: ``f(x)``; ``plain-norm``: ``norm(f(x))``; ``residual``: ``x + f(x)`` with no norm at all. The usual
      Transformers are the arms ``post-norm`` and ``pre-norm``.
    - ``post-norm``, ``pre-norm``, ``layerscale``, ``rezero``: as in ``rezero.layers.residuals.RESIDUALS``;
      ``pre-norm`` and ``layerscale`` have one more norm before the output. ``layerscale`` starts by ``depth``.
    - ``skipinit`` replaces batch norm; there is none here, so it is the same network as ``rezero``.
    - ``fixup``: ``x + m * f(x + b) + c`` with a learned number ``m``, ``b`` and ``c`` a branch and no norm. Of the two
      layers on the path of each branch the first one (``value``, ``linear1``) starts ``L ** -0.5`` times smaller and
      the last one (``out``, ``linear2``) at zero, and so does the output.
    - ``deepnorm``: ``norm((2 N) ** 0.25 * x + f(x))`` with ``N = depth``; all four of these layers start with gain
      ``(8 N) ** -0.25``, ``query`` and ``key`` with 1.

    Weights start Xavier-uniform, biases at zero, embeddings normal with standard deviation ``D ** -0.5``; with a gate
    uniform in ``+-1 / D``, which its authors advise for models without norms.

    Args:
        dim: Width ``D``.
        depth: Number of layers, of two branches each.
        num_heads: Number of attention heads; divides ``dim``.
        residual: Name of the residual formula, a key of ``rezero.layers.residuals.RESIDUALS``.
        vocab_size: Number ``V`` of different tokens; 256 for bytes.
        ff_mult: Width of the feed-forward branch inside, in units of ``dim``.
        positions: ``"rotary"`` rotates queries and keys and takes sequences of any length; ``"learned"`` adds an
            embedding of each of ``max_length`` positions.
        max_length: Longest sequence with learned positions; unused with rotary ones.
        dropout: Probability of dropping an entry in training: attention weights, inner activation, both branches.
        embedding_std: Standard deviation of the embeddings at the start; None for the arm's own. An arm without norms
            passes it on to every branch, so there it decides how fast training begins.
        share: ``"sublayer"`` for a gate a branch, ``"layer"`` for one gate that both branches of a layer share, as in
            the paper. Only arms with gates take the latter.
        device: Device of the parameters.
        dtype: Dtype of the parameters; gates are kept at least float32.

    Raises:
        ValueError: If an argument is out of range, or the formula is unknown.

    References:
        Vaswani et al. (2017), arXiv:1706.03762; Su et al. (2021), arXiv:2104.09864 (rotary); Bachlechner et al. (2020),
        arXiv:2003.04887, sec. 5, and the authors' answer in issue 8 of github.com/majumderb/rezero (embeddings);
        Zhang et al. (2019), arXiv:1901.09321 (fixup); Wang et al. (2022), arXiv:2203.00555, fig. 2 (deepnorm).

    Example:
        >>> model = LanguageModel(16, 2, 4)
        >>> model(torch.tensor([list(b"hello")])).shape
        torch.Size([1, 5, 256])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        residual: str = "rezero",
        vocab_size: int = 256,
        ff_mult: int = 4,
        positions: Literal["rotary", "learned"] = "rotary",
        max_length: int = 1024,
        dropout: float = 0.0,
        embedding_std: float | None = None,
        share: Literal["sublayer", "layer"] = "sublayer",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, num_heads=num_heads, vocab_size=vocab_size, ff_mult=ff_mult)
        check_sizes(max_length=max_length)
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads: got {dim} and {num_heads}")
        if positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be 'rotary' or 'learned': got {positions!r}")
        if positions == "rotary" and dim // num_heads % 2:
            raise ValueError(
                f"rotary positions need heads of even width: got dim / num_heads = {dim // num_heads}; choose another "
                "num_heads, or positions='learned'"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability from 0 to 1: got {dropout}")
        if embedding_std is not None and not (math.isfinite(embedding_std) and embedding_std > 0):
            raise ValueError(f"embedding_std must be a finite number above 0, or None: got {embedding_std}")
        check_residual(residual)
        if share not in ("sublayer", "layer"):
            raise ValueError(f"share must be 'sublayer' or 'layer': got {share!r}")
        if share == "layer" and residual not in _GATED:
            raise ValueError(f"share='layer' shares a gate: {residual} has none; choose from {', '.join(_GATED)}")
        self.residual = residual
        self.embedding_std = embedding_std
        self.head_dim = dim // num_heads
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, dim, **factory)
        self.positions = nn.Embedding(max_length, dim, **factory) if positions == "learned" else None
        branch: dict[str, Any] = {"dropout": dropout, "gains": _gains(residual, depth), **factory}
        layers = (
            _layer(
                residual,
                CausalAttention(dim, num_heads, **branch),
                FeedForward(dim, ff_mult * dim, **branch),
                dim,
                depth=depth,
                share=share,
                **factory,
            )
            for _ in range(depth)
        )
        self.layers = nn.ModuleList(layers)
        normed = residual in ("pre-norm", "layerscale")
        self.norm = nn.LayerNorm(dim, **factory) if normed else nn.Identity()
        self.output = nn.Linear(dim, vocab_size, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew and set norms, gates and scales back to their start."""
        reset_children(self)
        dim = self.embedding.embedding_dim
        for embedding in (self.embedding, self.positions):
            if embedding is None:
                continue
            if self.embedding_std is None and self.residual in _GATED:
                nn.init.uniform_(embedding.weight, -1 / dim, 1 / dim)
            else:
                nn.init.normal_(embedding.weight, std=self.embedding_std or dim**-0.5)
        nn.init.xavier_uniform_(self.output.weight, gain=0.0 if self.residual == "fixup" else 1.0)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Predict the token after each position.

        Args:
            tokens: ``(B, T)``, integers from 0 to ``V - 1``, of any integer dtype.
            cache: What `new_cache` returned, to continue the sequences that it holds; the new positions are added to
                it. None to start afresh and keep nothing.

        Returns:
            Logits, ``(B, T, V)``.

        Raises:
            TypeError: If ``tokens`` are not integers.
            ValueError: If ``tokens`` have another shape, the sequence is too long for learned positions, or the cache
                belongs to another batch, or to a model with other layers, heads, dtype or device.
            IndexError: If a token is negative or not below ``V``; on a GPU a device-side assertion instead.
        """
        _check_tokens(tokens)
        start = 0 if cache is None else self._check_cache(cache, tokens)
        length = tokens.shape[1]
        x = self.embedding(tokens.long())
        if self.positions is None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            table = rotary_table(length, self.head_dim, start=start, device=x.device, dtype=dtype)
        else:
            self._check_length(start + length)
            x = x + self.positions(torch.arange(start, start + length, device=x.device))
            table = None
        for i, layer in enumerate(self.layers):
            x = layer(x, table, None if cache is None else cache.layers[i])
        logits: Tensor = self.output(self.norm(x))
        return logits

    def new_cache(self) -> KVCache:
        """Make an empty cache for this model.

        Returns:
            The cache, to be passed to every call that continues the same sequences.
        """
        return KVCache(len(self.layers))

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue sequences token by token, in evaluation mode and without gradients.

        Args:
            prompt: ``(B, T)``, at least one token each.
            max_new_tokens: How many tokens to add.
            temperature: Divides the logits (dimensionless); 0 always takes the likeliest token.
            top_k: Sample from that many of the likeliest tokens; None for all.
            generator: Source of randomness, on the model's device; None for torch's own.

        Returns:
            Prompt and continuation, ``(B, T + max_new_tokens)``, int64.

        Raises:
            TypeError: If the prompt is not made of integers, or ``max_new_tokens`` or ``top_k`` is no whole number.
            ValueError: If an argument is out of range or has another shape, or the result is too long for learned
                positions.
            IndexError: If a token of the prompt is not in the vocabulary, as in `forward`.

        Example:
            >>> model = LanguageModel(16, 2, 4)
            >>> model.generate(torch.tensor([list(b"hello")]), 3).shape
            torch.Size([1, 8])
        """
        _check_tokens(prompt)
        if prompt.shape[1] < 1:
            raise ValueError("the prompt must have at least one token: got none; begin with a newline, for example")
        _check_whole("max_new_tokens", max_new_tokens, least=0)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be a finite number, 0 or more: got {temperature}")
        if top_k is not None:
            _check_whole("top_k", top_k, least=1, otherwise=", or None for all tokens")
        self._check_length(prompt.shape[1] + max_new_tokens - 1)  # the last token is not read again
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            tokens, cache, new = prompt.long(), self.new_cache(), prompt
            for _ in range(max_new_tokens):
                new = _sample(self(new, cache)[:, -1], temperature, top_k, generator)
                tokens = torch.cat((tokens, new), dim=1)
        finally:
            for module, training in modes.items():
                module.training = training
        return tokens

    def _check_length(self, length: int) -> None:
        if self.positions is not None and length > self.positions.num_embeddings:
            raise ValueError(
                f"learned positions end at max_length = {self.positions.num_embeddings}: got a sequence of {length}; "
                "shorten it, or build the model with a larger max_length or with positions='rotary'"
            )

    def _check_cache(self, cache: KVCache, tokens: Tensor) -> int:
        """Return the position at which a cache is continued."""
        if len(cache.layers) != len(self.layers):
            raise ValueError(
                f"the cache is for {len(cache.layers)} layers, the model has {len(self.layers)}: use model.new_cache()"
            )
        if cache.batch not in (None, tokens.shape[0]):
            raise ValueError(
                f"the cache holds {cache.batch} sequences, got {tokens.shape[0]}: continue the same ones, or begin "
                "with model.new_cache()"
            )
        return cache.length


class _NormAfter(nn.Module):
    """``norm(f(x))``, without a skip."""

    def __init__(self, branch: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        y: Tensor = self.norm(self.branch(x, *args))
        return y


def _check_tokens(tokens: Tensor) -> None:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must be integers, such as torch.int64 or torch.uint8: got {tokens.dtype}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens: expected shape (batch, positions), got {tuple(tokens.shape)}")


def _check_whole(name: str, value: int, *, least: int, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number{otherwise}: got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{otherwise}: got {value}")


def _gains(residual: str, depth: int) -> tuple[float, float]:
    """Return the gains of the first and the last layer on a branch's path."""
    match residual:
        case "fixup":  # L ** (-1 / (2 m - 2)) with m = 2 layers a branch
            return (2 * depth) ** -0.5, 0.0
        case "deepnorm":
            return (8 * depth) ** -0.25, (8 * depth) ** -0.25
    return 1.0, 1.0


def _layer(
    residual: str, attention: nn.Module, feed_forward: nn.Module, dim: int, *, depth: int, share: str, **factory: Any
) -> DecoderLayer:
    if share == "layer":
        gate = Gate(device=factory["device"], dtype=gate_dtype(factory["dtype"]))
        return DecoderLayer(attention, feed_forward, gate)
    blocks = [_block(residual, branch, dim, depth=depth, **factory) for branch in (attention, feed_forward)]
    return DecoderLayer(blocks[0], blocks[1])


def _block(residual: str, branch: nn.Module, dim: int, *, depth: int, **factory: Any) -> nn.Module:
    match residual:
        case "plain-norm":
            return _NormAfter(branch, nn.LayerNorm(dim, **factory))
        case "fixup":
            scale = nn.Sequential(ScalarScale(**factory), ScalarBias(**factory))
            return Residual(branch, pre_norm=ScalarBias(**factory), scale=scale)
        case "layerscale":  # CaiT's depth counts layers of two branches
            return residual_block(residual, branch, dim, depth=depth, **factory)
    return residual_block(residual, branch, dim, depth=2 * depth, **factory)


def _sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw a token a sequence, ``(B, V) -> (B, 1)``."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    values, indices = logits.float().topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    # The largest logit is subtracted first and the divisor bounded, so that no temperature overflows.
    probabilities = ((values - values[:, :1]) / max(temperature, 1e-30)).softmax(-1)
    return indices.gather(-1, torch.multinomial(probabilities, 1, generator=generator))
