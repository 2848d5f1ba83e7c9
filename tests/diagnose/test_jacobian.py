"""Singular values of Jacobians: against the matrix itself, against theory, and for input that has none."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import rezero
from rezero.diagnose import jacobian_spectrum
from rezero.diagnose.density import estimate_density, smooth
from rezero.diagnose.linear_map import LinearMap
from rezero.errors import UsageError
from rezero.layers import TransformerEncoderLayer

D = 8


def encoder(kind: str, layers: int = 3) -> nn.Module:
    """Make a small Transformer in float64."""
    if kind == "rezero":
        made = [TransformerEncoderLayer(D, 2, 16, batch_first=True, dropout=0.0) for _ in range(layers)]
    else:
        first = kind == "pre-norm"
        made = [nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=first) for _ in range(layers)]
    model = nn.Sequential(*made).double()
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.3)
    return model


def mlp(seed: int) -> nn.Module:
    """Make a network that narrows from 12 to 10."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 10)).double()


NETWORKS = {
    **{f"mlp {seed}": lambda seed=seed: (mlp(seed), torch.randn(2, 12, dtype=torch.float64)) for seed in range(4)},
    **{
        f"{kind} {layers}": lambda kind=kind, layers=layers: (
            encoder(kind, layers),
            torch.randn(2, 3, D, dtype=torch.float64),
        )
        for kind in ("rezero", "pre-norm", "post-norm")
        for layers in (2, 5)
    },
}


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobian of one example, from torch's own function."""
    made: Any = torch.autograd.functional.jacobian(model.eval(), x[None])
    return made.reshape(-1, x.numel())


@pytest.mark.parametrize("name", NETWORKS)
def test_all_singular_values_are_those_of_the_matrix(name: str) -> None:
    """Each example's are those of torch's Jacobian, and so is their mean square."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    found = jacobian_spectrum(model, x)
    for row, square, example in zip(found.singular_values, found.mean_squared, x, strict=True):
        expected = torch.linalg.svdvals(jacobian(model, example))
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(square, expected.square().mean())
    assert not found.mean_squared_error.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_products_give_the_same_ends(name: str) -> None:
    """The k largest agree to 1e-6 of each, the k smallest to 1e-6 of the largest, and the residuals say so."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    every, ends = jacobian_spectrum(model, x).singular_values, jacobian_spectrum(model, x, k=3)
    assert ((ends.singular_values[:, :3] / every[:, :3] - 1).abs() <= 1e-6).all()
    assert ((ends.singular_values[:, 3:] - every[:, -3:]).abs() <= 1e-6 * every[:, :1]).all()
    assert (ends.residuals <= 1e-10).all()
    exact = jacobian_spectrum(model, x).mean_squared
    assert ((ends.mean_squared - exact).abs() <= 5 * ends.mean_squared_error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [12, 128])
def test_a_closed_network_is_an_isometry(depth: int, dtype: torch.dtype) -> None:
    """At alpha = 0 every singular value is exactly 1."""
    layers = [TransformerEncoderLayer(D, 2, 16, batch_first=True) for _ in range(depth)]
    found = jacobian_spectrum(nn.Sequential(*layers).to(dtype), torch.randn(2, 3, D, dtype=dtype))
    assert (found.singular_values == 1).all()
    assert (found.mean_squared == 1).all()
    assert (found.condition == 1).all()
    assert (found.isometry == 0).all()


def he(width: int, depth: int, alpha: float) -> nn.Module:
    """Make gated blocks of He-initialised ReLU layers."""
    branches = [nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU()) for _ in range(depth)]
    for branch in branches:
        nn.init.kaiming_normal_(branch[0].weight)
    return nn.Sequential(*(rezero.ReZero(branch, gate=rezero.Gate(init_value=alpha)) for branch in branches))


def test_mean_square_is_that_of_theory() -> None:
    """He-initialised ReLU branches with a small alpha have a mean square of about (1 + alpha^2)^L."""
    torch.manual_seed(0)
    width, depth, alpha = 128, 40, 0.1
    found = jacobian_spectrum(he(width, depth, alpha), torch.randn(4, width))
    bulk = found.singular_values[:, 1:].square().mean()  # ReLUs have a mean, along which one value grows
    assert float(bulk) == pytest.approx((1 + alpha**2) ** depth, rel=0.05)
    assert found.singular_values[:, 0].min() > 2 * found.singular_values[:, 1].max()


