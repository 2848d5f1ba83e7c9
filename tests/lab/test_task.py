"""Tasks and settings."""

import os
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from rezero import gates
from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import TASKS, Settings, build_optimizer, find_task
from rezero.lab.settings import total_steps
from rezero.layers.residuals import RESIDUALS

FC_DIGITS = find_task("fc-digits")
WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"depth": 0}, r"^depth must be a whole number, 1 or more: got 0$"),
    ({"depth": -1}, r"^depth must be a whole number, 1 or more: got -1$"),
    ({"width": -3}, r"^width must be a whole number, 1 or more: got -3$"),
    ({"batch_size": 0}, r"^batch-size must be a whole number, 1 or more: got 0$"),
    ({"seeds": 0}, r"^seeds must be a whole number, 1 or more: got 0$"),
    ({"epochs": 0}, r"^epochs must be a whole number, 1 or more: got 0$"),
    ({"steps": 0}, r"^steps must be a whole number, 1 or more: got 0$"),
    ({"threads": 0}, r"^threads must be a whole number, 1 or more: got 0$"),
    ({"threads": 10**6}, rf"^threads must be at most the number of cores, {os.cpu_count()}: got 1000000$"),
    ({"epochs": 1, "steps": 1}, r"^give the length of training once, as epochs or as steps$"),
    ({"epochs": None}, r"^give the length of training once, as epochs or as steps$"),
    ({"lr": 0.0}, r"^lr must be a finite number above 0: got 0\.0$"),
    ({"lr": -0.1}, r"^lr must be a finite number above 0: got -0\.1$"),
    ({"lr": float("nan")}, r"^lr must be a finite number above 0: got nan$"),
    ({"lr": float("inf")}, r"^lr must be a finite number above 0: got inf$"),
    ({"device": "banana"}, r"^device must be one that torch finds here \(cpu.*\): got 'banana'$"),
    ({"device": ""}, r"^device must be one that torch finds here \(cpu.*\): got ''$"),
    ({"device": "cuda:99"}, r"^device must be one that torch finds here \(cpu.*\): got 'cuda:99'$"),
    ({"device": "hpu"}, r"^device must be one that torch finds here \(cpu.*\): got 'hpu'$"),
    ({"device": "meta"}, r"^device must be .*: got 'meta'"),
]


def test_find_task_gives_the_registered_task() -> None:
    """Every task is found under its own name."""
    assert TASKS
    for name, task in TASKS.items():
        assert find_task(name) is task
        assert task.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc-digit", r"^no task is called 'fc-digit' \(did you mean 'fc-digits'\?\); choose from fc-digits"),
        ("xyz", r"^no task is called 'xyz'; choose from fc-digits"),
        ("", r"^no task is called ''; choose from fc-digits"),
    ],
    ids=["typo", "unknown", "empty"],
)
def test_unknown_task_is_one_line(name: str, message: str) -> None:
    """An unknown task is a UsageError that says what came and what there is."""
    with pytest.raises(UsageError, match=message) as caught:
        find_task(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    WRONG_SETTINGS,
    ids=[",".join(f"{k}={v}" for k, v in given.items()) for given, _ in WRONG_SETTINGS],
)
def test_wrong_setting_is_one_line(given: dict[str, Any], message: str) -> None:
    """Each value that no study can have is a UsageError of one line with what was expected and what came."""
    with pytest.raises(UsageError, match=message) as caught:
        FC_DIGITS.settings(given)
    assert "\n" not in str(caught.value)


def test_usage_error_is_a_value_error() -> None:
    """Library users can catch what the command line prints as the built-in type."""
    with pytest.raises(ValueError, match="depth"):
        FC_DIGITS.settings({"depth": 0})


def test_what_is_not_given_has_its_default() -> None:
    """settings() changes what is given and nothing else."""
    assert FC_DIGITS.settings({}) == FC_DIGITS.defaults
    changed = asdict(FC_DIGITS.settings({"depth": 3, "lr": 0.5}))
    assert changed == {**asdict(FC_DIGITS.defaults), "depth": 3, "lr": 0.5}


def test_steps_take_the_place_of_epochs() -> None:
    """A length in steps leaves no epochs behind, and the other way round keeps epochs."""
    by_steps = FC_DIGITS.settings({"steps": 7})
    assert (by_steps.epochs, by_steps.steps) == (None, 7)
    by_epochs = FC_DIGITS.settings({"epochs": 7})
    assert (by_epochs.epochs, by_epochs.steps) == (7, None)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"epochs": 2}, 24),
        ({"epochs": 2, "batch_size": 500}, 6),
        ({"epochs": 1, "batch_size": 5000}, 1),
        ({"steps": 7}, 7),
    ],
    ids=["epochs", "larger-batch", "one-batch", "steps"],
)
def test_total_steps(given: dict[str, Any], steps: int) -> None:
    """Steps count as given; an epoch of 1,500 digits has ceil(1500 / batch size) of them."""
    assert total_steps(FC_DIGITS.settings(given), load_digits()) == steps


