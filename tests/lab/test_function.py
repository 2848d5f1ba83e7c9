"""Functions of one's own, compared from Python."""

import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rezero import lab
from rezero.errors import UsageError
from rezero.lab import Answer, Store
from rezero.lab.function import _digest
from rezero.lab.one import slug

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
    assert "Every arm ran at the learning rate of train: not tuned." in answer.verdict
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


DIGESTS = {
    "number": (about(1), about(2)),
    "text": (about("a"), about("b")),
    "tuple": (about((1, build)), about((2, build))),
    "function": (about(build), about(train)),
    "partial": (partial(train, 1), partial(train, 2)),
    "keyword": (partial(train, lr=1), partial(train, lr=2)),
    "lambda": (lambda _: 1, lambda _: 2),
}


def digests() -> list[list[str]]:
    return [[_digest(each) for each in pair] for pair in DIGESTS.values()]


@pytest.mark.parametrize("name", DIGESTS)
def test_another_function_is_another_study(name: str) -> None:
    """So is one that names another number, text or function."""
    one, two = DIGESTS[name]
    assert _digest(one) != _digest(two)
    assert _digest(one) == _digest(one)


def test_a_function_is_the_same_in_another_process() -> None:
    """Nothing of what tells functions apart is an address."""
    lines = "from tests.lab import test_function as here; print(here.digests())"
    command = [sys.executable, "-W", "ignore", "-c", lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == str(digests())


def test_numbers_of_another_function_are_not_taken(tmp_path: Path) -> None:
    """The folder holds another study then."""
    compare(tmp_path, train=about(1), arms=("original",), seeds=1)
    with pytest.raises(UsageError, match="holds another study"):
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


def test_ctrl_c_is_no_crash(tmp_path: Path) -> None:
    """It stops the study, which goes on when it is called again."""
    stop = [1]

    def stops(model: nn.Module) -> None:
        lab.log(1, loss=lab.seed())
        if lab.seed() == 1 and stop:
            stop.clear()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, train=stops, arms=("original",))
    with Store.open(tmp_path) as store:
        assert [each.trial.seed for each in store.results()] == [0]
    assert [each.status for each in compare(tmp_path, train=stops, arms=("original",)).results] == 3 * ["finished"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Outside of a trial the functions of a script do nothing again."""
    compare(tmp_path, seeds=1)
    model = build()
    assert lab.arm(model, X) is model
    assert (lab.seed(5), lab.lr(0.5)) == (5, 0.5)
    lab.log(1, loss=1.0)


BAD = {
    "seeds": ({"seeds": 0}, "seeds must be a whole number, 1 or more: got 0"),
    "jobs": ({"jobs": 0}, "jobs must be 1 or more: got 0"),
    "tune": ({"tune": 1}, "tune must be off, or the number of trials that every arm gets"),
    "goal": ({"goal": "up"}, "goal must be min or max: got 'up'"),
    "no-arms": ({"arms": ()}, "expected at least one arm"),
    "arm": ({"arms": ("original", "rezreo")}, r"no arm is called 'rezreo' \(did you mean 'rezero'\?\); there are "),
    "arm's own": ({"arms": ("original warmup=3",)}, "an arm of a script can have lr of its own, no warmup"),
    "baseline": ({"baseline": "plain"}, "baseline must be an arm of the study, original, rezero: got 'plain'"),
    "tune words": ({"tune": "off"}, "tune must be the number of rates that every arm tries out, 0 for none: got 'off'"),
    "no example": ({"example": ()}, "expected example=, an input of the model, by which the arm rezero converts it"),
    "target": ({"target": float("nan")}, "target must be a finite number"),
    "log_with": ({"log_with": "mlflow"}, "log-with must be tensorboard, wandb, trackio: got 'mlflow'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_write_nothing(tmp_path: Path, name: str) -> None:
    """They are named before anything is written."""
    given, message = BAD[name]
    with pytest.raises(UsageError, match=message):
        compare(tmp_path / "study", **given)
    assert not (tmp_path / "study").exists()


def test_a_metric_that_is_not_logged(tmp_path: Path) -> None:
    """It is named with what is, after the first trial."""
    with pytest.raises(UsageError, match="expected the script to log 'accuracy', got val_loss"):
        compare(tmp_path, metric="accuracy", seeds=1)
