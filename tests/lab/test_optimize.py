"""Optimizers and schedules from a line of text."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import rezero
from rezero.errors import UsageError
from rezero.lab import build_optimizer, build_schedule
from rezero.lab.optimize import check_recipe


def classes(module: Any, base: type) -> list[str]:
    """The public classes of a module of torch that are of a kind, by torch's own list."""
    return sorted(
        name
        for name in module.__all__
        if inspect.isclass(kind := getattr(module, name)) and issubclass(kind, base) and kind is not base
    )


OPTIMIZERS = classes(torch.optim, torch.optim.Optimizer)
REFUSED = {"LBFGS", "SparseAdam", "Muon"}  # a closure, sparse gradients, matrices alone
SCHEDULES = classes(lr_scheduler, lr_scheduler.LRScheduler)


def network() -> nn.Module:
    """Three blocks with gates that have left zero."""
    torch.manual_seed(0)
    model = nn.Sequential(*(rezero.ReZero(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))) for _ in range(3)))
    with torch.no_grad():
        for gate in rezero.gates(model).values():
            gate.alpha.fill_(0.5)
    return model


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def one_rate(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=lr, momentum=0.9)


def rates(schedule: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The rate that each step is made with."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


def test_there_are_optimizers_and_schedules_to_test() -> None:
    """The lists that the tests below go through are torch's, not empty."""
    assert {"SGD", "Adam", "AdamW", "Adagrad", "LBFGS", "Muon"} <= {*OPTIMIZERS}
    assert {"StepLR", "MultiStepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"} <= {*SCHEDULES}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_trains_or_is_refused(name: str) -> None:
    """A class of torch.optim is built by its name in any case and moves every parameter, or is refused in one line."""
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    if name in REFUSED:
        with pytest.raises(UsageError, match=f"^.*optimizer .*'{name.upper()}'.*$"):
            build_optimizer(name.upper(), model, lr=0.01)
        return
    optimizer = build_optimizer(name.upper(), model, lr=0.01)
    assert type(optimizer) is getattr(torch.optim, name)
    descend(model, optimizer)
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in REFUSED])
def test_an_optimizer_is_torchs_own(name: str) -> None:
    """Without options an optimizer has torch's defaults, no decay, and the steps of one that is built by hand."""
    ours, theirs = network(), network()
    descend(ours, build_optimizer(name, ours, lr=0.01))
    kind = getattr(torch.optim, name)
    no_decay = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(kind).parameters else {}
    descend(theirs, kind(theirs.parameters(), lr=0.01, **no_decay))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "number": ("SGD momentum=0.9", {"momentum": 0.9}),
    "exponent": ("Adam eps=1e-6", {"eps": 1e-6}),
    "whole": ("ASGD t0=5", {"t0": 5}),
    "boolean": ("SGD momentum=0.9 nesterov=true", {"momentum": 0.9, "nesterov": True}),
    "boolean-case": ("Adam amsgrad=True foreach=FALSE", {"amsgrad": True, "foreach": False}),
    "none": ("Adam foreach=none", {"foreach": None}),
    "tuple": ("AdamW betas=0.9,0.98", {"betas": (0.9, 0.98)}),
    "tuple-with-none": ("Adafactor eps=none,1e-3", {"eps": (None, 1e-3)}),
    "fused": ("Adam fused=true", {"fused": True, "foreach": False}),
    "blanks": ("  sgd   momentum=0.5  ", {"momentum": 0.5}),
}


