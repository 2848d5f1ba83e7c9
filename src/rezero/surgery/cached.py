"""The second step of a model that remembers: one more token, with the cache that the first step made."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["continued", "second_step"]

_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
_FIRST_ONLY = {"labels", "position_ids", "decoder_position_ids", "cache_position"}


def continued(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor] | Exception | None:
    """Run a model in evaluation on its example and then, with the cache of that, on the last token again.

    Args:
        model: The model; it is left as it was.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        The tensors of the second step, or the error that was raised; None if the model makes no ``past_key_values``.
    """
    try:
        with second_step(model, args, kwargs) as step:
            return None if step is None else [tensor.detach() for tensor in tensors(model(**step))]
    except Exception as error:
        return error


@contextmanager
def second_step(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Run the first step of a model; the model is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Yields:
        Keyword arguments of the second step, for which the model stays in evaluation; None if it makes no cache.
    """
    signature = inspect.signature(model.forward)
    given = _given(signature, *copied((args, kwargs))) if "past_key_values" in signature.parameters else {}
    tokens = next((name for name in _TOKENS if isinstance(given.get(name), Tensor)), None)
    if tokens is None:
        yield None
        return
    with undisturbed(model), switched(model, training=False), torch.no_grad():
        torch.manual_seed(0)
        cache = getattr(model(**given), "past_key_values", None)
        yield None if cache is None else _next(model, given, tokens) | {"past_key_values": cache}


def _given(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given | ({"use_cache": True} if "use_cache" in signature.parameters else {})


def _next(model: Any, given: Mapping[str, Any], tokens: str) -> dict[str, Any]:
    """Return the first step's arguments with the last token alone, and a mask that counts it."""
    encodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    step = {name: value for name, value in given.items() if name not in _FIRST_ONLY}
    if not encodes:  # images and the like are in the cache
        step = {name: value for name, value in step.items() if not isinstance(value, Tensor)}
    last = tokens if not encodes or tokens.startswith("decoder") else f"decoder_{tokens}"
    step[last] = given[tokens][:, -1:]
    mask = "decoder_attention_mask" if encodes else "attention_mask"
    if isinstance(given.get(mask), Tensor) and given[mask].ndim == 2:
        step[mask] = torch.cat([given[mask], given[mask][:, -1:]], dim=1)
    return step
