"""Attention against torch.nn.MultiheadAttention: same parameters, same masks, same numbers, always fused."""

# B batch, H heads, T query positions, S key positions, D width

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero.layers import Attention

B, H, T, S, D = 3, 2, 5, 7, 8
F64 = torch.float64

# torch warns when both masks are given in different types; ours joins them, and the numbers must agree all the same.
MIXED_MASKS = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")


def twins(**options: Any) -> tuple[Attention, nn.MultiheadAttention]:
    """Our attention and torch's with the same random weights and biases."""
    theirs = nn.MultiheadAttention(D, H, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = Attention(D, H, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def forbid(*shape: int) -> Tensor:
    """A random boolean mask that leaves every query its first key."""
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


def additive(*shape: int) -> Tensor:
    """A random float mask, finite and -inf, that leaves every query its first key."""
    return torch.randn(shape, dtype=F64).masked_fill(forbid(*shape), -torch.inf)


MASKS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "none": lambda _t, _s: {},
    "bool": lambda t, s: {"attn_mask": forbid(t, s)},
    "float": lambda t, s: {"attn_mask": additive(t, s)},
    "bool a head": lambda t, s: {"attn_mask": forbid(B * H, t, s)},
    "float a head": lambda t, s: {"attn_mask": additive(B * H, t, s)},
    "padding": lambda _t, s: {"key_padding_mask": forbid(B, s)},
    "float padding": lambda _t, s: {"key_padding_mask": additive(B, s)},
    "bool and padding": lambda t, s: {"attn_mask": forbid(t, s), "key_padding_mask": forbid(B, s)},
    "float and float padding": lambda t, s: {"attn_mask": additive(t, s), "key_padding_mask": additive(B, s)},
    "float and bool padding": lambda t, s: {"attn_mask": additive(t, s), "key_padding_mask": forbid(B, s)},
    "bool and float padding": lambda t, s: {"attn_mask": forbid(t, s), "key_padding_mask": additive(B, s)},
    "bool a head and padding": lambda t, s: {"attn_mask": forbid(B * H, t, s), "key_padding_mask": forbid(B, s)},
    "float a head and padding": lambda t, s: {"attn_mask": additive(B * H, t, s), "key_padding_mask": forbid(B, s)},
    "causal bool": lambda t, s: {"attn_mask": torch.ones(t, s).triu(1).bool(), "is_causal": True},
    "causal float": lambda t, s: (
        {"attn_mask": nn.Transformer.generate_square_subsequent_mask(s)[:t].double()} | {"is_causal": True}
    ),
    "causal bool and padding": lambda t, s: {
        "attn_mask": torch.ones(t, s).triu(1).bool(),
        "key_padding_mask": forbid(B, s),
        "is_causal": True,
    },
}


@MIXED_MASKS
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("memory", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq first", "batch first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_equals_torch_for_every_mask(
    masks: Callable[[int, int], dict[str, Any]], memory: bool, batch_first: bool, bias: bool
) -> None:
    """Outputs and all gradients equal nn.MultiheadAttention's in float64, for every kind of mask and layout."""
    s = S if memory else T
    given = masks(T, s)
    inputs = [torch.randn(B, T, D, dtype=F64), torch.randn(B, S, D, dtype=F64)][: 1 + memory]
    inputs = [x if batch_first else x.transpose(0, 1).contiguous() for x in inputs]
    results = []
    for module in twins(batch_first=batch_first, bias=bias):
        x = [part.clone().requires_grad_() for part in inputs]
        if isinstance(module, nn.MultiheadAttention):
            y = module(x[0], x[-1], x[-1], need_weights=False, **given)[0]
        else:
            y = module(*x, **given)
        assert y.shape == inputs[0].shape
        weights = torch.linspace(-1, 1, y.numel(), dtype=F64).view(y.shape)
        names = [name for name, _ in module.named_parameters()]
        gradients = torch.autograd.grad((y * weights).sum(), [*x, *module.parameters()])
        results.append((y, dict(zip([*"xm"[: len(x)], *names], gradients, strict=True))))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-11, atol=1e-11)


@MIXED_MASKS
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": torch.arange(T * T).view(T, T) % 3 == 1},
        {"attn_mask": torch.linspace(-1, 1, H * T * T, dtype=F64).view(H, T, T)},
        {"key_padding_mask": torch.arange(T) > 2},
        {"attn_mask": torch.ones(T, T).triu(1).bool(), "is_causal": True},
    ],
    ids=["none", "bool", "float a head", "padding", "causal"],
)
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq first", "batch first"])
def test_equals_torch_without_a_batch(masks: dict[str, Any], batch_first: bool) -> None:
    """(T, D) inputs give (T, D) outputs, the same as torch's, whatever batch_first says."""
    ours, theirs = twins(batch_first=batch_first)
    x = torch.randn(T, D, dtype=F64)
    y = ours(x, **masks)
    assert y.shape == (T, D)
    torch.testing.assert_close(y, theirs(x, x, x, need_weights=False, **masks)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x, x, **masks), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [None, "bool", "float"], ids=str)