@pytest.mark.parametrize(("width", "depth", "alpha"), [(32, 60, 0.1), (128, 60, 0.1), (64, 30, 0.1), (64, 30, 0.2)])
def test_the_largest_adds_what_falls_with_the_width(width: int, depth: int, alpha: float) -> None:
    """About exp(1.13 alpha L) / (2 width), within a factor of 1.5, whatever (1 + alpha^2)^L is."""
    torch.manual_seed(0)
    found = [jacobian_spectrum(he(width, depth, alpha), torch.randn(1, width)).mean_squared for _ in range(4)]
    added = float(torch.cat(found).mean()) - (1 + alpha**2) ** depth
    expected = math.exp(1.13 * alpha * depth) / (2 * width)
    assert 1 / 1.5 < added / expected < 1.5


def test_between_layers() -> None:
    """Of a stretch of a model, from the input of one layer to the output of another."""
    torch.manual_seed(0)
    model, x = mlp(0), torch.randn(1, 12, dtype=torch.float64)
    found = jacobian_spectrum(model, x, between=("1", "3"))
    with torch.no_grad():
        h = model[0](x)
    expected = torch.linalg.svdvals(jacobian(model[1:4], h[0]))
    torch.testing.assert_close(found.singular_values[0], expected)


def test_the_error_bars_of_the_density_cover_the_truth() -> None:
    """In 90 to 99% of 200 runs, place by place, where the error bars are those of 95%."""
    torch.manual_seed(0)
    matrix = torch.randn(30, 24, dtype=torch.float64) / 5
    product: Any = SimpleNamespace(shape=(30, 24), push=lambda v: matrix @ v, pull=lambda u: matrix.T @ u)
    truth, generator, covered = torch.linalg.svdvals(matrix), torch.Generator().manual_seed(0), []
    for _ in range(200):
        found = estimate_density(product, vectors=12, steps=24, points=60, generator=generator)
        inner = smooth(truth, found.at, found.width)
        bar = float(stats.t.ppf(0.975, found.vectors - 1)) * found.error
        covered.append(((found.density - inner).abs() <= bar)[inner > 0.05 * inner.max()].double().mean())
    assert 0.90 <= float(torch.stack(covered).mean()) <= 0.99
    assert float(torch.trapezoid(found.density, found.at)) == pytest.approx(1, abs=1e-3)


def test_the_density_of_a_function_is_that_of_its_matrix() -> None:
    """The products that derivatives give and those with the matrix lead to the same density and error."""
    torch.manual_seed(0)
    matrix = torch.randn(30, 24, dtype=torch.float64) / 5
    product: Any = SimpleNamespace(shape=(30, 24), push=lambda v: matrix @ v, pull=lambda u: matrix.T @ u)
    linear_map = LinearMap(lambda x: matrix @ x, torch.zeros(24, dtype=torch.float64))
    found, expected = (
        estimate_density(each, vectors=12, steps=24, points=60, generator=torch.Generator().manual_seed(0))
        for each in (linear_map, product)
    )
    torch.testing.assert_close(found.density, expected.density, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.error, expected.error, rtol=1e-8, atol=1e-10)


class Masked(nn.Module):
    """A model that looks at the sizes it is given, and has a buffer that it counts in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4).double()
        self.norm = nn.BatchNorm1d(4).double()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        """Return a dictionary."""
        return {"y": self.dropout(self.norm(self.fc(x)) * scale)}


def test_the_model_is_left_as_it_was() -> None:
    """Mode, buffers, gradients and random numbers; inputs by name are taken, and an output in a dictionary."""
    model, x = Masked().train(), torch.randn(3, 4, dtype=torch.float64)
    state, drawn = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    found = jacobian_spectrum(model, {"x": x, "scale": torch.full((3, 1), 2.0, dtype=torch.float64)}, k=1)
    assert found.singular_values.shape == (3, 2)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert model.dropout.training


def test_fused_attention_is_said() -> None:
    """The plain form of attention takes its place, and the result says so."""
    torch.manual_seed(0)
    model, x = encoder("rezero"), torch.randn(1, 3, D, dtype=torch.float64)
    [note] = jacobian_spectrum(model, x, k=1).notes
    assert jacobian_spectrum(encoder("pre-norm"), x, k=1).notes == (note,)
    assert note == "fused attention has no second derivative, it was computed in its plain form"
    assert not jacobian_spectrum(mlp(0), torch.randn(1, 12, dtype=torch.float64)).notes


class Checkpointed(nn.Module):
    """A model that recomputes its activations."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = mlp(0), reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Recompute."""
        out: Tensor = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return out


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_seen_through(reentrant: bool) -> None:
    """The singular values are those of the model without them."""
    x = torch.randn(1, 12, dtype=torch.float64)
    model = Checkpointed(reentrant=reentrant)
    expected = jacobian_spectrum(model.inner, x)
    assert torch.equal(jacobian_spectrum(model, x).singular_values, expected.singular_values)
    ends = jacobian_spectrum(model, x, k=2).singular_values
    torch.testing.assert_close(ends, jacobian_spectrum(model.inner, x, k=2).singular_values)