@pytest.mark.parametrize(("text", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_options_are_read(text: str, expected: dict[str, Any]) -> None:
    """Numbers, tuples, booleans and none reach the optimizer as such."""
    defaults = build_optimizer(text, network(), lr=0.1).defaults
    assert {name: defaults[name] for name in expected} == expected
    assert {name: type(defaults[name]) for name in expected} == {name: type(v) for name, v in expected.items()}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"])
def test_decay_reaches_matrices_alone(name: str) -> None:
    """Only parameters with two or more axes are decayed, never a gate, and nothing is unless it is asked for."""
    model = network()
    optimizer = build_optimizer(f"{name} weight_decay=0.1", model, lr=0.01)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    gated = {id(gate.alpha) for gate in rezero.gates(model).values()}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim >= 2 and id(parameter) not in gated else 0.0)
    assert len(decay) == len([*model.parameters()])
    plain = build_optimizer(name, model, lr=0.01)
    assert {group["weight_decay"] for group in plain.param_groups} == {0.0}


def test_a_gate_of_many_axes_is_not_decayed() -> None:
    """Without a gradient a decayed matrix shrinks, and gates, biases and norms keep every bit."""
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer("SGD weight_decay=0.5", model, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim >= 2 else 1.0), rtol=1e-6, atol=0)
    assert torch.equal(model[0].gate.alpha, torch.tensor([0.5]))


@pytest.mark.parametrize(("alpha_lr", "expected"), [(None, 0.01), (0.5, 0.5), (1e-9, 1e-9)], ids=str)
def test_gates_have_a_rate_of_their_own(alpha_lr: float | None, expected: float) -> None:
    """alpha_lr is the rate of the gates alone; without it they have that of everything else, however many they are."""
    groups = build_optimizer("Adam weight_decay=0.1", network(), lr=0.01, alpha_lr=alpha_lr).param_groups
    assert {group["name"]: group["lr"] for group in groups} == {"decayed": 0.01, "undecayed": 0.01, "gates": expected}


WRONG_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "unknown": ("nonsense", r"^no optimizer is called 'nonsense'; choose from .*Adagrad, Adam, .*SGD"),
    "near": ("AdmaW", r"^no optimizer is called 'AdmaW' \(did you mean 'AdamW'\?\); choose from"),
    "empty": ("", r"^no optimizer is called ''; choose from"),
    "blank": ("  ", r"^no optimizer is called ''; choose from"),
    "base-class": ("Optimizer", r"^no optimizer is called 'Optimizer'"),
    "needs-a-closure": ("LBFGS", r"^no optimizer is called 'LBFGS'"),
    "needs-sparse-gradients": ("SparseAdam", r"^no optimizer is called 'SparseAdam'"),
    "a-module": ("os.system", r"^no optimizer is called 'os\.system'"),
    "unknown-key": (
        "SGD speed=9",
        r"^optimizer 'SGD speed=9': expected key=value with a key out of .*momentum.*'speed=9'",
    ),
    "no-value": ("SGD momentum", r"expected key=value .*, got 'momentum'$"),
    "params": ("SGD params=1", r"expected key=value .*, got 'params=1'$"),
    "text-value": ("SGD momentum=fast", r"^optimizer 'SGD momentum=fast': "),
    "negative": ("SGD momentum=-1", r"^optimizer 'SGD momentum=-1': .*momentum"),
    "bad-tuple": ("Adam betas=2,3", r"^optimizer 'Adam betas=2,3': .*beta"),
    "bad-pair": ("Adam betas=0.9", r"^optimizer 'Adam betas=0\.9': "),
    "nesterov-alone": ("SGD nesterov=true", r"^optimizer 'SGD nesterov=true': Nesterov"),
    "lr": ("SGD lr=0.1", r"^optimizer 'SGD lr=0\.1': the learning rate has an option of its own, --lr$"),
    "decay-negative": ("SGD weight_decay=-1", r"^optimizer 'SGD weight_decay=-1': weight_decay must be"),
    "decay-nan": ("SGD weight_decay=nan", r"^options of optimizers and schedules must be finite numbers: got 'nan'"),
    "momentum-inf": ("SGD momentum=inf", r"^options of optimizers and schedules must be finite numbers: got 'inf'"),
    "decay-text": ("SGD weight_decay=much", r"^optimizer 'SGD weight_decay=much': "),
    "matrices-only": ("Muon", r"^optimizer 'Muon': .*2D"),
    "text-for-boolean": (
        "Adam amsgrad=abc",
        r"^optimizer 'Adam amsgrad=abc': amsgrad must be true or false, got 'abc'$",
    ),
    "number-for-boolean": ("SGD nesterov=2", r": nesterov must be true or false, got '2'$"),
    "text-for-choice": ("Adam foreach=abc", r": foreach must be a number, true, false or none, got 'abc'$"),
    "boolean-for-number": ("SGD momentum=true", r": momentum must be a number, got 'true'$"),
    "none-for-number": ("AdamW weight_decay=none", r": weight_decay must be a number, got 'none'$"),
    "pair-for-number": ("Adam eps=0.1,0.2", r": eps must be a number, got '0\.1,0\.2'$"),
    "nothing-for-number": ("SGD momentum=,", r": momentum must be a number, got ','$"),
    "one-for-two": ("Adam betas=0.9", r": betas must be 2 numbers with commas between them, got '0\.9'$"),
    "three-for-two": ("Adam betas=0.9,0.9,0.9", r": betas must be 2 numbers with commas .*, got '0\.9,0\.9,0\.9'$"),
    "texts-for-two": ("Adam betas=a,b", r": betas must be 2 numbers with commas .*, got 'a,b'$"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_OPTIMIZERS.values(), ids=WRONG_OPTIMIZERS)
