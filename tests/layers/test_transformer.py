"""The Transformer layers: torch.nn's signatures, containers and numbers, gated, without norms."""

# B batch, T target positions, S source positions, D width

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import Gate, gates
from rezero.layers import TransformerDecoderLayer, TransformerEncoderLayer

B, T, S, D, H, FF = 2, 5, 7, 8, 2, 12
F64 = torch.float64

PAIRS = [(TransformerEncoderLayer, nn.TransformerEncoderLayer), (TransformerDecoderLayer, nn.TransformerDecoderLayer)]
OURS = [ours for ours, _ in PAIRS]
IDS = ["encoder", "decoder"]
SUBLAYERS = {TransformerEncoderLayer: 2, TransformerDecoderLayer: 3}

# torch warns when both masks are given in different types; the numbers must agree all the same.
MIXED_MASKS = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")


def open_(module: nn.Module, value: float = 0.5) -> nn.Module:
    for i, gate in enumerate(gates(module).values()):
        nn.init.constant_(gate.alpha, value + 0.1 * i)
    return module


def sequences(kind: type, *, batch_first: bool = True, dtype: torch.dtype = F64) -> tuple[Tensor, ...]:
    """A layer's inputs: a target, and for a decoder a memory."""
    shapes = [(B, T, D), (B, S, D)][: 1 + issubclass(kind, (TransformerDecoderLayer, nn.TransformerDecoderLayer))]
    return tuple(torch.randn(s if batch_first else (s[1], s[0], s[2]), dtype=dtype) for s in shapes)


