"""The Perceiver resampler: its formula, its mask, and any number of axes before the sequence."""

# B batch, S inputs, L latents, D width

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import gates
from rezero.layers import PerceiverResampler
from tests.layers.test_cross_attention import ACTIVATIONS, attend, linear, norm

B, S, L, D, H = 3, 5, 4, 8, 2
F64 = torch.float64
OPTIONS: dict[str, dict[str, Any]] = {
    "flamingo": {},
    "other": {"qk_norm": True, "bias": True, "activation": "gelu"},
    "no feed-forward": {"ff_mult": 0},
}
every_kind = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(**options: Any) -> PerceiverResampler:
    resampler = PerceiverResampler(D, depth=2, num_latents=L, num_heads=H, **options).double()
    for parameter in resampler.parameters():
        nn.init.normal_(parameter, std=0.5)
    return resampler


def twin(resampler: PerceiverResampler, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula for (B, S, D), from the parameters."""
    p, told = dict(resampler.named_parameters()), resampler.arguments()
    z = torch.stack([p["latents"]] * len(x))
    if mask is not None:
        mask = torch.cat([mask, torch.ones(len(x), L, dtype=torch.bool)], 1)
    for i in range(told["depth"]):
        at = f"layers.{i}"
        h = norm(p, f"{at}.norm", z)
        context = torch.cat([norm(p, f"{at}.input_norm", x), h], 1)
        z = z + attend(p, f"{at}.attention", h, context, mask, told["num_heads"])
        if told["ff_mult"]:
            h = linear(p, f"{at}.feed_forward.linear1", norm(p, f"{at}.feed_forward.norm", z))
            z = z + linear(p, f"{at}.feed_forward.linear2", ACTIVATIONS[told["activation"]](h))
    return norm(p, "norm", z)


def some() -> Tensor:
    """A mask (B, S) that hides some inputs, and of the first sequence all."""
    mask = torch.rand(B, S) < 0.5
    mask[0], mask[1, 0], mask[2, 1] = False, True, True
    return mask


MASKS: dict[str, Callable[[], Tensor | None]] = {"none": lambda: None, "some": some}


@every_kind
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_is_the_formula(options: dict[str, Any], mask: Callable[[], Tensor | None]) -> None:
    """Output and every gradient are those of the formula, written out, with and without a mask."""
    resampler, given, x = build(**options), mask(), torch.randn(B, S, D, dtype=F64, requires_grad=True)
    results = []
    for y in (resampler(x, given), twin(resampler, x, given)):
        weights = torch.linspace(-1, 1, y.numel(), dtype=F64).view(y.shape)
        results.append((y, torch.autograd.grad((y * weights).sum(), [x, *resampler.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert all(g.any() for g in results[0][1])


@pytest.mark.parametrize("outer", [(), (B,), (2, B), (2, 1, B)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_sequences_are_read_one_by_one(outer: tuple[int, ...], masked: bool) -> None:
    """Whatever axes come before it, each sequence gives what it gives alone, with its own mask."""
    resampler, x = build(), torch.randn(*outer, S, D, dtype=F64)
    mask = torch.rand(*outer, S) < 0.5 if masked else None
    y = resampler(x, mask)
    assert y.shape == (*outer, L, D)
    rows = mask.reshape(-1, 1, S) if mask is not None else [None] * y[..., 0, 0].numel()
    alone = [resampler(each[None], row) for each, row in zip(x.reshape(-1, S, D), rows, strict=True)]
    torch.testing.assert_close(y.reshape(-1, L, D), torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_what_is_masked_is_as_if_it_were_not_there() -> None:
    """Inputs behind the mask can be left out, and the order of the others does not matter."""
    resampler, x = build(), torch.randn(1, S, D, dtype=F64)
    mask = torch.tensor([[True, False, True, False, True]])
    torch.testing.assert_close(resampler(x, mask), resampler(x[:, [4, 0, 2]]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("empty", [False, True], ids=["all masked", "no inputs"])
def test_without_inputs_the_latents_see_each_other(empty: bool) -> None:
    """With every input masked, or none there, the output is finite and the same for every sequence."""
    resampler = build()
    x = torch.randn(B, 0 if empty else S, D, dtype=F64)
    y = resampler(x, torch.zeros(x.shape[:-1], dtype=torch.bool))
    assert y.isfinite().all()
    torch.testing.assert_close(y, y[:1].expand_as(y), rtol=1e-12, atol=1e-12)


@every_kind
def test_gradients_pass_gradcheck(options: dict[str, Any]) -> None:
    """In float64 the gradients of inputs, latents and weights pass gradcheck, with a mask."""
    resampler, mask = build(**options), some()
    names = [name for name, _ in resampler.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(resampler, dict(zip(names, values, strict=True)), (x, mask))
        return y

    x = torch.randn(B, S, D, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *resampler.parameters()), fast_mode=True)


def test_residuals_have_no_gates() -> None:
    """There is no gate in it: the latents read their inputs from the first step on."""
    resampler = PerceiverResampler(D, depth=2, num_latents=L, num_heads=H)
    assert gates(resampler) == {}
    x = torch.randn(2, S, D)
    assert not torch.allclose(resampler(x)[0], resampler(x)[1])


def test_dropout_acts_in_training_only() -> None:
    """Dropout changes the output in training and rests in evaluation."""
    resampler, x = build(dropout=0.5), torch.randn(B, S, D, dtype=F64)
    assert not torch.equal(resampler(x), resampler(x))
    torch.testing.assert_close(resampler.eval()(x), twin(resampler, x), rtol=1e-10, atol=1e-10)


def test_exports_with_dynamic_shapes() -> None:
    """The resampler exports with batch and length left open, with a mask."""
    resampler = build().eval()
    batch, length = torch.export.Dim("batch", min=2, max=32), torch.export.Dim("length", min=2, max=32)
    given = torch.randn(B, S, D, dtype=F64), torch.rand(B, S) < 0.5
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    program = torch.export.export(resampler, given, dynamic_shapes=shapes, strict=False).module()
    other = torch.randn(5, 7, D, dtype=F64), torch.rand(5, 7) < 0.5
    torch.testing.assert_close(program(*other), resampler(*other))


def test_state_dict_has_these_keys() -> None:
    """The names and shapes of all parameters, on which saved files rest."""
    resampler = PerceiverResampler(D, depth=1, num_latents=L, num_heads=H, qk_norm=True)
    assert {name: tuple(value.shape) for name, value in resampler.state_dict().items()} == {
        "latents": (4, 8),
        "layers.0.attention.query.weight": (8, 8),
        "layers.0.attention.key.weight": (8, 8),
        "layers.0.attention.value.weight": (8, 8),
        "layers.0.attention.out.weight": (8, 8),
        "layers.0.attention.query_norm.weight": (4,),
        "layers.0.attention.key_norm.weight": (4,),
        "layers.0.norm.weight": (8,),
        "layers.0.norm.bias": (8,),
        "layers.0.input_norm.weight": (8,),
        "layers.0.input_norm.bias": (8,),
        "layers.0.feed_forward.norm.weight": (8,),
        "layers.0.feed_forward.norm.bias": (8,),
        "layers.0.feed_forward.linear1.weight": (32, 8),
        "layers.0.feed_forward.linear2.weight": (8, 32),
        "norm.weight": (8,),
        "norm.bias": (8,),
    }


def test_latents_start_normal() -> None:
    """The latents start with mean 0 and standard deviation 1, and reset draws them anew."""
    resampler = PerceiverResampler(200, depth=1, num_latents=100, num_heads=2)
    before = resampler.latents.detach().clone()
    resampler.reset_parameters()
    assert not torch.equal(resampler.latents, before)
    assert resampler.latents.mean().abs() < 0.03
    assert resampler.latents.std().item() == pytest.approx(1, rel=0.02)


def test_takes_device_and_dtype() -> None:
    """Parameters are made on the device and in the dtype asked for."""
    resampler = PerceiverResampler(D, depth=1, num_latents=L, num_heads=H, device="meta", dtype=torch.bfloat16)
    for name, parameter in resampler.named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == torch.bfloat16, name


def test_arguments_are_plain_values() -> None:
    """The arguments are what the resampler was built with, defaults included, without device and dtype."""
    resampler = PerceiverResampler(D, depth=1, num_latents=L, num_heads=H, dtype=F64)
    expected = {"dim": 8, "depth": 1, "num_latents": 4, "num_heads": 2, "ff_mult": 4, "activation": "squared_relu"}
    expected |= {"qk_norm": False, "dropout": 0.0, "bias": False}
    assert resampler.arguments() == json.loads(json.dumps(resampler.arguments())) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 7}, "dim must be a positive multiple of num_heads: got 7 and 2"),
        ({"depth": 0}, "depth must be at least 1: got 0"),
        ({"num_latents": 0}, "num_latents must be at least 1: got 0"),
        ({"ff_mult": -1}, "ff_mult must be at least 0, which leaves the feed-forward branch out: got -1"),
        ({"activation": "mish"}, "no activation is called 'mish'"),
        ({"dropout": 2.0}, "dropout must be a probability from 0 to 1: got 2"),
    ],
    ids=["dim", "depth", "num_latents", "ff_mult", "activation", "dropout"],
)
def test_refuses_arguments_out_of_range(changed: dict[str, Any], message: str) -> None:
    """An argument that is out of range or unknown is an error that names it."""
    with pytest.raises(ValueError, match=message):
        PerceiverResampler(**{"dim": D, "depth": 1, "num_latents": L, "num_heads": H} | changed)


X = torch.zeros(B, S, D)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X[..., 1:],), r"x must be \(\*, S, D\) with D = 8: got \(3, 5, 7\)"),
        ((X[0, 0],), r"x must be \(\*, S, D\) with D = 8: got \(8,\)"),
        ((X.half(),), "x is torch.float16, the layer's weights are torch.float32: convert one of them"),
        ((X, torch.ones(B, S)), r"mask must be boolean \(3, 5\), True at the inputs .* got torch.float32 \(3, 5\)"),
        ((X, torch.ones(S).bool()), r"mask must be boolean \(3, 5\), True at the inputs .* got torch.bool \(5,\)"),
    ],
    ids=["width", "axes", "dtype", "mask dtype", "mask shape"],
)
def test_refuses_inputs_that_do_not_fit(given: tuple[Tensor, ...], message: str) -> None:
    """A shape or dtype that does not fit is an error that says what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        PerceiverResampler(D, depth=1, num_latents=L, num_heads=H)(*given)


def test_padding_that_is_not_a_number_leaves_no_trace() -> None:
    """Neither in the output nor in any gradient."""
    resampler = build()
    x = torch.randn(B, S, D, dtype=F64)
    mask = torch.arange(S).expand(B, S) < 3
    padded = x.masked_fill(~mask[..., None], float("nan"))
    y = resampler(padded, mask)
    assert torch.equal(y, resampler(x.masked_fill(~mask[..., None], 0.0), mask))
    y.sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in resampler.parameters())


def test_a_mask_that_is_no_tensor_or_elsewhere_is_told() -> None:
    """In the words of the caller."""
    resampler, x = build(), torch.randn(B, S, D, dtype=F64)
    with pytest.raises(TypeError, match="mask must be a boolean tensor: got list"):
        resampler(x, [[True] * S] * B)
    with pytest.raises(ValueError, match=r"mask is on meta, x is on cpu: move it with .to"):
        resampler(x, torch.ones(B, S, dtype=torch.bool, device="meta"))