def test_a_wrong_optimizer_is_one_line(text: str, message: str) -> None:
    """What cannot be built is a UsageError of one line with the text that was given, and the model is as it was."""
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(UsageError, match=message) as caught:
        build_optimizer(text, model, lr=0.1)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


# A schedule by its text, and the same one made by hand: steps of the run 20, of an epoch 4.
Twin = Callable[[torch.optim.Optimizer], Any]
TWINS: dict[str, tuple[str, Twin]] = {
    "StepLR": ("StepLR step_size=3 gamma=0.5", lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5)),
    "StepLR-epochs": ("StepLR step_size=2e", lambda o: lr_scheduler.StepLR(o, 8)),
    "MultiStepLR": ("MultiStepLR milestones=3,7 gamma=0.5", lambda o: lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.5)),
    "MultiStepLR-one": ("MultiStepLR milestones=3,", lambda o: lr_scheduler.MultiStepLR(o, [3])),
    "MultiStepLR-epochs": ("multisteplr milestones=2e,4e", lambda o: lr_scheduler.MultiStepLR(o, [8, 16])),
    "MultiStepLR-half": ("MultiStepLR milestones=0.5e,1.25e", lambda o: lr_scheduler.MultiStepLR(o, [2, 5])),
    "ConstantLR": ("ConstantLR factor=0.5 total_iters=4", lambda o: lr_scheduler.ConstantLR(o, 0.5, 4)),
    "LinearLR": ("LinearLR end_factor=0.1", lambda o: lr_scheduler.LinearLR(o, end_factor=0.1, total_iters=20)),
    "ExponentialLR": ("ExponentialLR gamma=0.9", lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "PolynomialLR": ("PolynomialLR power=2", lambda o: lr_scheduler.PolynomialLR(o, total_iters=20, power=2)),
    "CosineAnnealingLR": ("CosineAnnealingLR", lambda o: lr_scheduler.CosineAnnealingLR(o, 20)),
    "CosineAnnealingLR-told": (
        "CosineAnnealingLR T_max=5 eta_min=0.1",
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5, eta_min=0.1),
    ),
    "CosineAnnealingWarmRestarts": (
        "CosineAnnealingWarmRestarts T_0=1e T_mult=2",
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, T_mult=2),
    ),
    "CyclicLR": (
        "CyclicLR base_lr=0.1 max_lr=1 step_size_up=3 mode=triangular2",
        lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=3, mode="triangular2"),
    ),
    "OneCycleLR": ("OneCycleLR max_lr=2", lambda o: lr_scheduler.OneCycleLR(o, 2.0, total_steps=20)),
}
NEED_OBJECTS = {"SequentialLR", "ChainedScheduler", "LambdaLR", "MultiplicativeLR", "ReduceLROnPlateau"}