# torch's face


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signature_is_that_of_torch(ours: type, theirs: type, method: str) -> None:
    """Names, order, kinds and defaults of torch's parameters come first; ours are keyword-only, after them."""
    expected = list(inspect.signature(getattr(theirs, method)).parameters.values())
    got = list(inspect.signature(getattr(ours, method)).parameters.values())
    prefix, more = got[: len(expected)], got[len(expected) :]
    assert [(p.name, p.kind, p.default) for p in prefix] == [(p.name, p.kind, p.default) for p in expected]
    assert {p.name: p.default for p in more} == ({"share": "sublayer", "init_value": 0.0} if "init" in method else {})
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in more)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize("share", ["sublayer", "layer"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_state_dict_is_that_of_torch_without_norms(ours: type, theirs: type, share: str, bias: bool) -> None:
    """State-dict keys and shapes are torch's without its norms, then the gates: one a sublayer, or one alone."""
    layer = ours(D, H, FF, bias=bias, share=share)
    expected = {k: v.shape for k, v in theirs(D, H, FF, bias=bias).state_dict().items() if not k.startswith("norm")}
    count = SUBLAYERS[ours] if share == "sublayer" else 1
    expected |= {f"gates.{i}.alpha": torch.Size([1]) for i in range(count)}
    assert {k: v.shape for k, v in layer.state_dict().items()} == expected
    assert list(gates(layer)) == [f"gates.{i}" for i in range(count)]


def without_norms(layer: nn.Module) -> nn.Module:
    """torch's layer with its norms replaced by identities."""
    for name, module in list(layer.named_children()):
        if isinstance(module, nn.LayerNorm):
            setattr(layer, name, nn.Identity())
    return layer


def twins(ours: type, theirs: type, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer with every alpha at 1 and torch's without norms, with the same random weights."""
    # Dropout 0 in training mode: torch's fused evaluation path reads the norms that are not there.
    reference = without_norms(theirs(D, H, FF, dropout=0.0, **options)).double()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer = ours(D, H, FF, dropout=0.0, init_value=1.0, **options).double()
    missing, unexpected = layer.load_state_dict(reference.state_dict(), strict=False)
    assert not unexpected
    assert all(key.endswith(".alpha") for key in missing)
    return layer, reference


def forbid(*shape: int) -> Tensor:
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


def encoder_masks(kind: str) -> dict[str, Any]:
    causal = torch.ones(T, T).triu(1).bool()
    return {
        "none": {},
        "bool": {"src_mask": forbid(T, T)},
        "float": {"src_mask": torch.randn(T, T, dtype=F64)},
        "a head": {"src_mask": forbid(B * H, T, T)},
        "padding": {"src_key_padding_mask": forbid(B, T)},
        "all": {"src_mask": causal, "src_key_padding_mask": forbid(B, T), "is_causal": True},
    }[kind]


def decoder_masks(kind: str) -> dict[str, Any]:
    causal = torch.ones(T, T).triu(1).bool()
    return {
        "none": {},
        "bool": {"tgt_mask": forbid(T, T), "memory_mask": forbid(T, S)},
        "float": {"tgt_mask": torch.randn(T, T, dtype=F64), "memory_mask": torch.randn(T, S, dtype=F64)},
        "a head": {"tgt_mask": forbid(B * H, T, T), "memory_mask": forbid(B * H, T, S)},
        "padding": {"tgt_key_padding_mask": forbid(B, T), "memory_key_padding_mask": forbid(B, S)},
        "all": {
            "tgt_mask": causal,
            "memory_mask": torch.ones(T, S).triu(1).bool(),
            "tgt_key_padding_mask": forbid(B, T),
            "memory_key_padding_mask": forbid(B, S),
            "tgt_is_causal": True,
            "memory_is_causal": True,
        },
    }[kind]


@pytest.mark.parametrize("masks", ["none", "bool", "float", "a head", "padding", "all"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bias": False}, {"activation": "gelu"}, {"batch_first": True, "norm_first": True}],
    ids=["plain", "batch first", "no bias", "gelu", "norm first"],
)
def test_with_alpha_1_equals_torch_without_norms(ours: type, theirs: type, options: Any, masks: str) -> None:
    """At alpha = 1 output and gradients are those of torch's layer whose norms are identities, for every mask."""
    layer, reference = twins(ours, theirs, **options)
    inputs = sequences(ours, batch_first=options.get("batch_first", False))
    given = (encoder_masks if len(inputs) == 1 else decoder_masks)(masks)
    results = []
    for module in (layer, reference):
        x = tuple(part.clone().requires_grad_() for part in inputs)
        y = module(*x, **given)
        y.square().sum().backward()
        gradients = {k: p.grad for k, p in module.named_parameters() if "alpha" not in k}
        results.append((y, [part.grad for part in x], gradients))
    (y, x_grad, gradient), (y0, x0_grad, gradient0) = results
    torch.testing.assert_close(y, y0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x_grad, x0_grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, gradient0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_runs_without_a_batch(ours: type, theirs: type) -> None:
    """(T, D) inputs give what torch's layer gives."""
    layer, reference = twins(ours, theirs)
    inputs = tuple(x[0] for x in sequences(ours))
    torch.testing.assert_close(layer(*inputs), reference(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", ["sublayer", "layer"])
def test_encoder_formula(share: str) -> None:
    """x + a0 sa(x), then x + a1 ff(x), with two alphas or one."""
    layer = TransformerEncoderLayer(D, H, FF, batch_first=True, share=share).double().eval()
    open_(layer)
    (x,) = sequences(TransformerEncoderLayer)
    first, second = (0.5, 0.6) if share == "sublayer" else (0.5, 0.5)
    y = x + first * layer.self_attn(x)
    z = y + second * layer.linear2(F.relu(layer.linear1(y)))
    torch.testing.assert_close(layer(x), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", ["sublayer", "layer"])
def test_decoder_formula(share: str) -> None:
    """x + a0 sa(x), then x + a1 ca(x, memory), then x + a2 ff(x), with three alphas or one."""
    layer = TransformerDecoderLayer(D, H, FF, batch_first=True, share=share).double().eval()
    open_(layer)
    x, memory = sequences(TransformerDecoderLayer)
    a = (0.5, 0.6, 0.7) if share == "sublayer" else (0.5, 0.5, 0.5)
    y = x + a[0] * layer.self_attn(x)
    y = y + a[1] * layer.multihead_attn(y, memory)
    z = y + a[2] * layer.linear2(F.relu(layer.linear1(y)))
    torch.testing.assert_close(layer(x, memory), z, rtol=1e-12, atol=1e-12)


# Gates


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("share", ["sublayer", "layer"])
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_starts_as_the_identity_bitwise(kind: type, share: str, training: bool) -> None:
    """At the start the output is torch.equal to the input, with dropout and masks, and not once the gates open."""
    layer = kind(D, H, FF, dropout=0.5, batch_first=True, share=share).train(training)
    inputs = sequences(kind, dtype=torch.float32)
    name = "is_causal" if kind is TransformerEncoderLayer else "tgt_is_causal"
    assert torch.equal(layer(*inputs), inputs[0])
    assert torch.equal(layer(*inputs, **{name: True}), inputs[0])
    assert not torch.equal(open_(layer)(*inputs), inputs[0])


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_first_gradient_of_alpha_has_a_closed_form(kind: type) -> None:
    """At the start each alpha's gradient is sum(g * F(x)) of its sublayer; one alpha for the layer gets their sum."""
    apart = kind(D, H, FF, dropout=0.0, batch_first=True).double()
    tied = kind(D, H, FF, dropout=0.0, batch_first=True, share="layer").double()
    tied.load_state_dict({k: v for k, v in apart.state_dict().items() if "gates" not in k}, strict=False)
    x, *memory = sequences(kind)
    g = torch.randn_like(x)
    branches = [apart.self_attn(x)]
    branches += [apart.multihead_attn(x, m) for m in memory]
    branches += [apart.linear2(F.relu(apart.linear1(x)))]
    expected = torch.stack([(g * f).sum() for f in branches])
    for layer in (apart, tied):
        (layer(x, *memory) * g).sum().backward()
    gradients = [gate.alpha.grad for gate in gates(apart).values()]
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=1e-12, atol=1e-12)
    (tied_gradient,) = (gate.alpha.grad for gate in gates(tied).values())
    torch.testing.assert_close(tied_gradient, expected.sum(0, keepdim=True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", ["sublayer", "layer"])
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_gates_know_their_branches_and_start(kind: type, share: str) -> None:
    """Gates start at init_value, in float32 beside half weights, and count the branches that they serve."""
    layer = kind(D, H, FF, share=share, init_value=0.25, dtype=torch.bfloat16)
    found = list(gates(layer).values())
    assert sum(gate.branches for gate in found) == SUBLAYERS[kind]
    assert len(found) == (SUBLAYERS[kind] if share == "sublayer" else 1)
    for gate in found:
        assert torch.equal(gate.alpha, torch.tensor([0.25]))
    assert layer.linear1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_has_no_norm(kind: type) -> None:
    """A layer holds no norm, and layer_norm_eps and norm_first change nothing."""
    layers = [
        kind(D, H, FF, dropout=0.0, batch_first=True),
        kind(D, H, FF, dropout=0.0, batch_first=True, layer_norm_eps=9.0, norm_first=True),
    ]
    assert not any("Norm" in type(module).__name__ for layer in layers for module in layer.modules())
    layers[1].load_state_dict(layers[0].state_dict())
    inputs = sequences(kind, dtype=torch.float32)
    assert torch.equal(open_(layers[0])(*inputs), open_(layers[1])(*inputs))


@pytest.mark.parametrize(
    ("kind", "sublayer"),
    [(kind, i) for kind in OURS for i in range(SUBLAYERS[kind])],
    ids=["encoder 1", "encoder 2", "decoder 1", "decoder 2", "decoder 3"],
)
def test_dropout_acts_on_every_branch_in_training(kind: type, sublayer: int) -> None:
    """In training each branch alone is dropped out (p = 1 silences it), and in evaluation none is."""
    layer = kind(D, H, FF, dropout=0.0, batch_first=True)
    inputs = sequences(kind, dtype=torch.float32)
    for i, gate in enumerate(gates(layer).values()):
        nn.init.constant_(gate.alpha, float(i == sublayer))
    alive = layer(*inputs)
    assert not torch.equal(alive, inputs[0])
    getattr(layer, f"dropout{sublayer + 1}").p = 1.0
    assert torch.equal(layer(*inputs), inputs[0])
    torch.testing.assert_close(layer.eval()(*inputs), alive)


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_dropout_reaches_its_four_places(kind: type) -> None:
    """The dropout argument sets attention weights, the inner activation and every branch."""
    layer = kind(D, H, FF, dropout=0.3)
    assert {m.p for m in layer.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert sum(isinstance(m, nn.Dropout) for m in layer.modules()) == 1 + SUBLAYERS[kind]
    assert layer.self_attn.dropout == 0.3
    assert kind is TransformerEncoderLayer or layer.multihead_attn.dropout == 0.3


# Activations


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("gelu", F.gelu), (F.silu, F.silu), (nn.Tanh(), torch.tanh), (torch.sin, torch.sin)],
    ids=["relu", "gelu", "function", "module", "torch function"],
)
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_activation_by_name_or_callable(kind: type, activation: Any, function: Callable[[Tensor], Tensor]) -> None:
    """The feed-forward branch uses the activation that was asked for, given by name, function or module."""
    layer = kind(D, H, FF, dropout=0.0, activation=activation, batch_first=True)
    *_, last = gates(layer).values()
    nn.init.ones_(last.alpha)
    x, *memory = sequences(kind, dtype=torch.float32)
    torch.testing.assert_close(layer(x, *memory), x + layer.linear2(function(layer.linear1(x))))


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_refuses_an_unknown_activation(kind: type) -> None:
    """An unknown name is an error in both layers, never silently ReLU."""
    with pytest.raises(ValueError, match="activation must be 'relu', 'gelu' or a callable: got 'swish'"):
        kind(D, H, FF, activation="swish")


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_refuses_an_unknown_share(kind: type) -> None:
    """A share other than the two is an error."""
    with pytest.raises(ValueError, match="share must be 'sublayer' or 'layer': got 'model'"):
        kind(D, H, FF, share="model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nhead": 3}, "embed_dim must be a positive multiple of num_heads: got 8 and 3"),
        ({"dropout": 1.5}, "dropout must be a probability from 0 to 1: got 1.5"),
        ({"init_value": float("nan")}, "init_value must be a finite number: got nan"),
    ],
    ids=["heads", "dropout", "init_value"],
)
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_refuses_arguments_out_of_range(kind: type, options: dict[str, Any], message: str) -> None:
    """Heads that do not divide, a dropout that is no probability and a start that is not finite are errors."""
    with pytest.raises(ValueError, match=message):
        kind(**{"d_model": D, "nhead": H, "dim_feedforward": FF, **options})


# Fused attention and padding


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_attention_is_fused(kind: type, training: bool) -> None:
    """The profiler shows scaled_dot_product_attention once an attention, in training and evaluation."""
    layer = kind(D, H, FF, batch_first=True).train(training)
    inputs = sequences(kind, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(*inputs)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("aten::scaled_dot_product_attention") == SUBLAYERS[kind] - 1


@pytest.mark.parametrize("alpha", [0.0, 0.5], ids=["closed", "open"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "seq first"])
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_a_fully_padded_row_stays_finite(kind: type, batch_first: bool, training: bool, alpha: float) -> None:
    """A row that is padded throughout passes the attentions unchanged, and every output and gradient is finite."""
    layer = kind(D, H, FF, dropout=0.0, batch_first=batch_first, init_value=alpha).train(training)
    inputs = tuple(x.requires_grad_() for x in sequences(kind, batch_first=batch_first, dtype=torch.float32))
    padding = torch.tensor([[False], [True]])
    names = ["src_key_padding_mask"] if len(inputs) == 1 else ["tgt_key_padding_mask", "memory_key_padding_mask"]
    masks = dict(zip(names, (padding.expand(B, T), padding.expand(B, S)), strict=False))
    y = layer(*inputs, **masks)
    assert y.isfinite().all()
    x_row, y_row = (z[1] if batch_first else z[:, 1] for z in (inputs[0], y))
    torch.testing.assert_close(y_row, x_row + alpha * layer.linear2(F.relu(layer.linear1(x_row))))
    y.square().sum().backward()
    for name, tensor in [*layer.named_parameters(), *zip("xm", inputs, strict=False)]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


# Inside torch's containers


@MIXED_MASKS
@pytest.mark.parametrize("masks", ["none", "bool", "float", "padding", "all"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_runs_inside_torchs_containers(kind: type, training: bool, masks: str) -> None:
    """nn.TransformerEncoder and nn.TransformerDecoder pass our layers the signal and their masks, layer by layer."""
    if kind is TransformerEncoderLayer:
        layer = kind(D, H, FF, dropout=0.0, batch_first=True)
        stack: nn.Module = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        each = encoder_masks(masks)
        given = {"mask" if name == "src_mask" else name: mask for name, mask in each.items()}
    else:
        layer = kind(D, H, FF, dropout=0.0, batch_first=True)
        stack = nn.TransformerDecoder(layer, 3)
        given = each = decoder_masks(masks)
    open_(stack.double().train(training))
    x, *memory = sequences(kind)
    with torch.no_grad():  # where torch would take its fused path
        y = stack(x, *memory, **given)
        for layer in stack.layers:
            x = layer(x, *memory, **each)
    torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_a_container_of_closed_layers_is_the_identity(kind: type) -> None:
    """A stack in torch's container returns its input bitwise at the start, in training and evaluation."""
    layer = kind(D, H, FF, dropout=0.5, batch_first=True)
    stack = (
        nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        if kind is TransformerEncoderLayer
        else nn.TransformerDecoder(layer, 12)
    )
    inputs = sequences(kind, dtype=torch.float32)
    assert torch.equal(stack.train()(*inputs), inputs[0])
    assert torch.equal(stack.eval()(*inputs), inputs[0])


def test_default_containers_warn_of_the_nested_path_alone() -> None:
    """With torch's default enable_nested_tensor the container says why it is off, and runs with padding."""
    layer = TransformerEncoderLayer(D, H, FF, batch_first=True)
    with pytest.warns(UserWarning, match="use_nested_tensor is False because encoder_layer was not Transformer"):
        stack = nn.TransformerEncoder(layer, 2)
    (x,) = sequences(TransformerEncoderLayer, dtype=torch.float32)
    padding = torch.tensor([[False] * T, [False] * 2 + [True] * 3])
    assert torch.equal(stack.eval()(x, src_key_padding_mask=padding), x)


def test_containers_detect_a_causal_mask() -> None:
    """A causal mask given to torch's container reaches our layer: no output sees the future."""
    stack = nn.TransformerEncoder(
        TransformerEncoderLayer(D, H, FF, dropout=0.0, batch_first=True, init_value=0.5), 2, enable_nested_tensor=False
    )
    (x,) = sequences(TransformerEncoderLayer, dtype=torch.float32)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    for hint in (None, True, False):
        y = stack(x, mask=mask, is_causal=hint)
        z = stack(torch.cat([x[:, :3], x[:, 3:] + 1], 1), mask=mask, is_causal=hint)
        torch.testing.assert_close(y[:, :3], z[:, :3])
        assert not torch.allclose(y[:, 3:], z[:, 3:])


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "seq first"])
def test_runs_inside_torchs_transformer(batch_first: bool) -> None:
    """nn.Transformer takes stacks of our layers as custom encoder and decoder, with all of its masks."""
    options = {"dropout": 0.0, "batch_first": batch_first, "init_value": 0.5}
    encoder = nn.TransformerEncoder(TransformerEncoderLayer(D, H, FF, **options), 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(TransformerDecoderLayer(D, H, FF, **options), 2)
    model = nn.Transformer(D, H, custom_encoder=encoder, custom_decoder=decoder, batch_first=batch_first).double()
    x, memory = sequences(TransformerDecoderLayer, batch_first=batch_first)
    causal, padding = torch.ones(T, T).triu(1).bool(), forbid(B, S)
    y = model(
        memory,
        x,
        tgt_mask=causal,
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )
    encoded = encoder(memory, src_key_padding_mask=padding)
    torch.testing.assert_close(y, decoder(x, encoded, tgt_mask=causal, memory_key_padding_mask=padding))
    assert not torch.allclose(y, x)


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_copies_in_a_container_start_equal_until_reset(kind: type) -> None:
    """torch's containers deep-copy one layer, so all start equal with equal first gradients; reset tells them apart."""
    layer = kind(D, H, FF, dropout=0.0, batch_first=True)
    stack = (
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        if kind is TransformerEncoderLayer
        else nn.TransformerDecoder(layer, 3)
    )
    inputs = sequences(kind, dtype=torch.float32)

    def first_gradients() -> list[Tensor]:
        stack.zero_grad()
        stack(*inputs).square().sum().backward()
        return [layer.gates[0].alpha.grad for layer in stack.layers]

    first, *others = (copy.deepcopy(layer.state_dict()) for layer in stack.layers)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    a, b, c = first_gradients()
    assert torch.equal(a, b)
    assert torch.equal(b, c)
    for layer in stack.layers:
        open_(layer)
        layer.reset_parameters()
    first, *others = (layer.state_dict() for layer in stack.layers)
    for key in first:
        drawn = "weight" in key or key.startswith("linear")  # attention biases and gates start at a constant
        assert all(torch.equal(first[key], other[key]) != drawn for other in others), key
    assert len({g.item() for g in first_gradients()}) == 3


# Initialisation


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_weights_start_as_those_of_torch(ours: type, theirs: type) -> None:
    """Each weight starts with the spread of torch's layer, on construction and on reset."""
    reference = dict(theirs(64, 4, 128).named_parameters())
    layer = ours(64, 4, 128)
    for _ in range(2):
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1:
                assert parameter.std().item() == pytest.approx(reference[name].std().item(), rel=0.05), name
            elif "alpha" in name:
                assert parameter.item() == 0.0
            else:
                assert parameter.abs().max().item() == pytest.approx(reference[name].abs().max().item(), rel=0.2), name
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 7.0)
        layer.reset_parameters()


@pytest.mark.parametrize("kind", OURS, ids=IDS)
def test_gates_are_registered_as_gates(kind: type) -> None:
    """The gates of a layer are Gate modules, so that param_groups and gates() know them."""
    layer = kind(D, H, FF)
    assert all(isinstance(gate, Gate) for gate in layer.gates)
    assert {id(gate.alpha) for gate in layer.gates} == {id(p) for n, p in layer.named_parameters() if "alpha" in n}
