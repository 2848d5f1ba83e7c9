"""Functions of one's own, compared from Python."""

import asyncio
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rezero
from rezero import lab
from rezero.errors import UsageError
from rezero.lab import Answer, Point, Store, Trial
from rezero.lab.one import slug

pytestmark = pytest.mark.slow

X = torch.linspace(-1, 1, 64).reshape(16, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def build() -> nn.Module:
    return nn.Sequential(Block(), Block())


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lab.lr(0.05))
    for step in range(1, 21):
        noise = 0.1 * torch.randn(4) + 0.01 * random.random() + 0.01 * np.random.rand()
        loss = (model(X + noise) - X.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            lab.log(step, val_loss=loss)


def compare(folder: Path, **more: Any) -> Answer:
    given = {"build": build, "train": train, "example": X, "seeds": 3, "output": folder}
    return lab.compare(**{**given, **more})


def numbers(answer: Answer) -> list[Any]:
    return [
        (each.trial, each.status, each.note, [({**point.metrics, "seconds": 0}, point.alphas) for point in each.points])
        for each in answer.results
    ]


def test_a_function_is_compared(tmp_path: Path) -> None:
    """Both arms run on every seed; the answer has verdict, comparisons, results and report."""
    answer = compare(tmp_path)
    assert "rezero against original, 3 paired seeds" in str(answer)
    assert "Every arm ran at the learning rate of train: not tuned, and what suits one may" in answer.verdict
    (against,) = answer.comparisons
    assert (against.arm, against.baseline, against.seeds) == ("rezero", "original", (0, 1, 2))
    assert answer.report == tmp_path / "report.html"
    assert answer.report.exists()
    for each in answer.results:
        assert each.status == "finished"
        assert [point.step for point in each.points] == [5, 10, 15, 20]
        assert len(each.last.alphas) == (2 if each.trial.arm == "rezero" else 0)


def test_trials_are_seeded_alike_in_any_process(tmp_path: Path) -> None:
    """Jobs, the order of the trials and what was drawn before change no number; a second call runs nothing again."""
    first = compare(tmp_path / "one")
    torch.rand(3)
    assert numbers(compare(tmp_path / "two", jobs=2)) == numbers(first)
    again = compare(tmp_path / "one")
    assert again.results == first.results  # to the second


def test_a_local_function_runs_in_other_processes(tmp_path: Path) -> None:
    """Functions that only exist here reach the workers, with what they refer to."""
    scale = 3.0

    def here(model: nn.Module) -> None:
        lab.log(1, score=scale * lab.seed() + (1 if isinstance(model, nn.Identity) else 0))

    arms = {"original": None, "none": lambda _: nn.Identity()}
    answer = compare(tmp_path, train=here, arms=arms, seeds=2, jobs=2)
    assert [each.final("score") for each in answer.results] == [0.0, 3.0, 1.0, 4.0]


def about(value: object) -> Any:
    def train(_: object) -> None:
        lab.log(1, loss=len(str(value)))

    return train


def test_numbers_of_another_function_are_not_taken(tmp_path: Path) -> None:
    """The folder holds another study then."""
    compare(tmp_path, train=about(1), arms=("original",), seeds=1)
    with pytest.raises(UsageError, match=r"holds another study \(build, train, an arm or what they use has changed"):
        compare(tmp_path, train=about(22), arms=("original",), seeds=1)


def test_a_function_is_tracked(tmp_path: Path) -> None:
    """Each trial of a function is sent to a tracker as those of the command line are; the numbers stay."""
    plain, tracked = compare(tmp_path / "plain"), compare(tmp_path / "tracked", log_with="tensorboard")
    assert numbers(tracked) == numbers(plain)
    runs = {each.name for each in (tmp_path / "tracked" / "tensorboard").iterdir()}
    assert runs == {slug(each.trial) for each in tracked.results}


def test_rates_are_tuned(tmp_path: Path) -> None:
    """Multiples of the rate are tried on seeds of their own, and the best is used."""
    answer = compare(tmp_path, arms=("original",), train=lambda _: lab.log(1, loss=abs(lab.lr(2.0) - 6)), tune=3)
    assert {each.trial.lr for each in answer.results if each.trial.tuning} == {0.3, 1.0, 3.0, 10.0}
    assert {each.trial.lr for each in answer.results if not each.trial.tuning} == {3.0}


def test_what_goes_wrong_ends_a_trial(tmp_path: Path) -> None:
    """An error of one's own code is recorded with its words and its trace, and the study goes on."""

    def breaks(model: nn.Module) -> None:
        lab.log(1, loss=1.0)
        if lab.seed() == 1:
            raise ZeroDivisionError("two\nlines")

    answer = compare(tmp_path, train=breaks, arms=("original",))
    assert [each.status for each in answer.results] == ["finished", "crashed", "finished"]
    assert answer.results[1].note == "ZeroDivisionError: two lines"
    (trace,) = (tmp_path / "logs").iterdir()
    assert "in breaks" in trace.read_text()
    assert "1 crashed" in answer.verdict


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exit_ends_a_trial_alone(tmp_path: Path, jobs: int) -> None:
    """Neither the caller nor the study ends with it, and none of its codes is a success."""

    def leaves(model: nn.Module) -> None:
        lab.log(1, loss=1.0)
        if lab.seed():
            sys.exit((None, 3, "no data")[lab.seed() - 1])

    answer = compare(tmp_path, train=leaves, arms=("original",), seeds=4, jobs=jobs)
    assert [each.status for each in answer.results] == ["finished", "crashed", "crashed", "crashed"]
    assert [each.note for each in answer.results[1:]] == ["SystemExit: 0", "SystemExit: 3", "SystemExit: no data"]


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


ERRORS = {
    "without a text": (MuteError(), "MuteError: an error without a text"),
    "surrogates": (OSError("a\udcffb"), r"OSError: a\udcffb"),
    "long": (ValueError(3000 * "x"), f"ValueError: {985 * 'x'}..."),
    "surrogates in a group": (ExceptionGroup("\ud800", [MuteError()]), r"ExceptionGroup: \ud800 (1 sub-exception)"),
    "that is no Exception": (asyncio.CancelledError("enough"), "CancelledError: enough"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_any_error_is_recorded(tmp_path: Path, name: str) -> None:
    """It is whatever its text is; the log has all of it."""
    error, note = ERRORS[name]

    def breaks(model: nn.Module) -> None:
        lab.log(1, loss=1.0)
        if lab.seed() == 1:
            raise error

    answer = compare(tmp_path, train=breaks, arms=("original",), seeds=2)
    assert answer.results[1].status == "crashed"
    assert answer.results[1].note == note
    (log,) = (tmp_path / "logs").iterdir()
    text = log.read_text(encoding="utf-8")
    assert "in breaks" in text
    assert (3000 * "x" in text) == (name == "long")


def in_threads(model: nn.Module) -> None:
    for step in range(1, 6):
        thread = threading.Thread(target=lab.log, args=(step,), kwargs={"loss": 1.0 / step})
        thread.start()
        thread.join()


def test_any_thread_may_log(tmp_path: Path) -> None:
    """Every step is kept, whichever thread measures it."""
    for each in compare(tmp_path, train=in_threads, seeds=1).results:
        assert [(point.step, point.metrics["loss"]) for point in each.points] == [(n, 1.0 / n) for n in range(1, 6)]


LATE = threading.Event()


def test_a_thread_that_stays_writes_into_no_other_trial(tmp_path: Path) -> None:
    """What it logs once its trial has ended is refused."""
    refused: list[str] = []

    def late() -> None:
        LATE.wait(60)
        try:
            lab.log(50, loss=-1000.0)
        except UsageError as error:
            refused.append(str(error))

    def leaving(model: nn.Module) -> None:
        lab.log(1, loss=1.0)
        if not threads:
            threads.append(threading.Thread(target=late))
            threads[0].start()
        else:
            LATE.set()
            threads[0].join()

    threads: list[threading.Thread] = []
    answer = compare(tmp_path, train=leaving, seeds=1)
    assert [[point.step for point in each.points] for each in answer.results] == [[1], [1]]
    assert [each.final("loss") for each in answer.results] == [1.0, 1.0]
    assert "is older than this run" in refused[0]


def forking(model: nn.Module) -> None:
    lab.log(1, loss=1.0)
    child = os.fork()
    if not child:
        lab.log(100, loss=-100.0)
        os._exit(0)
    os.waitpid(child, 0)
    lab.log(2, loss=0.5)


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_it_forks_logs_nothing(tmp_path: Path) -> None:
    """It has a copy of the study's connection, which it must not touch."""
    for each in compare(tmp_path, train=forking, seeds=1).results:
        assert [point.step for point in each.points] == [1, 2]


def test_a_disk_that_is_full_for_a_while_is_no_fault_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is written later; one that stays full ends the study, and its trial is run again."""
    room: dict[str, bool] = {}
    add = Store.add

    def add_if_room(store: Store, trial: Trial, point: Point) -> None:
        if not room["now"]:
            raise UsageError("cannot write to the study: make room")
        add(store, trial, point)

    def filling(model: nn.Module) -> None:
        for step in range(1, 6):
            room["now"] = step not in (2, 3)
            lab.log(step, loss=1.0 / step)
        room["now"] = room["at the end"]

    monkeypatch.setattr(Store, "add", add_if_room)
    room["at the end"] = True
    for each in compare(tmp_path / "while", train=filling, seeds=1).results:
        assert (each.status, [point.step for point in each.points]) == ("finished", [1, 2, 3, 4, 5])
    room["at the end"] = False
    with pytest.raises(UsageError, match="make room"):
        compare(tmp_path / "stays", train=filling, seeds=1)
    with Store.open(tmp_path / "stays") as store:
        assert store.results() == []


def test_a_trial_may_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study stays where it was begun."""
    monkeypatch.chdir(tmp_path)

    def moves(model: nn.Module) -> None:
        os.chdir("/")
        lab.log(1, loss=1.0)

    answer = compare(Path("study"), train=moves, arms=("original",), seeds=2)
    assert answer.report == tmp_path / "study" / "report.html"
    assert answer.report.exists()


def globals_() -> dict[str, float]:
    """Return what holds for the whole process, as numbers."""
    return {
        "dtype": float(torch.get_default_dtype() == torch.float64),
        "device": float(torch.get_default_device().type == "meta"),
        "grad": float(torch.is_grad_enabled()),
        "deterministic": float(torch.get_deterministic_debug_mode()),
        "cudnn": float(torch.backends.cudnn.benchmark) + 2 * float(torch.backends.cudnn.deterministic),
        "threads": float(torch.get_num_threads()),
    }


def changes(model: nn.Module) -> None:
    lab.log(1, loss=1.0, **globals_())
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
    torch.set_num_threads(5)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_trial_changes_torch_for_no_other(tmp_path: Path, jobs: int) -> None:
    """Each starts from torch as it is at the call, threads among it, in whichever process; and so it is afterwards."""
    before = globals_()
    try:
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        here = globals_()
        answer = compare(tmp_path, train=changes, arms=("original",), seeds=4, jobs=jobs)
        assert globals_() == here
    finally:
        torch.set_num_threads(int(before["threads"]))
        torch.set_default_dtype(torch.float32)
    assert globals_() == before
    found = [{name: each.final(name) for name in here} for each in answer.results]
    assert found == 4 * [here]


def test_an_arm_can_have_several_words(tmp_path: Path) -> None:
    """It runs as what it is called, with or without a rate of its own."""

    def here(model: nn.Module) -> None:
        lab.log(1, score=lab.lr(1.0) * (1 if isinstance(model, nn.Identity) else 2))

    def none(_: nn.Module) -> nn.Module:
        return nn.Identity()

    arms = {"original": None, "no norm": none, "none": none, "none lr=3": none}
    answer = compare(tmp_path, train=here, arms=arms, seeds=1)
    assert {each.trial.arm: each.final("score") for each in answer.results} == {
        "original": 2.0,
        "no norm": 1.0,
        "none": 1.0,
        "none lr=3": 3.0,
    }


def test_numbers_of_other_types_are_numbers(tmp_path: Path) -> None:
    """A study keeps those of NumPy as it keeps those of Python."""
    given = {"seeds": np.int64(2), "jobs": np.int8(1), "target": np.float32(0.5), "resolve": 1}
    assert len(compare(tmp_path, arms=("original",), **given).results) == 2


def test_ctrl_c_is_no_crash(tmp_path: Path) -> None:
    """It stops the study, which goes on when it is called again."""
    stop = tmp_path / "study" / "stop"

    def stops(model: nn.Module) -> None:
        lab.log(1, loss=lab.seed())
        if lab.seed() == 1 and not stop.exists():
            stop.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "study", train=stops, arms=("original",))
    with Store.open(tmp_path / "study") as store:
        assert [each.trial.seed for each in store.results()] == [0]
    again = compare(tmp_path / "study", train=stops, arms=("original",))
    assert [each.status for each in again.results] == 3 * ["finished"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Outside of a trial the functions of a script do nothing again."""
    compare(tmp_path, seeds=1)
    model = build()
    assert lab.arm(model, X) is model
    assert (lab.seed(5), lab.lr(0.5)) == (5, 0.5)
    lab.log(1, loss=1.0)


BAD = {
    "seeds": ({"seeds": 0}, "seeds must be a whole number, 1 or more: got 0"),
    "jobs": ({"jobs": 0}, "jobs must be a whole number, 1 or more: got 0"),
    "tune": ({"tune": 1}, "tune must be off, or the number of trials that every arm gets"),
    "goal": ({"goal": "up"}, "goal must be min or max: got 'up'"),
    "no-arms": ({"arms": ()}, "expected at least one arm"),
    "arm": ({"arms": ("original", "rezreo")}, r"no arm is called 'rezreo' \(did you mean 'rezero'\?\); there are "),
    "arm's own": ({"arms": ("original warmup=3",)}, "an arm of a script can have lr of its own, no warmup"),
    "baseline": ({"baseline": "plain"}, "baseline must be an arm of the study, original, rezero: got 'plain'"),
    "tune words": ({"tune": "off"}, "tune must be the number of rates that every arm tries out, 0 for none: got 'off'"),
    "no example": ({"example": ()}, "expected example=, an input of the model, by which the arm rezero converts it"),
    "target": ({"target": float("nan")}, "target must be a finite number"),
    "seeds' kind": ({"seeds": 1.5}, "seeds must be a whole number, 1 or more: got 1.5"),
    "seeds a truth": ({"seeds": True}, "seeds must be a whole number, 1 or more: got True"),
    "seeds a text": ({"seeds": "2"}, "seeds must be a whole number, 1 or more: got '2'"),
    "tune_seeds' kind": ({"tune_seeds": None}, "tune_seeds must be a whole number, 1 or more: got None"),
    "tune's kind": ({"tune": 2.5}, "tune must be the number of rates that every arm tries out, 0 for none: got 2.5"),
    "tune a truth": ({"tune": True}, "tune must be the number of rates .*: got True"),
    "jobs' kind": ({"jobs": 1.5}, "jobs must be a whole number, 1 or more: got 1.5"),
    "metric's kind": ({"metric": 3}, "metric must be a text: got 3"),
    "metric empty": ({"metric": ""}, "metric must be a text: got ''"),
    "goal's kind": ({"goal": 1}, "goal must be a text: got 1"),
    "baseline's kind": ({"baseline": 0}, "baseline must be a text: got 0"),
    "on's kind": ({"on": 3}, "on must be a text: got 3"),
    "tracker's kind": ({"log_with": ["wandb"]}, r"log_with must be a text: got \['wandb'\]"),
    "target's kind": ({"target": "5"}, "target must be a finite number: got '5'"),
    "resolve's kind": ({"resolve": True}, "resolve must be a finite number: got True"),
    "output empty": ({"output": ""}, "output must be the path of a folder: got ''"),
    "output's kind": ({"output": 3}, "output must be the path of a folder: got 3"),
    "build's kind": ({"build": nn.Identity().training}, "build must be a function: got True"),
    "train's kind": ({"train": None}, "train must be a function: got None"),
    "arms' kind": ({"arms": 3}, "arms must be names, or names and their functions: got 3"),
    "an arm's kind": ({"arms": ["original", 3]}, "an arm must be a name, with single spaces between its words: got 3"),
    "an arm twice": ({"arms": ["original", "original"]}, "arms must be different: got 'original' 2 times"),
    "an arm's spaces": ({"arms": ["original", " rezero"]}, "an arm must be a name, with .*: got ' rezero'"),
    "an arm's words": ({"arms": {"no  norm": build}}, "an arm must be a name, with .*: got 'no  norm'"),
    "an arm's name": ({"arms": {"": build}}, "an arm must be a name, with .*: got ''"),
    "an arm's function": (
        {"arms": {"original": 3}},
        "the arm original must be a function of the model, or None: got 3",
    ),
    "two functions": ({"arms": {"a": build, "a lr=2": train}}, "the arm a lr=2 must be the function of a: got another"),
    "log_with": ({"log_with": "mlflow"}, "log-with must be tensorboard, wandb, trackio: got 'mlflow'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """They are named before anything is written."""
    given, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        compare(tmp_path / "study", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_is_not_logged(tmp_path: Path) -> None:
    """It is named with what is, after the first trial."""
    with pytest.raises(UsageError, match="expected the script to log 'accuracy', got val_loss"):
        compare(tmp_path, metric="accuracy", seeds=1)


def freeze(model: nn.Module) -> nn.Module:
    """Let the gates of a converted model stay at a half."""
    rezero.convert_(model, X)
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.5).requires_grad_(False)
    return model


def test_gates_that_are_frozen_are_not_odd(tmp_path: Path) -> None:
    """Of those that should learn and do not the lab says so; these should not."""
    answer = compare(tmp_path, arms={"frozen": freeze}, seeds=2)
    assert [(each.status, each.note) for each in answer.results] == [("finished", "")] * 2
    assert {each.last.alphas for each in answer.results} == {(0.5, 0.5)}
