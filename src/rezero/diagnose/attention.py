"""How widely attention is spread: the entropy of its weights, wherever a model computes them."""

# T query positions, S key positions; axes before them are batch and heads

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Entropy", "WatchesAttention", "entropy_of"]

_OF_MODULE = inspect.signature(F.multi_head_attention_forward)
_OF_KERNEL = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # a builtin, without a signature


@dataclass(frozen=True)
class Entropy:
    """The mean entropy of attention weights.

    Attributes:
        nats: Over queries, heads and examples; queries that may see no key are left out.
        most: What it would be if each query saw all keys that it may see alike: ``log S`` without a mask (nats).
    """

    nats: float
    most: float


class WatchesAttention(TorchFunctionMode):
    """Notes the entropy of all attention that passes through torch's own functions while the mode is on.

    These are ``scaled_dot_product_attention`` and what ``nn.MultiheadAttention`` calls. The weights are computed a
    second time, in full, beside what the model does.

    Attributes:
        seen: One entry a call, in the order of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Entropy] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self._note(*_kernel_weights(**dict(zip(_OF_KERNEL, args, strict=False)), **kwargs))
        elif function is F.multi_head_attention_forward:
            self._note(*_module_weights(_OF_MODULE.bind(*args, **kwargs).arguments))
        return function(*args, **kwargs)

    def _note(self, weights: Tensor, alike: Tensor) -> None:
        self.seen.append(entropy_of(weights, alike > 0))


@torch.no_grad()
def _kernel_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return the weights ``(*, T, S)``, and those of queries of zeros, in which only the mask counts."""
    del value, dropout_p
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(wide)
    units = torch.eye(key.shape[-2], dtype=wide, device=key.device).expand(*key.shape[:-1], -1)
    weights, alike = (
        F.scaled_dot_product_attention(each, key, units, attn_mask=attn_mask, **options)
        for each in (query, torch.zeros_like(query))
    )
    return weights, alike


@torch.no_grad()
def _module_weights(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the same of ``nn.MultiheadAttention``, whose queries are zeros where its projection is."""
    wide = torch.promote_types(arguments["query"].dtype, torch.float32)
    given: dict[str, Any] = {
        name: each.to(wide) if isinstance(each, Tensor) and each.is_floating_point() else each
        for name, each in arguments.items()
    }
    asked: dict[str, Any] = given | {"need_weights": True, "average_attn_weights": False, "training": False}
    silent: dict[str, Any] = {
        name: torch.zeros_like(each)
        for name, each in given.items()
        if name.startswith(("in_proj", "q_proj")) and isinstance(each, Tensor)
    }
    found: list[Any] = [F.multi_head_attention_forward(**each)[1] for each in (asked, asked | silent)]
    return found[0], found[1]


def entropy_of(weights: Tensor, seen: Tensor) -> Entropy:
    """Return the mean entropy of attention weights.

    Args:
        weights: Weights that add up to 1 along the last axis, ``(*, T, S)``.
        seen: Which keys a query may see, ``(*, T, S)``.

    Returns:
        The entropy.
    """
    keys = seen.sum(-1)
    some = keys > 0
    nats = torch.special.entr(weights.double()).sum(-1)[some].mean()
    return Entropy(float(nats), float(keys[some].double().log().mean()))
