"""A few steps of networks of rising depth: against closed forms, and what is said of rules that fail."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rezero
from rezero.charts import save
from rezero.diagnose import DepthCheck, depth_check
from rezero.diagnose.depth_verdict import judge
from rezero.errors import UsageError
from rezero.layers import MLP

ALPHA, LR = 0.1, 0.01
ONES = torch.ones(2, 3, dtype=torch.float64)


def powers(depth: int) -> nn.Module:
    """Make a network that computes ``(1 + alpha)^depth x``, with all gates alike."""
    gates = [rezero.Gate(init_value=ALPHA, dtype=torch.float64) for _ in range(depth)]
    return nn.Sequential(*(rezero.ReZero(nn.Identity(), gate=gate) for gate in gates))


def upwards(output: Tensor) -> Tensor:
    """A loss that falls as the output rises."""
    return -output.mean()


def adagrad(model: nn.Module, rate: Callable[[int], float] = lambda _: LR) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=rate(len(list(model.parameters()))))


def sgd(model: nn.Module, rate: float = LR) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


def check(optimizer: Any = adagrad, depths: Any = (16, 64), steps: int = 1) -> DepthCheck:
    return depth_check(powers, ONES, upwards, optimizer=optimizer, depths=depths, steps=steps, seeds=(0,))


def test_numbers_of_the_first_step_are_those_of_the_closed_form() -> None:
    """Adagrad moves every gate by its rate: the output goes from (1 + alpha)^L to (1 + alpha + lr)^L."""
    for each in check().measurements:
        before, after = 1.1**each.depth, (1.1 + LR) ** each.depth
        moved = each.step == 1
        assert each.loss == pytest.approx(-after if moved else -before)
        assert each.activation == pytest.approx(after if moved else before)
        assert each.change == pytest.approx(after / before - 1 if moved else 0.0)
        assert each.gate_update == pytest.approx(LR if moved else 0.0)
        assert each.update == 0.0


def test_later_steps_go_on_from_there() -> None:
    """With SGD each gate moves by lr (1 + alpha)^(L - 1), and the change counts from the start."""
    alpha, depth = ALPHA, 5
    rows = check(sgd, (depth,), steps=4).measurements
    assert [each.step for each in rows] == [0, 1, 2, 3, 4]
    for each in rows[1:]:
        step = LR * (1 + alpha) ** (depth - 1)
        alpha += step
        assert each.gate_update == pytest.approx(step)
        assert each.change == pytest.approx((1 + alpha) ** depth / 1.1**depth - 1)


def test_weights_and_gates_are_told_apart() -> None:
    """At alpha = 0 the first step of SGD moves no weight inside a branch, and the gates by lr times their gradient."""

    def build(depth: int) -> nn.Module:
        return nn.Sequential(*(rezero.ReZero(nn.Linear(3, 3)) for _ in range(depth)))

    x = torch.randn(4, 3)
    found = depth_check(build, x, upwards, optimizer=sgd, depths=(2,), steps=1, seeds=(7,))
    torch.manual_seed(7)
    branches = [block.branch for block in build(2)]  # type: ignore[union-attr]
    steps = torch.stack([LR * branch(x).mean() for branch in branches]).detach()  # type: ignore[operator]
    assert found.measurements[1].gate_update == pytest.approx(float(steps.square().mean().sqrt()))
    assert found.measurements[1].update == 0.0


def test_rules_that_explode_are_named_and_others_are_not() -> None:
    """A fixed rate explodes at the depth of the closed form, 1 / L is steady, 1 / L^2 stands still."""
    rules = {
        "fixed": (powers, adagrad),
        "inverse": (powers, partial(adagrad, rate=lambda depth: 1 / depth)),
        "square": (powers, partial(adagrad, rate=lambda depth: depth**-2.0)),
    }
    depths = (16, 32, 64, 128, 256)
    found = depth_check(rules, ONES, upwards, depths=depths, steps=1, seeds=(0,))
    fixed, inverse, square = found.verdicts
    assert [each.kind for each in found.verdicts] == ["explodes", "steady", "shrinks"]
    assert fixed.exceeds == next(depth for depth in depths if (1.11 / 1.1) ** depth - 1 > math.e)
    assert fixed.largest == pytest.approx((1.11 / 1.1) ** 256 - 1)
    assert square.slope == pytest.approx(-1, abs=0.05)
    assert inverse.exceeds is None
    assert str(fixed).startswith("fixed explodes: the first step's change of the output follows depth^")
    assert "exceeds e times the output at depth 256 and reaches" in str(fixed)
    assert str(inverse).startswith(
        "inverse steady: the first step's change of the output stays within a factor of 1.0 from depth 16 to 256"
    )
    assert str(square) == "square shrinks: the first step's change of the output follows depth^-1.0"
    assert str(found).splitlines() == [str(each) for each in found.verdicts]


def test_a_loss_that_the_first_step_multiplies_has_jumped() -> None:
    """By the factor of the closed form; a loss below zero can't be held against itself."""
    over = partial(adagrad, rate=lambda _: 3.0)  # far past the minimum: from 1.1^L to (-1.9)^L
    found = depth_check(powers, ONES, torch.mean, optimizer=over, depths=(2, 4), steps=1, seeds=(0,))
    assert found.jump("model", 2) == pytest.approx((1.9 / 1.1) ** 2)
    assert found.verdicts[0].jumps == 2
    assert check(depths=(2,)).jump("model", 2) is None