@pytest.mark.parametrize("memory", [False, True], ids=["self", "cross"])
def test_is_causal_alone_is_the_causal_mask(memory: bool, padding: str | None) -> None:
    """is_causal without a mask, which torch refuses, is the lower triangle, also beside a padding mask."""
    ours, _ = twins(batch_first=True)
    x, m = torch.randn(B, T, D, dtype=F64), torch.randn(B, S, D, dtype=F64)
    s = S if memory else T
    padded = {None: None, "bool": forbid(B, s), "float": additive(B, s)}[padding]
    inputs = (x, m) if memory else (x,)
    future = torch.ones(T, s).triu(1).bool()
    expected = ours(*inputs, attn_mask=future, key_padding_mask=padded)
    torch.testing.assert_close(ours(*inputs, key_padding_mask=padded, is_causal=True), expected)
    assert not torch.allclose(ours(*inputs, key_padding_mask=padded), expected)


def test_a_causal_query_does_not_see_the_future() -> None:
    """Changing position t leaves the outputs before t as they were, bitwise."""
    ours, _ = twins(batch_first=True)
    x = torch.randn(B, T, D, dtype=F64)
    y = ours(x, is_causal=True)
    x[:, 3:] += 1
    z = ours(x, is_causal=True)
    assert torch.equal(y[:, :3], z[:, :3])
    assert not torch.allclose(y[:, 3:], z[:, 3:])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_state_dicts_are_interchangeable(bias: bool) -> None:
    """Keys, shapes and order of the state dict are nn.MultiheadAttention's, and load strictly both ways."""
    ours, theirs = Attention(D, H, bias=bias), nn.MultiheadAttention(D, H, bias=bias)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(Attention(D, H, bias=bias).state_dict(), strict=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_initialisation_is_that_of_torch(bias: bool) -> None:
    """Every parameter starts with the range and spread of nn.MultiheadAttention's, on construction and on reset."""
    dim = 128
    theirs = dict(nn.MultiheadAttention(dim, 4, bias=bias).named_parameters())
    ours = Attention(dim, 4, bias=bias)
    for _ in range(2):
        for name, parameter in ours.named_parameters():
            assert parameter.std().item() == pytest.approx(theirs[name].std().item(), rel=0.02), name
            assert parameter.abs().max().item() == pytest.approx(theirs[name].abs().max().item(), rel=0.02), name
        for parameter in ours.parameters():
            nn.init.constant_(parameter, 7.0)
        ours.reset_parameters()


# Queries that see no key


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_padded_row_gives_zeros_and_finite_gradients(training: bool, kind: str) -> None:
    """A row that is padded throughout gives zeros, not nan, passes no gradient, and leaves the other rows alone."""
    attention, _ = twins(batch_first=True, dropout=0.0)
    attention.train(training)
    padding = torch.tensor([[False] * T, [True] * T, [False, False, True, True, True]])
    mask = padding if kind == "bool" else torch.zeros(B, T, dtype=F64).masked_fill(padding, -torch.inf)
    x = torch.randn(B, T, D, dtype=F64, requires_grad=True)
    y = attention(x, key_padding_mask=mask)
    assert torch.equal(y[1], torch.zeros(T, D, dtype=F64))
    torch.testing.assert_close(y[[0, 2]], attention(x[[0, 2]], key_padding_mask=mask[[0, 2]]))
    gradients = torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][1].any()
    alone = torch.autograd.grad(
        attention(x[[0, 2]], key_padding_mask=mask[[0, 2]]).square().sum(), [*attention.parameters()]
    )
    for ours, expected in zip(gradients[1:], alone, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq first", "batch first"])
def test_a_blind_query_gives_zeros(batch_first: bool, kind: str) -> None:
    """A query whose row of the attention mask is forbidden gives zeros in every batch entry; the rest equals torch."""
    ours, theirs = twins(batch_first=batch_first)
    blind = torch.zeros(T, T, dtype=torch.bool)
    blind[2] = True
    mask = blind if kind == "bool" else torch.zeros(T, T, dtype=F64).masked_fill(blind, -torch.inf)
    x = torch.randn(B, T, D, dtype=F64)
    x = x if batch_first else x.transpose(0, 1)
    y, reference = ours(x, attn_mask=mask), theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    y, reference = (z if batch_first else z.transpose(0, 1) for z in (y, reference))
    assert not y[:, 2].any()
    seen = [0, 1, 3, 4]
    torch.testing.assert_close(y[:, seen], reference[:, seen], rtol=1e-12, atol=1e-12)


def test_blindness_may_come_from_two_masks_together() -> None:
    """A query is blind if the masks forbid every key only when joined."""
    ours, _ = twins(batch_first=True)
    attn_mask = torch.tensor([[False, False, True, True, True]] * T)
    padding = torch.tensor([[True, True, False, False, False], [False] * T, [True, False, False, False, False]])
    x = torch.randn(B, T, D, dtype=F64)
    y = ours(x, attn_mask=attn_mask, key_padding_mask=padding)
    assert not y[0].any()
    assert y[1:].abs().min() > 0
    assert y.isfinite().all()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_blind_head_gives_zeros_and_the_others_see(kind: str) -> None:
    """Where one head of a query is blind, that head contributes zeros and the output projection sees the others."""
    ours, _ = twins(batch_first=True)
    blind = torch.zeros(B, H, T, T, dtype=torch.bool)
    blind[1, 0, 3] = True
    mask = blind.view(B * H, T, T)
    mask = mask if kind == "bool" else torch.zeros(B * H, T, T, dtype=F64).masked_fill(mask, -torch.inf)
    x = torch.randn(B, T, D, dtype=F64, requires_grad=True)
    y = ours(x, attn_mask=mask)
    plain = ours(x)
    without_head = ours.out_proj.weight.detach().clone()
    without_head[:, : D // H] = 0
    expected = torch.func.functional_call(ours, {"out_proj.weight": without_head}, x)[1, 3]
    torch.testing.assert_close(y[1, 3], expected, rtol=1e-12, atol=1e-12)
    untouched = torch.ones(B, T, dtype=torch.bool)
    untouched[1, 3] = False
    torch.testing.assert_close(y[untouched], plain[untouched], rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_a_blind_memory_gives_zeros_in_half_precision_too() -> None:
    """Cross-attention to a memory that is padded throughout gives zeros in bfloat16, forward and backward finite."""
    attention = Attention(D, H, batch_first=True, dtype=torch.bfloat16)
    x = torch.randn(B, T, D, dtype=torch.bfloat16, requires_grad=True)
    memory = torch.randn(B, S, D, dtype=torch.bfloat16)
    y = attention(x, memory, key_padding_mask=torch.ones(B, S, dtype=torch.bool))
    assert y.dtype == torch.bfloat16
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_a_float_mask_learns() -> None:
    """A float mask may be a parameter, such as a position bias, and gets torch's gradient."""
    ours, theirs = twins(batch_first=True)
    x = torch.randn(B, T, D, dtype=F64)
    mask = torch.randn(T, T, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(ours(x, attn_mask=mask).square().sum(), mask)
    (expected,) = torch.autograd.grad(theirs(x, x, x, attn_mask=mask, need_weights=False)[0].square().sum(), mask)
    torch.testing.assert_close(g, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_float_mask_takes_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    """A mask in another float dtype than the input is cast to it."""
    attention = Attention(D, H, batch_first=True, dtype=dtype)
    x = torch.randn(B, T, D, dtype=dtype)
    mask = torch.tril(torch.ones(T, T)).log()
    y = attention(x, attn_mask=mask)
    assert y.dtype == dtype
    assert torch.equal(y, attention(x, attn_mask=mask.to(dtype)))


# Fused, dropout


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_runs_through_scaled_dot_product_attention(training: bool, masks: Callable[[int, int], dict[str, Any]]) -> None:
    """The profiler shows one call of scaled_dot_product_attention, in training and evaluation, for every mask."""
    attention = Attention(D, H, batch_first=True).double().train(training)
    x = torch.randn(B, T, D, dtype=F64)
    given = masks(T, T)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(x, **given)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("aten::scaled_dot_product_attention") == 1


def test_dropout_acts_in_training_only() -> None:
    """Dropout of attention weights changes the output in training, keeps its mean, and rests in evaluation."""
    attention = Attention(D, H, batch_first=True, dropout=0.4).double()
    still = Attention(D, H, batch_first=True).double()
    still.load_state_dict(attention.state_dict())
    x = torch.randn(1, T, D, dtype=F64)
    expected = still(x)
    assert torch.equal(attention.eval()(x), expected)
    attention.train()
    draws = attention(x.expand(4000, T, D))
    assert not torch.allclose(draws[0], draws[1])
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - expected[0]).abs() < 6 * error).all()


def test_strided_masks_and_inputs_do_not_matter() -> None:
    """Transposed masks, expanded masks and sliced inputs give what their contiguous copies give."""
    ours, _ = twins(batch_first=True)
    x = torch.randn(B, 2 * T, D, dtype=F64)[:, ::2]
    masks = {"attn_mask": forbid(T, T).T.contiguous().T, "key_padding_mask": forbid(1, T).expand(B, T)}
    assert not any(mask.is_contiguous() for mask in masks.values())
    dense = {name: mask.contiguous() for name, mask in masks.items()}
    torch.testing.assert_close(ours(x, **masks), ours(x.contiguous(), **dense), rtol=1e-12, atol=1e-12)
    per_head = forbid(T, T).expand(B * H, T, T)
    assert torch.equal(ours(x, attn_mask=per_head), ours(x, attn_mask=per_head.contiguous()))


# Errors


@pytest.mark.parametrize(
    ("dim", "heads"), [(8, 3), (8, 0), (0, 1), (8, -2), (-8, 2), (2, 4)], ids=lambda value: str(value)
)
def test_refuses_widths_that_do_not_divide(dim: int, heads: int) -> None:
    """embed_dim must be a positive multiple of num_heads, and the message names both."""
    with pytest.raises(ValueError, match=f"embed_dim must be a positive multiple of num_heads: got {dim} and {heads}"):
        Attention(dim, heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")], ids=str)
def test_refuses_a_dropout_that_is_no_probability(dropout: float) -> None:
    """A dropout outside 0 to 1 is an error at construction."""
    with pytest.raises(ValueError, match=f"dropout must be a probability from 0 to 1: got {dropout}"):
        Attention(8, 2, dropout=dropout)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"attn_mask": torch.zeros(T, T + 1)}, r"attention mask: expected shape \(5, 5\) or \(6, 5, 5\), got \(5, 6\)"),
        (
            {"attn_mask": torch.zeros(B, T, T)},
            r"attention mask: expected shape .* or \(6, 5, 5\), got \(3, 5, 5\)",
        ),
        ({"attn_mask": torch.zeros(T)}, r"attention mask: expected shape .* got \(5,\)"),
        ({"key_padding_mask": torch.zeros(T, B)}, r"key padding mask: expected shape \(3, 5\), got \(5, 3\)"),
        ({"key_padding_mask": torch.zeros(T)}, r"key padding mask: expected shape \(3, 5\), got \(5,\)"),
        ({"attn_mask": torch.zeros(T, T, dtype=torch.long)}, r"masks must be boolean .* got torch.int64"),
        ({"key_padding_mask": torch.zeros(B, T, dtype=torch.uint8)}, r"masks must be boolean .* got torch.uint8"),
    ],
    ids=["wide", "no heads", "1-d", "transposed padding", "1-d padding", "long", "byte padding"],
)
def test_refuses_masks_of_another_shape_or_dtype(masks: dict[str, Tensor], message: str) -> None:
    """A mask of the wrong shape or dtype is an error that names what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        Attention(D, H, batch_first=True)(torch.randn(B, T, D), **masks)


def test_print_shows_the_settings() -> None:
    """print(model) tells width, heads, dropout and layout."""
    assert "8, num_heads=2, dropout=0.1, batch_first=True" in repr(Attention(8, 2, dropout=0.1, batch_first=True))