def test_fc_digits_is_the_demo() -> None:
    """The defaults of fc-digits are those the demo's claim was made with: 64 layers, one rate, paired seeds."""
    assert FC_DIGITS.defaults == Settings(
        arms=("plain", "residual", "post-norm", "pre-norm", "rezero"),
        depth=64,
        width=64,
        epochs=10,
        steps=None,
        batch_size=128,
        lr=0.01,
        optimizer="Adagrad",
        seeds=3,
        threads=1,
    )
    assert FC_DIGITS.defaults == replace(
        FC_DIGITS.defaults, schedule="constant", warmup=0, clip=None, alpha_lr=None, precision="float32", device="cpu"
    )
    optimizer = build_optimizer(FC_DIGITS.defaults.optimizer, torch.nn.Linear(2, 2), lr=0.01)
    assert type(optimizer) is torch.optim.Adagrad
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_fc_digits_defines_every_arm_but_fixup() -> None:
    """The arms of fc-digits are the residual formulas that a branch of one layer can have."""
    assert dict(FC_DIGITS.arms) == {name: formula for name, formula in RESIDUALS.items() if name != "fixup"}


@pytest.mark.parametrize("arm", FC_DIGITS.arms, ids=str)
def test_build_makes_the_arm_as_large_as_asked(arm: str) -> None:
    """Each arm is a network of the asked depth and width, gated where its formula says so."""
    data = load_digits()
    model = FC_DIGITS.build(data, arm, FC_DIGITS.settings({"depth": 3, "width": 8}))
    hidden = [p for p in model.parameters() if p.shape == (8, 8)]
    assert len(hidden) == 3
    assert model(data.val_inputs).shape == (297, 10)
    assert len(gates(model)) == (3 if "alpha" in FC_DIGITS.arms[arm] else 0)


def test_settings_and_checks_leave_the_generator_alone() -> None:
    """Making settings and checking them draws nothing from torch's global generator."""
    before = torch.get_rng_state()
    settings = FC_DIGITS.settings({"depth": 3, "width": 8})
    FC_DIGITS.check(load_digits(), settings)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"batch_size": 1499, "accumulate": 2, "steps": 2},
            r"^the last batch of an epoch has 1 examples for 2 parts .*choose another batch-size$",
        ),
        ({"width": 10**6}, r"^cpu has not the memory for depth 2, width 1000000 and batch-size 128: make them smaller"),
        ({"steps": 6, "warmup": 6}, r"^warmup must be shorter than the run of 6 steps: got 6$"),
        ({"schedule": "StepLR step_size=0"}, r"^schedule 'StepLR step_size=0': "),
        ({"optimizer": "SGD momentum=0.9", "schedule": "OneCycleLR max_lr=1 total_steps=3", "steps": 4}, r"4 times"),
    ],
    ids=["last-batch", "memory", "warmup", "schedule", "short-schedule"],
)
def test_what_the_data_show_is_refused_before_anything_runs(given: dict[str, Any], message: str) -> None:
    """check() refuses what would fail on the way with these data."""
    with pytest.raises(UsageError, match=message):
        FC_DIGITS.check(load_digits(), FC_DIGITS.settings({"depth": 2, "width": 8, **given}))


def test_a_small_batch_that_is_not_reached_is_no_fault() -> None:
    """A run that ends before the last batch of an epoch may have any batch size."""
    FC_DIGITS.check(load_digits(), FC_DIGITS.settings({"batch_size": 1499, "accumulate": 2, "steps": 1}))


def test_the_tasks_own_warmup_is_called_its_default() -> None:
    """A run that is shorter than the task's warm-up, which the user may never have heard of, is told its option."""
    task = replace(FC_DIGITS, defaults=replace(FC_DIGITS.defaults, warmup=100))
    message = r"^warmup must be shorter than the run of 20 steps: got 100, the default of fc-digits; give --warmup$"
    with pytest.raises(UsageError, match=message):
        task.check(load_digits(), task.settings({"steps": 20}))


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ENVIRONMENTS: dict[str, tuple[dict[str, str], int | str]] = {
    "nothing": ({}, 1),
    "torchrun": (TORCHRUN, 2),
    "torchrun-alone": ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, 1),
    "rank-alone": ({"RANK": "1"}, 1),
    "rank-of-one": ({"RANK": "abc", "WORLD_SIZE": "1"}, 1),
    "size-alone": ({"WORLD_SIZE": "2"}, "got no RANK and no LOCAL_RANK and no MASTER_ADDR and no MASTER_PORT: start"),
    "size-text": ({**TORCHRUN, "WORLD_SIZE": "abc"}, "got WORLD_SIZE=abc, RANK=1, LOCAL_RANK=0: start the processes"),
    "size-0": ({**TORCHRUN, "WORLD_SIZE": "0"}, "got WORLD_SIZE=0, RANK=1"),
    "rank-text": ({**TORCHRUN, "RANK": "abc"}, "got WORLD_SIZE=2, RANK=abc"),
    "rank-too-large": ({**TORCHRUN, "RANK": "2"}, "got WORLD_SIZE=2, RANK=2"),
    "local-rank-alone": ({"LOCAL_RANK": "1"}, "got no WORLD_SIZE and no RANK .*or unset LOCAL_RANK$"),
    "local-rank-negative": ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
    "no-address": ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "got no MASTER_ADDR: start"),
}


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_processes_are_those_that_torchrun_started(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int | str
) -> None:
    """The processes are WORLD_SIZE where torchrun has set all its variables, one where it has not; half is refused."""
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, int):
        assert FC_DIGITS.settings({}).processes == expected
        return
    with pytest.raises(UsageError, match=rf"^expected .*{expected}") as caught:
        FC_DIGITS.settings({})
    assert "\n" not in str(caught.value)