def deep_tanh(depth: int) -> nn.Module:
    """Make a plain network that forgets its input on the way."""
    hidden = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(8, 32), *hidden, nn.Linear(32, 3))


def test_a_deep_network_that_learns_nothing_of_its_input_stands_still() -> None:
    """Its biases move the output by the same amount at every depth, but that of all examples alike."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    targets = x[:, :3].argmax(1)

    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    rules = {"plain": (deep_tanh, adamw), "rezero": (lambda depth: MLP(8, 32, depth, 3), adamw)}
    found = depth_check(rules, x, partial(nn.functional.cross_entropy, target=targets), depths=(8, 128), seeds=(0,))
    plain, gated = found.verdicts
    assert plain.slope == pytest.approx(0, abs=0.25)
    assert (plain.kind, plain.alike) == ("still", 128)
    assert str(plain) == "plain stands still: after the last step all examples have the same output at depth 128"
    assert (gated.kind, gated.alike) == ("steady", None)
    assert found.measurements[0].contrast > 1e-2


def test_one_depth_is_not_steady() -> None:
    """There is nothing to compare; a network that explodes or moves nowhere is told of all the same."""
    [verdict] = check(depths=(4,)).verdicts
    assert verdict.kind == "unknown"
    assert str(verdict) == "model unknown: the change of the output is known at one depth, and takes two to compare"
    assert check(partial(sgd, rate=1e3), (16,)).verdicts[0].kind == "explodes"
    assert check(partial(sgd, rate=0.0), (4, 8)).verdicts[0].kind == "still"


VERDICTS: dict[str, tuple[dict[int, float | None], dict[int, float], str]] = {
    "grows": ({8: 0.1, 32: 0.2}, {8: 1, 32: 1}, "r grows: the first step's change of the output follows depth^0.5"),
    "lost": (
        {8: 0.1, 16: 0.1, 32: math.inf},
        {8: 1, 16: 1, 32: math.inf},
        "r explodes: the first step's change of the output exceeds e times the output at depth 32 and reaches 0.1 "
        "times before; the loss more than doubles at depth 32; not finite at depth 32",
    ),
    "nowhere": ({8: 0.0, 32: None}, {8: 1, 32: 1}, "r: the first step changes nothing"),
    "jump": (
        {8: 1.0, 32: 1.0},
        {8: 1, 32: 3},
        "r steady: the first step's change of the output stays within a factor of 1.0 from depth 8 to 32; "
        "the loss more than doubles at depth 32",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_in_words(name: str) -> None:
    """Each kind of rule in one line."""
    changes, jumps, words = VERDICTS[name]
    assert str(judge("r", changes, jumps)) == words
    assert judge("r", changes, jumps).to_json()["words"] == words


def test_what_is_not_finite_is_marked(tmp_path: Any) -> None:
    """A network whose numbers overflow has no further steps, counts as infinite, and has its mark in the chart."""
    found = check(partial(sgd, rate=1e3), (16, 32, 64), steps=5)
    steps = [each.step for each in found.measurements if each.depth == 64]
    assert steps[-1] < 5
    assert not found.measurements[-1].finite
    assert found.values("loss", "model", 64, 5) == [math.inf]
    assert found.median("update", "model", 64, 5) == math.inf
    assert found.to_json()["measurements"][-1]["loss"] is None
    [svg] = save(found.chart(), tmp_path / "chart", ("svg",))
    text = svg.read_text()
    for title in (
        "step 1: loss",
        "step 5: loss",
        "step 1: relative change of the output",
        "root mean square of the gates",
    ):
        assert title in text
    assert "not finite" in text


def test_an_overflow_at_the_start_of_deep_networks_is_a_measurement() -> None:
    """The shallow ones are told of all the same."""

    def build(depth: int) -> nn.Module:
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 1e6)
        return model

    found = depth_check(build, torch.ones(2, 3), upwards, optimizer=sgd, depths=(1, 8), steps=1, seeds=(0, 1))
    assert [(each.depth, each.step, each.finite) for each in found.measurements if each.seed == 0] == [
        (1, 0, True),
        (1, 1, True),
        (8, 0, False),
    ]
    assert found.verdicts[0].lost == 8


def test_dropout_and_random_numbers_do_not_count() -> None:
    """Without a rate the output does not change; torch's generator is left as it was, even by Ctrl-C."""
    x, drawn = torch.randn(4, 6), torch.get_rng_state()

    def build(depth: int) -> nn.Module:
        return nn.Sequential(MLP(6, 4, depth, 2, residual="residual"), nn.Dropout(0.5))

    told: list[float] = []
    still = partial(sgd, rate=0.0)
    found = depth_check(
        build, {"input": x}, upwards, optimizer=still, depths=(2, 4), steps=2, tell=lambda share, _: told.append(share)
    )
    assert {each.change for each in found.measurements} == {0.0}
    assert len({each.loss for each in found.measurements}) == 6  # a number for each depth and seed
    assert told == sorted(told)
    assert told[-1] == 1
    assert torch.equal(torch.get_rng_state(), drawn)

    def stop(share: float, _doing: str) -> None:
        if share > 0.5:
            raise KeyboardInterrupt("halfway")

    with pytest.raises(KeyboardInterrupt, match="halfway"):
        depth_check(build, {"input": x}, upwards, optimizer=still, depths=(2, 4), steps=2, tell=stop)
    assert torch.equal(torch.get_rng_state(), drawn)