@pytest.mark.parametrize(("text", "twin"), TWINS.values(), ids=TWINS)
def test_a_schedule_is_torchs_own(text: str, twin: Twin) -> None:
    """The rate of every step of a run is that of the same schedule built by hand."""
    ours, theirs = one_rate(), one_rate()
    schedule = build_schedule(text, ours, warmup=0, steps=20, per_epoch=4)
    expected = rates(twin(theirs), theirs, 20)
    assert rates(schedule, ours, 20) == expected
    assert len({*expected}) > 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_of_torch_is_tested_or_refused(name: str) -> None:
    """A class of torch.optim.lr_scheduler has a twin above, or is refused in one line."""
    if any(text.lower().startswith(name.lower()) for text, _ in TWINS.values()):
        return
    assert name in NEED_OBJECTS
    with pytest.raises(UsageError, match=rf"^no schedule is called '{name}'.*; choose from .*StepLR") as caught:
        build_schedule(name, one_rate(), warmup=0, steps=20, per_epoch=4)
    assert "\n" not in str(caught.value)


def test_constant_is_no_schedule() -> None:
    """Without a schedule and a warm-up there is nothing to step, and the rate stays."""
    optimizer = one_rate(0.3)
    assert build_schedule("constant", optimizer, warmup=0, steps=20, per_epoch=4) is None
    assert rates(None, optimizer, 3) == [0.3, 0.3, 0.3]


@pytest.mark.parametrize("warmup", [1, 2, 5, 19], ids=str)
def test_warmup_rises_in_equal_steps(warmup: int) -> None:
    """Step k of a warm-up of W has k / (W + 1) of the rate, in every group, and from then on the whole rate."""
    optimizer = build_optimizer("SGD", network(), lr=0.4, alpha_lr=0.02)
    schedule = build_schedule("constant", optimizer, warmup=warmup, steps=20, per_epoch=4)
    assert schedule is not None
    for step in range(1, 21):
        share = min(step, warmup + 1) / (warmup + 1)
        for group in optimizer.param_groups:
            whole = 0.02 if group["name"] == "gates" else 0.4
            assert group["lr"] == pytest.approx(whole * share, rel=1e-12), (step, group["name"])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        ("CosineAnnealingLR", lambda o: lr_scheduler.CosineAnnealingLR(o, 15)),
        ("LinearLR start_factor=1 end_factor=0.5", lambda o: lr_scheduler.LinearLR(o, 1.0, 0.5, total_iters=15)),
        ("MultiStepLR milestones=1e,", lambda o: lr_scheduler.MultiStepLR(o, [4])),
        ("ExponentialLR gamma=0.9", lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ],
    ids=["cosine", "linear", "milestones", "exponential"],
)
def test_a_schedule_begins_after_the_warmup(text: str, twin: Twin) -> None:
    """After W steps of warm-up the schedule goes its whole way from the whole rate in the steps that are left."""
    ours, theirs = one_rate(), one_rate()
    schedule = build_schedule(text, ours, warmup=5, steps=20, per_epoch=4)
    found = rates(schedule, ours, 20)
    assert found[:5] == pytest.approx([k / 6 for k in range(1, 6)], rel=1e-12)
    assert found[5:] == pytest.approx(rates(twin(theirs), theirs, 15), rel=1e-9)


def test_cosine_ends_at_nought() -> None:
    """A cosine that is filled in reaches its lowest rate with the last step of the run."""
    optimizer = one_rate()
    found = rates(build_schedule("CosineAnnealingLR", optimizer, warmup=0, steps=20, per_epoch=4), optimizer, 20)
    assert found[0] == 1.0
    assert found[10] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.01
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