def test_a_model_may_write_into_its_input() -> None:
    """As with nn.ReLU(inplace=True); the input stays as it was."""
    x = torch.tensor([[1.0, -2.0, 3.0]])
    found = jacobian_spectrum(nn.ReLU(inplace=True), x)
    assert found.singular_values.tolist() == [[1, 1, 0]]
    assert x.tolist() == [[1, -2, 3]]


class Detached(nn.Module):
    """A model that lets no gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        """Detach."""
        return x.detach() * 2


def linear(x: Any, **options: Any) -> Any:
    return jacobian_spectrum(nn.Linear(4, 4), x, **options)


def filled(value: float) -> nn.Module:
    """Make a layer whose weights are all one number."""
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: linear(torch.ones(2, 4, dtype=torch.long)), "is of whole numbers .* start at a layer behind"),
        (lambda: linear(torch.ones(2, 4, dtype=torch.complex64)), "is complex .*: expected real numbers"),
        (lambda: jacobian_spectrum(nn.Linear(4, 4).half(), torch.ones(2, 4).half()), "float16, too coarse"),
        (lambda: linear(torch.ones(2, 4, device="meta")), "the input is on meta, the model on cpu"),
        (lambda: linear(torch.ones(0, 4)), "expected a batch of one example or more, got an empty one"),
        (lambda: linear(torch.ones(2, 5)), "can't be run on the example input in .*cannot be multiplied"),
        (lambda: linear(torch.full((2, 4), torch.nan)), "the input is nan or infinite"),
        (lambda: jacobian_spectrum(filled(torch.nan), torch.ones(2, 4)), "is not finite in torch.float32"),
        (lambda: jacobian_spectrum(filled(1e30), torch.ones(2, 4), k=1), "is not finite .*double"),
        (lambda: linear(torch.ones(2, 4), density=1), "2 random vectors or more"),
        (lambda: linear(torch.ones(2, 4), k=1, probes=1), "2 random vectors or more"),
        (lambda: jacobian_spectrum(nn.LazyLinear(2), torch.ones(2, 4)), "'weight' has no shape yet"),
        (lambda: linear(torch.ones(2, 4), k=5), "expected k from 0 to 4, for there are 4 singular values, got 5"),
        (lambda: linear(torch.ones(2, 4), k=-1), "expected k from 0 to 4"),
        (lambda: jacobian_spectrum(nn.Identity(), torch.ones(1, 3000), k=3000), "expected k from 0 to 2999"),
        (lambda: linear(torch.ones(2, 4), between=("", "fc1")), "has no layer 'fc1'"),
        (lambda: jacobian_spectrum(Detached(), torch.ones(1, 3)), "no derivative by the input: .* or is detached"),
        (lambda: linear(torch.tensor(1.0)), "expected an input with a batch along its first axis"),
        (lambda: jacobian_spectrum(nn.Identity(), torch.ones(1, 3000)), "3000 x 3000, too large for all .* k=10"),
        (
            lambda: jacobian_spectrum(mlp(0), torch.ones(1, 12).double(), between=("2", "0")),
            "'2' is not called before '0'",
        ),
    ],
    ids=[
        *(
            "whole",
            "complex",
            "half",
            "device",
            "empty",
            "width",
            "nan",
            "nan weights",
            "overflow",
            "density",
            "probes",
        ),
        *("lazy", "k", "negative", "too many", "layer", "detached", "batch", "large", "order"),
    ],
)
def test_bad_input(call: Any, error: str) -> None:
    """One clear line each."""
    with pytest.raises(UsageError, match=error):
        call()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: jacobian_spectrum(torch.relu, torch.ones(2, 4)), "model must be an nn.Module: got builtin"),
        (lambda: linear(torch.ones(2, 4), k=1.5), "k must be a whole number: got 1.5"),
        (lambda: linear(torch.ones(2, 4), k=True), "k must be a whole number: got True"),
        (lambda: linear(torch.ones(2, 4), density=0.5), "density must be a whole number: got 0.5"),
        (lambda: linear(torch.ones(2, 4), seed=None), "seed must be a whole number: got None"),
        (lambda: linear(torch.ones(2, 4), between=(0, 1)), "expected the name of a layer, .* got 0"),
    ],
    ids=["function", "float", "bool", "density", "seed", "places"],
)
def test_what_is_of_another_type(call: Any, error: str) -> None:
    """One clear line each, before anything is run."""
    with pytest.raises(TypeError, match=error):
        call()


@pytest.mark.parametrize(("k", "which"), [(5, "both"), (6, "both"), (10, "largest"), (10, "smallest")])
def test_all_are_exact_however_they_are_asked_for(k: int, which: Any) -> None:
    """Where the ends meet nothing is estimated."""
    model, x = mlp(0), torch.randn(2, 12, dtype=torch.float64)
    found, every = jacobian_spectrum(model, x, k=k, which=which), jacobian_spectrum(model, x)
    assert torch.equal(found.singular_values, every.singular_values)
    assert torch.equal(found.mean_squared, every.mean_squared)
    assert not found.mean_squared_error.any()
    assert str(found) == str(every)


def test_a_singular_jacobian_has_an_infinite_condition() -> None:
    """Also that of zero, which has nothing to divide."""
    layer = nn.Linear(3, 3).double()
    for diagonal in ([0.0, 0.0, 0.0], [2.0, 1.0, 0.0]):
        layer.weight.data = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        assert jacobian_spectrum(layer, torch.ones(1, 3).double()).condition.tolist() == [math.inf]


def test_examples_go_through_the_model_one_by_one() -> None:
    """What a model does with the batch it does with a batch of one."""

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(0)

    assert (jacobian_spectrum(Pooled(), torch.randn(4, 3)).singular_values == 2).all()


def test_between_is_a_pair() -> None:
    """Not a word, whose letters would be names."""
    with pytest.raises(ValueError, match="between must be the names of two layers"):
        linear(torch.ones(2, 4), between="01")


def test_a_map_to_zero_has_singular_values_of_zero() -> None:
    """By ARPACK too, which takes no start that is mapped to zero."""
    layer = nn.Linear(9, 9)
    nn.init.zeros_(layer.weight)
    found = jacobian_spectrum(layer, torch.randn(2, 9), k=2)
    assert torch.equal(found.singular_values, torch.zeros(2, 4, dtype=torch.float64))


def test_the_null_space_of_a_layer_norm_hides_nothing() -> None:
    """It maps constants to zero, and 10 more directions are found as from the matrix."""
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = jacobian_spectrum(nn.LayerNorm(12).double(), x).singular_values[0]
    found = jacobian_spectrum(nn.LayerNorm(12).double(), x, k=3).singular_values[0]
    torch.testing.assert_close(found, torch.cat([whole[:3], whole[-3:]]), rtol=1e-6, atol=1e-6)


def test_no_singular_value_is_there_twice() -> None:
    """Where both ends would overlap, the smallest end is the rest."""
    layer, x = nn.Linear(4, 4).double(), torch.randn(1, 4, dtype=torch.float64)
    found, whole = jacobian_spectrum(layer, x, k=3), jacobian_spectrum(layer, x)
    torch.testing.assert_close(found.singular_values, whole.singular_values)


def test_inference_mode_around_it_changes_nothing() -> None:
    """Neither for the model nor for an input that was made in it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.inference_mode():
        x = torch.randn(2, 4)
        found = jacobian_spectrum(model, x)
    assert torch.equal(found.singular_values, jacobian_spectrum(model, x.clone()).singular_values)


def test_a_model_that_catches_errors_is_watched_all_the_same() -> None:
    """What stops the pass at the last layer is no error that it could catch."""

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)
            except Exception:
                return x

    model, x = Catches(), torch.randn(1, 4)
    found = jacobian_spectrum(model, x, between=("inner", "inner")).singular_values[0]
    torch.testing.assert_close(found, torch.linalg.svdvals(model.inner.weight.double()), rtol=1e-5, atol=1e-6)


def test_an_embedding_with_a_largest_norm_is_put_back() -> None:
    """It writes into its table when it looks something up."""
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 4))
    before = model[0].weight.detach().clone()
    jacobian_spectrum(model, torch.tensor([[1], [2]]), between=("1", "1"))
    assert torch.equal(model[0].weight, before)
