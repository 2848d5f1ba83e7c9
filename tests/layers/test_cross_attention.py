"""Gated cross-attention: the identity at the start, its formula afterwards, silence where nothing may be seen."""

# B batch, H heads, T positions, M positions of the context, D width, C width of the context

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import Gate, gates, param_groups
from rezero.layers import GatedCrossAttention, PerceiverResampler, media_mask
from tests.kept import bytes_kept

B, H, T, M, D, C = 3, 2, 5, 4, 8, 6
F64 = torch.float64
OPTIONS: dict[str, dict[str, Any]] = {
    "flamingo": {},
    "other": {"gate": "linear", "qk_norm": True, "bias": True, "activation": "gelu"},
    "one branch": {"ff_mult": 0, "bias": True},
}
every_kind = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(*, is_open: bool = True, dtype: torch.dtype = F64, **options: Any) -> GatedCrossAttention:
    """A layer with random parameters; its gates stand where told."""
    layer = GatedCrossAttention(D, C, num_heads=H, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for i, gate in enumerate(gates(layer).values()):
        nn.init.constant_(gate.alpha, 0.75 + i if is_open else 0.0)
    return layer.to(dtype)


def inputs(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, D, dtype=dtype), torch.randn(B, M, C, dtype=dtype)


def some_blind() -> Tensor:
    """A mask (B, T, M) by which the first text is blind, of the second one some positions, of the third none."""
    mask = torch.rand(B, T, M) < 0.5
    mask[0], mask[1, :2], mask[1, 2:, 0], mask[2, :, 1] = False, False, True, True
    return mask


# The twin


def norm(p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
    return (h - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    return h @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.zeros(1, dtype=h.dtype))


def rms(p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    if f"{name}.weight" not in p:
        return h
    return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]


def attend(p: dict[str, Tensor], prefix: str, h: Tensor, context: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Attention written out head by head and position by position."""
    q, k, v = (
        linear(p, f"{prefix}.query", h),
        linear(p, f"{prefix}.key", context),
        linear(p, f"{prefix}.value", context),
    )
    width = q.shape[-1] // heads
    rows = []
    for b in range(len(h)):
        for t in range(h.shape[1]):
            seen = torch.ones(context.shape[1], dtype=torch.bool) if mask is None else mask[b, ..., :]
            seen = seen[t] if seen.ndim == 2 else seen
            if not seen.any():
                rows.append(torch.zeros(q.shape[-1], dtype=h.dtype))
                continue
            parts = []
            for i in range(heads):
                own = slice(i * width, (i + 1) * width)
                query = rms(p, f"{prefix}.query_norm", q[b, t, own])
                keys = rms(p, f"{prefix}.key_norm", k[b, seen][:, own])
                weights = (keys @ query / width**0.5).exp()
                parts.append(weights @ v[b, seen][:, own] / weights.sum())
            rows.append(linear(p, f"{prefix}.out", torch.cat(parts)))
    return torch.stack(rows).view(h.shape[0], h.shape[1], -1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": lambda h: h.clamp_min(0) ** 2,
    "relu": lambda h: h.clamp_min(0),
    "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / 2**0.5)),
    "silu": lambda h: h / (1 + (-h).exp()),
}


def twin(layer: GatedCrossAttention, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    """The layer's formula from its parameters."""
    p, told = dict(layer.named_parameters()), layer.arguments()

    def scale(name: str) -> Tensor:
        return p[name].tanh() if told["gate"] == "tanh" else p[name]

    x = x + scale("gate.alpha") * attend(p, "attention", norm(p, "norm", x), context, mask, told["num_heads"])
    if not told["ff_mult"]:
        return x
    h = linear(p, "feed_forward.branch.linear1", norm(p, "feed_forward.branch.norm", x))
    f = linear(p, "feed_forward.branch.linear2", ACTIVATIONS[told["activation"]](h))
    return x + scale("feed_forward.gate.alpha") * f


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "a text": lambda: some_blind()[:, -1],
    "a position": some_blind,
    "all blind": lambda: torch.zeros(B, T, M, dtype=torch.bool),
    "no text sees": lambda: torch.zeros(B, M, dtype=torch.bool),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@every_kind
@every_mask
def test_closed_gates_give_the_input_bitwise(options: dict[str, Any], mask: Callable[[], Tensor | None]) -> None:
    """At alpha = 0 the output is bitwise the input, in training with dropout and in evaluation, for every mask."""
    layer = build(is_open=False, dtype=torch.float32, dropout=0.3, **options)
    x, context = inputs(torch.float32)
    for training in (True, False):
        assert torch.equal(layer.train(training)(x, context, mask()), x)


@every_kind
@every_mask
def test_open_gates_give_the_formula(options: dict[str, Any], mask: Callable[[], Tensor | None]) -> None:
    """With open gates output and every gradient are those of the formula, written out position by position."""
    layer, given = build(**options), mask()
    x, context = (each.requires_grad_() for each in inputs())
    tensors = [x, context, *layer.parameters()]
    results = []
    for y in (layer(x, context, given), twin(layer, x, context, given)):
        weights = torch.linspace(-1, 1, y.numel(), dtype=F64).view(y.shape)
        found = torch.autograd.grad((y * weights).sum(), tensors, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
        results.append((y, filled))
    sees = given is None or bool(given.any())
    assert torch.allclose(results[0][0], x) == (not sees and not layer.arguments()["ff_mult"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_its_formula(activation: str) -> None:
    """The feed-forward branch has the activation that its name says."""
    layer = build(activation=activation)
    x, context = inputs()
    torch.testing.assert_close(layer(x, context), twin(layer, x, context), rtol=1e-11, atol=1e-11)


@every_kind
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_gradients_pass_gradcheck_with_blind_positions(options: dict[str, Any], is_open: bool) -> None:
    """In float64 the gradients of input, context and parameters pass gradcheck where some positions see nothing."""
    layer, mask = build(is_open=is_open, **options), some_blind()
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, context: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        y: Tensor = torch.func.functional_call(layer, given, (x, context, mask))
        return y

    x, context = (each.requires_grad_() for each in inputs())
    assert torch.autograd.gradcheck(call, (x, context, *layer.parameters()), fast_mode=True)


def test_starts_with_two_gates_of_its_own_branches() -> None:
    """There is one closed gate a branch, each learns by itself, and the optimizer finds both."""
    layer = GatedCrossAttention(D, num_heads=H)
    assert {name: gate.alpha.tolist() for name, gate in gates(layer).items()} == {
        "gate": [0.0],
        "feed_forward.gate": [0.0],
    }
    groups = param_groups(layer, lr=0.1, weight_decay=0.1)
    assert sum(p.numel() == 1 for group in groups for p in group["params"]) == 2
    layer(torch.randn(B, T, D), torch.randn(B, M, D)).square().sum().backward()
    first, second = (gate.alpha.grad for gate in gates(layer).values())
    assert first is not None
    assert second is not None
    assert first.any()
    assert second.any()
    assert first != second


@pytest.mark.parametrize(("gate", "scale"), [("tanh", 0.7615941559557649), ("linear", 1.0)])
def test_gate_is_tanh_or_the_number(gate: str, scale: float) -> None:
    """At alpha = 1 the attention counts tanh(1) of itself, or all of itself."""
    layer = build(ff_mult=0, gate=gate)
    nn.init.ones_(layer.gate.alpha)
    x, context = inputs()
    f = layer.attention(layer.norm(x), layer.keys_values(context))
    torch.testing.assert_close(layer(x, context), x + scale * f, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", ["tanh", "linear"])
def test_large_ones_are_the_formula_and_keep_no_branch(gate: str) -> None:
    """A layer that is large enough for one product gives the same, and keeps less than with a hook on its end."""
    width = 256
    layer = GatedCrossAttention(width, 32, num_heads=4, ff_mult=1, gate=gate)
    for owner in gates(layer).values():
        nn.init.constant_(owner.gate_parameter, 0.5)
    x, context = torch.randn(2, 128, width), torch.randn(2, 16, 32)
    own, y = bytes_kept(lambda x: layer(x, context), x, layer), layer(x, context)
    seen: list[Tensor] = []
    assert layer.feed_forward is not None
    for end in (layer.attention.out, layer.feed_forward.branch.linear2):
        end.register_forward_hook(lambda _, __, output: seen.append(output))
    torch.testing.assert_close(layer(x, context), y, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    assert own <= bytes_kept(lambda x: layer(x, context), x, layer) - 2 * x.nbytes


# Who sees what


@every_kind
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
def test_blind_positions_get_nothing_before_the_gate(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Where nothing may be seen the attention is exactly zero, whatever biases and norms, and elsewhere it is not."""
    layer, mask = build(dtype=dtype, **options), some_blind()
    x, context = inputs(dtype)
    f = layer.attention(layer.norm(x), layer.keys_values(context), mask)
    blind = ~mask.any(-1)
    assert bool(blind.any())
    assert not bool(blind.all())
    assert not f[blind].any()
    assert f[~blind].abs().sum(-1).min() > 0
    layer.feed_forward = None
    y = layer(x, context, mask)
    assert torch.equal(y[blind], x[blind])
    assert not torch.equal(y[~blind], x[~blind])


@every_kind
@pytest.mark.parametrize("every", [False, True], ids=["some", "all"])
def test_blind_positions_pass_no_gradient(options: dict[str, Any], every: bool) -> None:
    """The gradients of what only blind positions lead to are zeros, tensors and never nan, also if all are blind."""
    layer = build(**options)
    layer.feed_forward = None
    mask = torch.zeros(B, T, M, dtype=torch.bool) if every else some_blind()
    blind = ~mask.any(-1)
    x, context = (each.requires_grad_() for each in inputs())
    y = layer(x, context, mask)
    y[blind].square().sum().backward()
    assert x.grad is not None
    assert context.grad is not None
    assert torch.equal(x.grad[blind], 2 * x[blind])
    assert not x.grad[~blind].any()
    assert not context.grad.any()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_what_is_masked_is_not_read() -> None:
    """Where the mask forbids, the context can be any number without a change to the output."""
    layer, mask = build(), some_blind()[:, -1]
    x, context = inputs()
    other = torch.where(mask.unsqueeze(-1), context, 100.0)
    torch.testing.assert_close(layer(x, other, mask), layer(x, context, mask), rtol=1e-12, atol=1e-12)


@every_kind
def test_one_mask_a_text_is_the_same_mask_for_each_position(options: dict[str, Any]) -> None:
    """(B, M) gives what it gives expanded to (B, T, M), and a mask of ones what no mask gives."""
    layer, mask = build(**options), some_blind()[:, -1]
    x, context = inputs()
    expanded = mask.unsqueeze(1).expand(B, T, M)
    torch.testing.assert_close(layer(x, context, mask), layer(x, context, expanded), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        layer(x, context, torch.ones(B, M, dtype=torch.bool)), layer(x, context), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_an_empty_context_gives_nothing(masked: bool) -> None:
    """A context of no vectors leaves every position blind, with biases too, and its gradients finite."""
    layer = build(bias=True, ff_mult=0)
    x = torch.randn(B, T, D, dtype=F64, requires_grad=True)
    mask = torch.ones(B, 0, dtype=torch.bool) if masked else None
    y = layer(x, torch.randn(B, 0, C, dtype=F64), mask)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_text_sees_the_medium_before_it() -> None:
    """With a media mask, changing one medium changes the positions from its mark to the next one's, and no other."""
    layer = build(dtype=F64)
    resampler = PerceiverResampler(C, depth=1, num_latents=2, num_heads=2).double()
    is_media = torch.tensor([[False, True, False, True, False]])
    mask = media_mask(is_media, media=2, latents=2)
    x, images = torch.randn(1, T, D, dtype=F64), torch.randn(1, 2, 7, C, dtype=F64)
    changed = images.clone()
    changed[:, 0] += 1
    before, after = (layer(x, resampler(each).flatten(1, 2), mask) for each in (images, changed))
    assert (before != after).any(-1).tolist() == [[False, True, True, False, False]]


# Kept keys and values


@every_kind
def test_kept_keys_and_values_give_the_same(options: dict[str, Any]) -> None:
    """What keys_values returned gives bitwise the output and the gradients that its context gives."""
    layer, mask = build(**options), some_blind()
    x, context = inputs()
    kept = layer.keys_values(context)
    assert [part.shape for part in kept] == [(B, H, M, D // H)] * 2
    results = []
    for y in (layer(x, context, mask), layer(x, mask=mask, kept=kept), layer(x, context + 1, mask, kept=kept)):
        results.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()), retain_graph=True)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][0], results[2][0])
    for one, another in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, another)


def test_steps_with_kept_keys_and_values_give_the_whole() -> None:
    """Position by position with kept keys and values, the output is that of all positions at once."""
    layer, mask = build(), some_blind()
    x, context = inputs()
    kept = layer.keys_values(context)
    steps = [layer(x[:, t : t + 1], mask=mask[:, t : t + 1], kept=kept) for t in range(T)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(x, context, mask), rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("inside", [False, True], ids=["kept outside", "kept inside"])
def test_autocast_takes_inputs_of_another_dtype(options: dict[str, Any], inside: bool) -> None:
    """Under autocast a bfloat16 context, and keys and values kept in or before it, go with float32 weights."""
    layer, mask = build(dtype=torch.float32, **options), some_blind()
    x, context = inputs(torch.float32)
    expected, outside = layer(x, context, mask), layer.keys_values(context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = layer.keys_values(context.bfloat16()) if inside else outside
        assert {part.dtype for part in kept} == {torch.bfloat16 if inside else torch.float32}
        results = [layer(x, context.bfloat16(), mask), layer(x, mask=mask, kept=kept)]
    for y in results:
        assert y.dtype == torch.float32
        assert (y - expected).abs().max() < 0.05 * expected.abs().max()


# Other people's code


@pytest.mark.parametrize("hooked", ["attention", "attention.out", "feed_forward.branch.linear2", "attention.key"])
def test_hooks_inside_are_called(hooked: str) -> None:
    """Whoever hooks a module inside sees its output, and the layer's output stays."""
    layer, seen = build(bias=True), []
    x, context = inputs()
    expected = layer(x, context, some_blind())
    layer.get_submodule(hooked).register_forward_hook(lambda _, __, output: seen.append(output))
    torch.manual_seed(0)
    y = layer(x, context, some_blind())
    assert len(seen) == 1
    assert y.shape == expected.shape


@every_kind
def test_a_hook_on_the_attention_changes_nothing(options: dict[str, Any]) -> None:
    """The layer gives the same whether it goes through the attention's call or past it."""
    layer, mask = build(**options), some_blind()
    x, context = inputs()
    expected = layer(x, context, mask)
    layer.attention.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer(x, context, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "mask", [MASKS["none"], MASKS["a text"], MASKS["a position"]], ids=["none", "text", "position"]
)
def test_runs_through_scaled_dot_product_attention(mask: Callable[[], Tensor | None]) -> None:
    """The profiler shows one call of scaled_dot_product_attention, with every kind of mask."""
    layer, given = build(), mask()
    x, context = inputs()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x, context, given)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("aten::scaled_dot_product_attention") == 1


@every_kind
def test_compiles_to_one_graph_of_every_length(options: dict[str, Any]) -> None:
    """One dynamic full graph serves texts and contexts of every length, with a mask and with kept keys and values."""
    layer = build(**options)
    for through in ("context", "kept"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
        for b, t, m in [(3, 5, 7), (5, 7, 4), (4, 6, 9)]:
            x, context = torch.randn(b, t, D, dtype=F64), torch.randn(b, m, C, dtype=F64)
            mask = torch.rand(b, t, m) < 0.5
            with torch.no_grad():
                kept = layer.keys_values(context)
            given = {"context": context} if through == "context" else {"kept": kept}
            torch.testing.assert_close(compiled(x, mask=mask, **given), layer(x, mask=mask, **given))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("through", ["context", "kept"])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_exports_with_dynamic_shapes(through: str, masked: bool) -> None:
    """The layer exports with batch and both lengths left open, with and without a mask, from a context or from kept."""
    layer = build().eval().requires_grad_(False)
    batch, length, seen = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "length", "seen"))

    def arguments(b: int, t: int, m: int) -> dict[str, Any]:
        context = torch.randn(b, m, C, dtype=F64)
        given: dict[str, Any] = {"x": torch.randn(b, t, D, dtype=F64)}
        given |= {"context": context} if through == "context" else {"kept": layer.keys_values(context)}
        return given | ({"mask": torch.rand(b, t, m) < 0.5} if masked else {})

    axes: dict[str, Any] = {
        "x": {0: batch, 1: length},
        "context": {0: batch, 1: seen},
        "kept": ({0: batch, 2: seen}, {0: batch, 2: seen}),
        "mask": {0: batch, 1: length, 2: seen},
    }
    given = arguments(3, 5, 4)
    program = torch.export.export(
        layer, (), given, dynamic_shapes={name: axes[name] for name in given}, strict=False
    ).module()
    given = arguments(4, 7, 6)
    torch.testing.assert_close(program(**given), layer(**given))


def test_dropout_acts_in_training_only() -> None:
    """Dropout changes the output in training and rests in evaluation."""
    layer = build(dropout=0.5)
    x, context = inputs()
    assert not torch.equal(layer(x, context), layer(x, context))
    layer.eval()
    torch.testing.assert_close(layer(x, context), twin(layer, x, context), rtol=1e-11, atol=1e-11)


# State


def test_state_dict_has_these_keys() -> None:
    """The names and shapes of all parameters, on which saved files rest."""
    layer = GatedCrossAttention(D, C, num_heads=H, qk_norm=True, bias=True)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "norm.weight": (8,),
        "norm.bias": (8,),
        "attention.query.weight": (8, 8),
        "attention.query.bias": (8,),
        "attention.key.weight": (8, 6),
        "attention.key.bias": (8,),
        "attention.value.weight": (8, 6),
        "attention.value.bias": (8,),
        "attention.out.weight": (8, 8),
        "attention.out.bias": (8,),
        "attention.query_norm.weight": (4,),
        "attention.key_norm.weight": (4,),
        "gate.alpha": (1,),
        "feed_forward.branch.norm.weight": (8,),
        "feed_forward.branch.norm.bias": (8,),
        "feed_forward.branch.linear1.weight": (32, 8),
        "feed_forward.branch.linear1.bias": (32,),
        "feed_forward.branch.linear2.weight": (8, 32),
        "feed_forward.branch.linear2.bias": (8,),
        "feed_forward.gate.alpha": (1,),
    }
    plain = set(GatedCrossAttention(D, C, num_heads=H, ff_mult=0).state_dict())
    assert plain == {
        "norm.weight",
        "norm.bias",
        *(f"attention.{name}.weight" for name in ("query", "key", "value", "out")),
        "gate.alpha",
    }


def test_context_is_as_wide_as_the_text_unless_told() -> None:
    """Without context_dim the context has the width of the text."""
    assert GatedCrossAttention(D, num_heads=H).attention.key.in_features == D


def test_takes_device_and_dtype() -> None:
    """Parameters are made on the device and in the dtype asked for; gates are at least float32."""
    layer = GatedCrossAttention(D, C, num_heads=H, qk_norm=True, bias=True, device="meta", dtype=torch.bfloat16)
    for name, parameter in layer.named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == (torch.float32 if name.endswith("alpha") else torch.bfloat16), name


def test_starts_xavier_uniform() -> None:
    """Linear maps start Xavier-uniform with zero biases, norms neutral and gates closed."""
    layer = GatedCrossAttention(200, 100, num_heads=2, ff_mult=2, bias=True, qk_norm=True)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.99 * bound < module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
        elif isinstance(module, Gate):
            assert not module.alpha.any()


def test_print_shows_heads_and_gate() -> None:
    """print(model) tells how many heads there are and which gate."""
    shown = repr(GatedCrossAttention(D, num_heads=H))
    assert "num_heads=2, dropout=0" in shown
    assert "activation='tanh'" in shown


def test_arguments_are_plain_values() -> None:
    """The arguments are what the layer was built with, defaults included, without device and dtype."""
    layer = GatedCrossAttention(D, num_heads=H, device="cpu", dtype=F64)
    expected = {"dim": 8, "context_dim": None, "num_heads": 2, "ff_mult": 4, "gate": "tanh"}
    expected |= {"activation": "squared_relu", "qk_norm": False, "dropout": 0.0, "bias": False}
    assert layer.arguments() == json.loads(json.dumps(layer.arguments())) == expected


# Errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 3}, "dim must be a positive multiple of num_heads: got 8 and 3"),
        ({"num_heads": 0}, "dim must be a positive multiple of num_heads: got 8 and 0"),
        ({"dim": 0}, "dim must be a positive multiple of num_heads: got 0 and 2"),
        ({"context_dim": 0}, "context_dim must be at least 1: got 0"),
        ({"ff_mult": -1}, "ff_mult must be at least 0, which leaves the feed-forward branch out: got -1"),
        ({"gate": "sigmoid"}, "gate must be 'tanh' or 'linear': got 'sigmoid'"),
        ({"activation": "mish"}, "no activation is called 'mish': choose from gelu, relu, silu, squared_relu"),
        ({"dropout": 1.5}, "dropout must be a probability from 0 to 1: got 1.5"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_refuses_arguments_out_of_range(changed: dict[str, Any], message: str) -> None:
    """An argument that is out of range or unknown is an error that names it."""
    with pytest.raises(ValueError, match=message):
        GatedCrossAttention(**{"dim": D, "context_dim": C, "num_heads": H} | changed)


X, CONTEXT = torch.zeros(B, T, D), torch.zeros(B, M, C)
KEPT = torch.zeros(B, H, M, D // H)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X[..., 1:]}, r"x must be \(B, T, D\) with D = 8: got \(3, 5, 7\)"),
        ({"x": X[0]}, r"x must be \(B, T, D\) with D = 8: got \(5, 8\)"),
        ({"context": CONTEXT[..., 1:]}, r"context must be \(B, M, C\) with C = 6: got \(3, 4, 5\)"),
        ({"context": CONTEXT[None]}, r"context must be \(B, M, C\) with C = 6: got \(1, 3, 4, 6\)"),
        ({"context": CONTEXT[:1]}, "x and context must have the same batch size: got 3 and 1; repeat the smaller one"),
        ({"kept": (KEPT[:1], KEPT[:1])}, "x and kept must have the same batch size: got 3 and 1"),
        (
            {"x": X.half()},
            r"x is torch.float16, the layer's weights are torch.float32: convert one of them with .to\(\)",
        ),
        (
            {"context": CONTEXT.double()},
            r"context is torch.float64, the layer's weights are torch.float32: convert one of them with .to\(\), or",
        ),
        (
            {"context": CONTEXT.to("meta")},
            r"context is on meta, the layer's weights are on cpu: move one of them with .to\(\)",
        ),
        ({"mask": torch.ones(B, M)}, "mask must be boolean, True where the context may be seen: got torch.float32"),
        ({"mask": torch.ones(B, M + 1).bool()}, r"mask: expected shape \(3, 4\) or \(3, 5, 4\), got \(3, 5\)"),
        ({"mask": torch.ones(B, H, T, M).bool()}, r"mask: expected shape \(3, 4\) or \(3, 5, 4\), got \(3, 2, 5, 4\)"),
        ({"mask": torch.ones(T, M).bool()}, r"mask: expected shape \(3, 4\) or \(3, 5, 4\), got \(5, 4\)"),
        ({"mask": torch.ones(B, M).bool().to("meta")}, r"mask is on meta, x is on cpu: move it with .to\(\)"),
        (
            {"kept": (KEPT, KEPT[:, :, 1:])},
            r"kept must be two tensors \(B, 2, M, 4\): got \(3, 2, 4, 4\) and \(3, 2, 3",
        ),
        ({"kept": (KEPT[:, 1:], KEPT[:, 1:])}, r"kept must be two tensors \(B, 2, M, 4\): got \(3, 1, 4, 4\) and"),
        ({"kept": (KEPT[0], KEPT[0])}, r"kept must be two tensors \(B, 2, M, 4\): got \(2, 4, 4\) and"),
        (
            {"kept": (KEPT, KEPT.half())},
            "kept is torch.float16 on cpu, x is torch.float32 on cpu: call keys_values whe",
        ),
    ],
    ids=[
        *("x width", "x axes", "context width", "context axes", "context batch", "kept batch", "x dtype"),
        *("context dtype", "context device", "mask dtype", "mask width", "mask a head", "mask without batch"),
        *("mask device", "kept lengths", "kept heads", "kept axes", "kept dtype"),
    ],
)
def test_refuses_inputs_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    """A shape, dtype or device that does not fit is an error that says what was expected and what came."""
    layer = GatedCrossAttention(D, C, num_heads=H)
    with pytest.raises(ValueError, match=message):
        layer(**{"x": X, "context": CONTEXT} | given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": None}, r"expected a context, or kept=layer.keys_values\(context\): got neither"),
        ({"x": [1.0]}, r"x must be a tensor \(B, T, D\): got list"),
        ({"context": (KEPT, KEPT)}, r"context must be a tensor \(B, M, C\): got tuple"),
        ({"kept": KEPT}, "kept must be the two tensors that keys_values returns: got Tensor"),
        ({"kept": (KEPT,)}, "kept must be the two tensors that keys_values returns: got tuple"),
        ({"mask": [True]}, "mask must be a boolean tensor: got list"),
    ],
    ids=["neither", "x", "context", "kept a tensor", "kept one", "mask"],
)
def test_refuses_inputs_of_another_type(given: dict[str, Any], message: str) -> None:
    """What is no tensor where one is needed is a TypeError that says so."""
    layer = GatedCrossAttention(D, C, num_heads=H)
    with pytest.raises(TypeError, match=message):
        layer(**{"x": X, "context": CONTEXT} | given)


def test_autocast_does_not_excuse_integers() -> None:
    """Under autocast a context of integers is refused as it is without."""
    layer = GatedCrossAttention(D, C, num_heads=H)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"context is torch.int64, the layer's weights are torch.float32"),
    ):
        layer(X, CONTEXT.long())


@pytest.mark.parametrize("dims", [2, 3], ids=["for all", "by position"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_what_nobody_may_see_can_be_anything(odd: float, dims: int) -> None:
    """Neither output nor gradients have nan where a batch is padded with it."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(8, 6, num_heads=2)
    nn.init.constant_(layer.gate.alpha, 0.5)
    x, context = torch.randn(1, 3, 8), torch.randn(1, 4, 6)
    mask = torch.tensor([[True, True, False, False]])
    expected = layer(x, context[:, :2])
    context[:, 2:] = odd
    y = layer(x, context, mask if dims == 2 else mask[:, None].expand(1, 3, 4))
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert layer.gate.alpha.grad is not None
    assert all(bool(each.grad.isfinite().all()) for each in layer.parameters() if each.grad is not None)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, None, mask, kept=layer.keys_values(context)), expected)