WRONG_SCHEDULES: dict[str, tuple[str, dict[str, int], str]] = {
    "unknown": ("nonsense", {}, r"^no schedule is called 'nonsense'; choose from .*CosineAnnealingLR"),
    "near": ("StepLr2", {}, r"^no schedule is called 'StepLr2' \(did you mean '\w*StepLR'\?\)"),
    "empty": ("", {}, r"^no schedule is called ''"),
    "constant-case": ("Constant", {}, r"^no schedule is called 'Constant' \(did you mean 'ConstantLR'\?\)"),
    "base-class": ("LRScheduler", {}, r"^no schedule is called 'LRScheduler'"),
    "unknown-key": ("StepLR size=3", {}, r"^schedule 'StepLR size=3': expected key=value with a key out of step_size"),
    "optimizer-key": ("StepLR optimizer=3", {}, r"expected key=value .*got 'optimizer=3'$"),
    "needed-key": ("StepLR", {}, r"^schedule 'StepLR': .*step_size"),
    "needed-milestones": ("MultiStepLR", {}, r"^schedule 'MultiStepLR': .*milestones"),
    "negative": ("CosineAnnealingWarmRestarts T_0=-1", {}, r"^schedule 'CosineAnnealingWarmRestarts T_0=-1': .*T_0"),
    "factor": ("ConstantLR factor=5", {}, r"^schedule 'ConstantLR factor=5': .*between 0 and 1"),
    "warmup-whole": ("constant", {"warmup": 20}, r"^warmup must be shorter than the run of 20 steps: got 20$"),
    "warmup-longer": (
        "StepLR step_size=1",
        {"warmup": 21},
        r"^warmup must be shorter than the run of 20 steps: got 21$",
    ),
    "warmup-one-step": (
        "constant",
        {"warmup": 1, "steps": 1},
        r"^warmup must be shorter than the run of 1 steps?: got 1$",
    ),
}


@pytest.mark.parametrize(("text", "changes", "message"), WRONG_SCHEDULES.values(), ids=WRONG_SCHEDULES)
def test_a_wrong_schedule_is_one_line(text: str, changes: dict[str, int], message: str) -> None:
    """What cannot be built is a UsageError of one line with the text that was given."""
    with pytest.raises(UsageError, match=message) as caught:
        build_schedule(text, one_rate(), **{"warmup": 0, "steps": 20, "per_epoch": 4, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        ("nonsense", "constant", r"^no optimizer is called 'nonsense'"),
        ("SGD lr=1", "constant", r"has an option of its own"),
        ("SGD", "nonsense", r"^no schedule is called 'nonsense'"),
        ("SGD", "StepLR", r"^schedule 'StepLR': "),
        ("Adagrad", "CyclicLR base_lr=0.1 max_lr=1", r"^schedule 'CyclicLR .*momentum"),
    ],
    ids=["optimizer", "lr", "schedule", "needed-key", "cycle-without-momentum"],
)
def test_a_recipe_is_checked_without_a_model(optimizer: str, schedule: str, message: str) -> None:
    """check_recipe() refuses what could not be built, before there is a model or a length."""
    with pytest.raises(UsageError, match=message):
        check_recipe(optimizer, schedule, warmup=0, lr=0.1)


