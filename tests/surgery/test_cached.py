"""A model that goes on from a cache is held against the original there too."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import rezero
from rezero.errors import UsageError
from rezero.gate import AnyGate
from rezero.surgery.cached import continued, second_step
from tests.surgery.test_contract import gpt2, llama, t5, tokens

# Suffixes: B batch, T positions, D width.
D = 8
TOKENS = tokens()


class Remembers(nn.Module):
    """Adds the mean of all positions so far, which it keeps in its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.f, self.head = nn.Embedding(31, D), nn.Linear(D, D), nn.Linear(D, 31)

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        x = self.embed(input_ids)
        seen = x if past_key_values is None else torch.cat([past_key_values[0], x], dim=1)
        x = x + self.branch(seen.cumsum(1)[:, -x.shape[1] :], past_key_values)
        return SimpleNamespace(logits=self.head(x), past_key_values=[seen] if use_cache else None)

    def branch(self, h: Tensor, past: Any) -> Tensor:  # noqa: ARG002 - for those below
        f: Tensor = self.f(h)
        return f


class ReadsWeightThen(Remembers):
    """Reads the layer's weight itself when it goes on."""

    def branch(self, h: Tensor, past: Any) -> Tensor:
        return self.f(h) if past is None else F.linear(h, self.f.weight, self.f.bias)


class AsksForClassThen(Remembers):
    """Does something else when it goes on with a gated layer."""

    def branch(self, h: Tensor, past: Any) -> Tensor:
        f: Tensor = self.f(h)
        return f if past is None or not isinstance(self.f, AnyGate) else 2 * f


class FailsThen(Remembers):
    """Can't go on at all."""

    def branch(self, h: Tensor, past: Any) -> Tensor:
        if past is not None:
            raise NotImplementedError("no cache yet")
        return super().branch(h, past)


class EncodesFirst(Remembers):
    """Adds to what it is given in the first step only; a head without a residual reads it from the cache."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        x = self.embed(input_ids)
        seen = x + self.f(x) if past_key_values is None else past_key_values[0]
        logits = self.head(x * seen.mean(1, keepdim=True))
        return SimpleNamespace(logits=logits, past_key_values=[seen] if use_cache else None)


class EncodesAlike(EncodesFirst):
    """Also adds in every step, in a branch whose weight is that of the first step's."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(D, D)
        self.again.weight = self.f.weight

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        result = super().forward(input_ids, past_key_values, use_cache)
        x = self.embed(input_ids)
        result.logits = result.logits + self.head(x + self.again(x))
        return result


REFUSED = {
    "weight read": (ReadsWeightThen, r"going on from a cache .*the addition in '' does not return its skip"),
    "class asked for": (AsksForClassThen, r"gates at 1 and the cache of a first step .*output differs"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_a_cache_only_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    """A model that is right in one pass, and wrong in the step after it, is refused and left as it was."""
    model = build()
    keys = list(model.state_dict())
    with pytest.raises(UsageError, match=message):
        rezero.convert_(model, (), {"input_ids": TOKENS, "use_cache": False})
    assert list(model.state_dict()) == keys
    assert type(model.f) is nn.Linear


@pytest.mark.parametrize("build", [Remembers, FailsThen])
def test_what_is_right_with_a_cache_or_has_none_is_converted(build: Callable[[], nn.Module]) -> None:
    """A model that goes on rightly is converted, and so is one whose original can't go on."""
    assert rezero.convert_(build(), TOKENS).gates == ("f.alpha",)


@pytest.mark.parametrize(("build", "gates"), [(EncodesFirst, ("f.alpha",)), (EncodesAlike, ("f.alpha", "again.alpha"))])
def test_a_second_step_may_leave_branches_out(build: Callable[[], nn.Module], gates: tuple[str, ...]) -> None:
    """A branch whose result is in the cache is not run again, nor missed where another has the same weight."""
    assert rezero.convert_(build(), TOKENS).gates == gates


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "gpt2": (gpt2, {"input_ids": TOKENS}),
    "gpt2 with a mask": (gpt2, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}),
    "llama": (llama, {"input_ids": TOKENS, "use_cache": False}),
    "t5": (t5, {"input_ids": TOKENS, "decoder_input_ids": tokens(4)}),
    "bart": (
        lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=31,
                d_model=D,
                **{f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")},
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
            )
        ),
        {"input_ids": TOKENS},
    ),
}


@pytest.mark.parametrize(("build", "kwargs"), MODELS.values(), ids=MODELS)
def test_the_second_step_of_a_model_of_transformers(build: Callable[[], nn.Module], kwargs: dict[str, Any]) -> None:
    """The second step has the last token alone, its logits are those of one pass over all, and gates at 1 keep them."""
    torch.manual_seed(0)
    model: Any = build().eval()
    decoding = "decoder_input_ids" if getattr(model.config, "is_encoder_decoder", False) else "input_ids"
    with second_step(model, (), kwargs) as step:
        assert step is not None
        assert step[decoding].shape[1] == 1
        logits = model(**step).logits
    first = kwargs.get(decoding)
    if first is None:  # BART makes them from the encoder's, shifted
        first = transformers.models.bart.modeling_bart.shift_tokens_right(TOKENS, 1, 2)
    longer = {**kwargs, decoding: torch.cat([first, step[decoding]], dim=1)}
    if "attention_mask" in kwargs:
        longer["attention_mask"] = torch.ones_like(longer[decoding])
    with torch.no_grad():
        torch.testing.assert_close(logits[:, 0], model(**longer).logits[:, -1])
    expected = continued(model, (), kwargs)
    assert isinstance(expected, list)
    rezero.convert_(model, (), kwargs, init_value=1.0)
    again = continued(model, (), kwargs)
    assert isinstance(again, list)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_the_example_is_not_used_up() -> None:
    """Steps with a cache leave the caller's mask, tokens, mode and random numbers as they were."""
    model, given = gpt2(), {"input_ids": TOKENS.clone(), "attention_mask": torch.ones_like(TOKENS)}
    before = torch.get_rng_state()
    continued(model, (), given)
    assert given.keys() == {"input_ids", "attention_mask"}
    assert torch.equal(given["input_ids"], TOKENS)
    assert given["attention_mask"].shape == TOKENS.shape
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_a_cache_has_no_second_step() -> None:
    """A model whose forward takes no past_key_values, or that returns none, is not asked for a second step."""
    assert continued(nn.Linear(D, D), (torch.ones(1, D),), {}) is None
    decoder_of = transformers.BertConfig(
        vocab_size=31, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    assert continued(transformers.BertModel(decoder_of), (), {"input_ids": TOKENS}) is None