def bad(build: Any = powers, optimizer: Any = sgd, **options: Any) -> DepthCheck:
    given = {"x": ONES, "loss_fn": upwards, "depths": (2, 4), "steps": 1, **options}
    return depth_check(build, given.pop("x"), given.pop("loss_fn"), optimizer=optimizer, **given)


def filled(value: float) -> Callable[[int], nn.Module]:
    def build(depth: int) -> nn.Module:
        model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(depth))).double()
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        return model

    return build


@pytest.mark.parametrize(
    ("call", "kind", "error"),
    [
        (lambda: bad(nn.Linear(2, 2), None), TypeError, "expected a function build.* got Linear and NoneType"),
        (lambda: bad(powers(3)), TypeError, "got Sequential and function; .* give the function of the depth"),
        (lambda: bad({"a": (powers(3), sgd)}, None), TypeError, "expected rule 'a' to be a pair of functions"),
        (lambda: bad({"a": (powers, sgd)}), TypeError, "the optimizer of each rule beside its build"),
        (lambda: bad({"a": powers}, None), TypeError, "expected rule 'a' to be a pair of functions"),
        (lambda: bad({}, None), UsageError, "expected at least one rule, got an empty mapping"),
        (lambda: bad(depths=()), UsageError, r"depths must rise, from 1 or more, .* got \(\)"),
        (lambda: bad(depths=(8, 4)), UsageError, r"depths must rise, from 1 or more, .* got \(8, 4\)"),
        (lambda: bad(depths=(0, 4)), UsageError, r"depths must rise, from 1 or more, .* got \(0, 4\)"),
        (lambda: bad(steps=0), UsageError, "steps must be at least 1: got 0"),
        (lambda: bad(seeds=(1, 1)), UsageError, r"expected at least one seed, each once: got \(1, 1\)"),
        (lambda: bad(lambda depth: depth), TypeError, r"model: expected build\(2\) to return an nn\.Module, got int"),
        (lambda: bad(optimizer=lambda _: 3), TypeError, "model: expected a torch optimizer of the model, got int"),
        (lambda: bad(loss_fn=lambda y: y), UsageError, "returns one number with a gradient, got a tensor of shape"),
        (lambda: bad(filled(math.nan)), UsageError, "model: loss or output are not finite at the start at depth 2"),
        (lambda: bad(filled(0.0)), UsageError, "model: the output is zero at the start at depth 2"),
        (lambda: bad(x=ONES.to("meta")), UsageError, "the input is on meta, the model on cpu"),
    ],
    ids=[
        *(
            "one",
            "a model",
            "a model of several",
            "two optimizers",
            "pair",
            "empty",
            "no depths",
            "falling",
            "zero",
            "steps",
            "seeds",
            "no module",
        ),
        *("no optimizer", "vector", "not finite", "silent", "device"),
    ],
)
def test_bad_input(call: Any, kind: type[Exception], error: str) -> None:
    """One clear line each, before any step."""
    with pytest.raises(kind, match=error):
        call()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"depths": (1.5, 2)}, "each depth must be a whole number: got 1.5"),
        ({"depths": "12"}, "expected several numbers, each a depth"),
        ({"depths": 4}, "expected several numbers, each a depth"),
        ({"steps": 1.5}, "steps must be a whole number: got 1.5"),
        ({"seeds": (True,)}, "each seed must be a whole number: got True"),
        ({"loss_fn": 3}, "expected loss_fn to be a function of a model's output, got int"),
        ({"rules": {1: (powers, adagrad)}, "optimizer": None}, "expected rules by their names, got 1"),
    ],
    ids=["half depth", "word", "one depth", "half step", "bool", "loss", "rule"],
)
def test_what_is_of_another_type(options: dict[str, Any], error: str) -> None:
    """One clear line each, before anything is built."""
    given = {"rules": powers, "x": ONES, "loss_fn": upwards, "optimizer": adagrad, "depths": (1, 2)} | options
    with pytest.raises(TypeError, match=error):
        depth_check(**given)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"x": ONES.float()}, "can't be run on the example input in .*dtype"),
        ({"optimizer": lambda model: torch.optim.LBFGS(model.parameters())}, "takes no closure, got LBFGS"),
        ({"seeds": (2**70,)}, "each seed must fit into 64 bits"),
        ({"rules": lambda _: nn.LazyLinear(2), "optimizer": lambda _: sgd(nn.Linear(1, 1))}, "has no shape yet"),
    ],
    ids=["dtype", "closure", "seed", "lazy"],
)
def test_what_cannot_be_trained(options: dict[str, Any], error: str) -> None:
    """One clear line each."""
    linear = {"rules": lambda depth: nn.Sequential(*(nn.Linear(3, 3).double() for _ in range(depth)))}
    given = {"x": ONES, "loss_fn": upwards, "optimizer": sgd, "depths": (1, 2), "tell": lambda *_: None}
    with pytest.raises(UsageError, match=error):
        depth_check(**given | linear | options)


def test_an_error_of_build_says_at_which_depth() -> None:
    """In a note to the error, which is the user's own."""

    def build(depth: int) -> nn.Module:
        if depth > 1:
            raise KeyError("deep")
        return powers(depth)

    with pytest.raises(KeyError, match="deep") as caught:
        depth_check(build, ONES, upwards, optimizer=adagrad, depths=(1, 2), seeds=(0,))
    assert caught.value.__notes__ == ["in build(2) of the rule 'model' of a depth check"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_mode_around_it_changes_nothing(mode: Any) -> None:
    """The networks are trained all the same."""
    with mode():
        found = check()
    assert found == check()


def test_values_that_were_not_measured() -> None:
    """Near names are told, and what there is."""
    found = check()
    with pytest.raises(UsageError, match=r"got 'chnge' .did you mean 'change'"):
        found.values("chnge", "model", 16, 1)
    with pytest.raises(UsageError, match="expected one of the rules model, got 'modl'"):
        found.median("change", "modl", 16, 1)
    with pytest.raises(UsageError, match="expected one of the depths 16, 64, got 3"):
        found.jump("model", 3)