FAIL_ON_THE_WAY: dict[str, tuple[str, str, int | None, str]] = {
    "capturable": ("Adam capturable=true", "constant", None, r"^optimizer 'Adam capturable=true': .*capturable"),
    "differentiable": (
        "Adam differentiable=true",
        "constant",
        None,
        r"^optimizer 'Adam differentiable=true': .*autogr",
    ),
    "differentiable-sgd": (
        "SGD differentiable=true",
        "constant",
        None,
        r"^optimizer 'SGD differentiable=true': .*leaf",
    ),
    "no-step-size": ("SGD", "StepLR step_size=0", None, r"^schedule 'StepLR step_size=0': .*zero"),
    "text-step-size": ("SGD", "StepLR step_size=abc", None, r": step_size must be a number, .*, got 'abc'$"),
    "text-milestones": ("SGD", "MultiStepLR milestones=abc", None, r": milestones must be a number, .*, got 'abc'$"),
    "no-period": ("SGD", "CosineAnnealingLR T_max=0", None, r"^schedule 'CosineAnnealingLR T_max=0': .*zero"),
    "text-period": ("SGD", "CosineAnnealingLR T_max=abc", None, r": T_max must be a number, .*, got 'abc'$"),
    "text-power": ("SGD", "PolynomialLR power=abc", None, r": power must be a number, got 'abc'$"),
    "two-gammas": ("SGD", "ExponentialLR gamma=1,2", None, r"^schedule 'ExponentialLR gamma=1,2': "),
    "last-epoch": ("SGD", "StepLR step_size=1 last_epoch=5", None, r"expected key=value .*got 'last_epoch=5'$"),
    "ends-too-soon": ("SGD momentum=0.9", "OneCycleLR max_lr=1 total_steps=3", 4, r": .*4 times.* total steps is 3$"),
    "ends-hours-later": (
        "SGD momentum=0.9",
        "OneCycleLR max_lr=1 total_steps=200000",
        300_000,
        r": .*300000 times.* total steps is 200000$",
    ),
    "fails-in-the-middle": ("SGD", "ConstantLR factor=0 total_iters=5", 20, r"^schedule 'ConstantLR .*': .*zero"),
    "overflows": (
        "SGD momentum=0.9",
        "CyclicLR base_lr=0.1 max_lr=1 mode=exp_range gamma=2",
        2000,
        r"^schedule 'CyclicLR .*': .*too large",
    ),
}


@pytest.mark.parametrize("warmup", [0, 7], ids=["at-once", "after-warmup"])
@pytest.mark.parametrize(("optimizer", "schedule", "steps", "message"), FAIL_ON_THE_WAY.values(), ids=FAIL_ON_THE_WAY)
def test_a_recipe_that_would_fail_on_the_way_is_refused(
    optimizer: str, schedule: str, steps: int | None, message: str, warmup: int
) -> None:
    """What torch builds and cannot step, be it at the first step or hours later, is a UsageError of one line."""
    with pytest.raises(UsageError, match=message) as caught:
        check_recipe(optimizer, schedule, warmup=warmup, lr=0.1, steps=None if steps is None else warmup + steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("total", [20, 21, 300_000], ids=str)
def test_a_schedule_of_the_runs_length_is_accepted(total: int) -> None:
    """A cycle that is as long as the run is no fault, nor is one that is longer."""
    check_recipe("SGD momentum=0.9", f"OneCycleLR max_lr=1 total_steps={total}", warmup=0, lr=0.1, steps=min(total, 20))
    check_recipe("SGD momentum=0.9", f"OneCycleLR max_lr=1 total_steps={total}", warmup=0, lr=0.1, steps=total)


def test_a_recipe_that_can_be_built_is_accepted() -> None:
    """check_recipe() accepts a long warm-up, whose run it does not know, and every schedule that has a twin above."""
    check_recipe("SGD", "constant", warmup=10**6, lr=0.1)
    for text, _ in TWINS.values():
        check_recipe("SGD momentum=0.9", text, warmup=7, lr=0.1)
    assert math.isfinite(build_optimizer("SGD", network(), lr=0.1).param_groups[0]["lr"])


def test_a_single_milestone_needs_no_comma() -> None:
    """MultiStepLR takes one milestone as it takes several."""
    optimizer = build_optimizer("SGD", network(), lr=1.0)
    schedule = build_schedule("MultiStepLR milestones=1e", optimizer, warmup=0, steps=8, per_epoch=2)
    assert schedule is not None
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1])
