"""A trial that goes on from a checkpoint."""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import ReZero
from rezero.data.batches import Data
from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import Checkpoints, Point, Settings, Task, Trial, find_task, open_processes, run_trial
from rezero.lab.processes import agree

pytestmark = pytest.mark.slow

TASK, DATA = find_task("fc-digits"), load_digits()
STEPS = 8  # of 3 an epoch, so that the last epoch is cut off


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a matrix product differs in its last bits between thread counts
    yield
    torch.set_num_threads(threads)


def tiny(**changes: Any) -> Settings:
    return TASK.settings({"depth": 2, "width": 8, "batch_size": 500, "seeds": 1, "steps": STEPS, **changes})


def with_dropout(data: Data, arm: str, settings: Settings) -> nn.Module:
    """A network that draws random numbers in every step."""
    blocks = [ReZero(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3))) for _ in range(2)]
    return nn.Sequential(nn.Linear(64, 8), *blocks, nn.Linear(8, data.classes))


def with_batch_norm(data: Data, arm: str, settings: Settings) -> nn.Module:
    """A network with buffers, one of them a whole number."""
    block = ReZero(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)))
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), block, nn.Linear(8, data.classes))


@dataclass
class Outcome:
    """What a run leaves: its points but for the times, and the model."""

    points: list[tuple[Any, ...]]
    weights: dict[str, Tensor]

    def add(self, point: Point) -> None:
        metrics = {name: value for name, value in point.metrics.items() if name != "seconds"}
        self.points.append((point.step, point.epoch, metrics, point.alphas, point.sample))


class StoppedError(Exception):
    """As Ctrl-C would be."""


def train(
    task: Task,
    settings: Settings,
    data: Data = DATA,
    *,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[int], object] = lambda _: None,
    arm: str = "rezero",
) -> Outcome:
    """Run a trial from its newest checkpoint, writing another one after every step."""
    models: list[nn.Module] = []

    def build(data: Data, arm: str, settings: Settings) -> nn.Module:
        models.append(task.build(data, arm, settings))
        return models[-1]

    outcome = Outcome([], {})
    with open_processes(settings) as accelerator:
        trial = Trial(arm, settings.lr, 3)
        every = 0.0 if accelerator.is_main_process else math.inf
        keep = {} if checkpoints is None else {"checkpoints": checkpoints, "checkpoint_every": every}
        start = 0 if checkpoints is None else checkpoints.latest()
        watched = replace(task, build=build)
        points = run_trial(watched, settings, trial, data, on_step, accelerator=accelerator, start=start, **keep)
        try:
            for point in points:
                outcome.add(point)
        except StoppedError:
            pass
    outcome.weights = {name: value.clone() for name, value in models[-1].state_dict().items()}
    return outcome


def stop_at(last: int) -> Callable[[int], object]:
    """Stop in the step after the last one that has a checkpoint."""

    def on_step(step: int) -> None:
        if step > last:
            raise StoppedError

    return on_step


def assert_equal(one: Outcome, other: Outcome) -> None:
    assert one.points == other.points
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert value.dtype == other.weights[name].dtype, name
        assert torch.equal(value, other.weights[name]), name


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "adagrad": ({}, None),
    "sgd-multistep": (
        {"optimizer": "SGD momentum=0.9 nesterov=true", "schedule": "MultiStepLR milestones=1e,2e gamma=0.3"},
        None,
    ),
    "adamw-warmup-cosine-clip-dropout": (
        {
            "optimizer": "AdamW weight_decay=0.1",
            "schedule": "CosineAnnealingLR eta_min=1e-4",
            "warmup": 3,
            "clip": 0.1,
            "lr": 0.03,
        },
        with_dropout,
    ),
    "one-cycle": ({"optimizer": "Adam", "schedule": "OneCycleLR max_lr=0.05"}, None),
    "warmup-constant": ({"optimizer": "RMSprop momentum=0.5", "warmup": 4, "alpha_lr": 0.1}, with_batch_norm),
    "accumulate": ({"accumulate": 3, "optimizer": "SGD momentum=0.9", "lr": 0.1}, with_dropout),
    "bf16": ({"precision": "bf16", "optimizer": "AdamW"}, with_dropout),
    "batch-norm-measured": ({"measure_every": 4, "optimizer": "NAdam"}, with_batch_norm),
}


@pytest.mark.parametrize(("changes", "build"), CASES.values(), ids=CASES)
def test_a_trial_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, changes: dict[str, Any], build: Any
) -> None:
    """Stopped after any step, a trial goes on to the same points and weights, bit for bit."""
    settings = tiny(**changes)
    task = TASK if build is None else replace(TASK, build=build)
    whole = train(task, settings)
    assert [point[0] for point in whole.points] == ([4, 8] if "measure_every" in changes else [3, 6, 8])
    assert min(map(abs, whole.points[-1][3])) > 1e-5  # alphas: the branches have a say
    for last in range(1, STEPS):
        place = Checkpoints(tmp_path / str(last), {"trial": 1})
        before = train(task, settings, checkpoints=place, on_step=stop_at(last))
        assert place.latest() == last
        after = train(task, settings, checkpoints=place)
        assert_equal(Outcome([*before.points, *after.points], after.weights), whole)


def test_a_trial_that_was_stopped_at_every_step_ends_the_same(tmp_path: Path) -> None:
    """A trial that never makes more than one step at a time ends as one that makes them all."""
    settings, task = tiny(optimizer="AdamW", warmup=2), replace(TASK, build=with_dropout)
    place, points = Checkpoints(tmp_path / "trial", {}), []
    for last in range(1, STEPS):
        points += train(task, settings, checkpoints=place, on_step=stop_at(last)).points
        assert place.latest() == last
    end = train(task, settings, checkpoints=place)
    assert_equal(Outcome([*points, *end.points], end.weights), train(task, settings))


def be_one_of_three(rank: int, folder: Path, port: int) -> None:
    """Do what one of three processes does: a trial that nothing stops, and the same stopped after three steps."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    settings = tiny(width=64, depth=8, measure_every=1)
    whole = train(TASK, settings)
    assert min(map(abs, whole.points[-1][3])) > 1e-5
    place = Checkpoints(folder / "trial", {})
    before = train(TASK, settings, checkpoints=place, on_step=stop_at(3))
    assert place.latest() == 3
    after = train(TASK, settings, checkpoints=place)
    assert_equal(Outcome([*before.points, *after.points], after.weights), whole)


def test_three_processes_that_were_stopped_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    """Three processes, whose sums depend on the order of their terms, go on to the same points and weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(be_one_of_three, (tmp_path, port), nprocs=3)


def meet_twice(rank: int, port: int) -> None:
    """Do what one of two processes does that meet for one study after another, the first of them always late."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    for study in range(2):
        with open_processes(tiny()) as accelerator:
            assert agree(accelerator, (study, rank)) == (study, 0)
            time.sleep(1.5 if rank == 0 else 0)


def test_processes_meet_for_one_study_after_another() -> None:
    """A process that is ahead waits for the others, and does not look for them where they met before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(meet_twice, (port,), nprocs=2)


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    """A trial that writes a checkpoint after every step has the numbers of one that writes none."""
    settings, task = tiny(measure_every=2), replace(TASK, build=with_dropout)
    place = Checkpoints(tmp_path / "trial", {})
    assert_equal(train(task, settings, checkpoints=place), train(task, settings))
    assert place.latest() == STEPS - 1  # the last step needs none: it has a point


def test_seconds_go_on(tmp_path: Path) -> None:
    """The time of a trial that was stopped counts what it had taken before, and not how long it lay."""
    settings, place = tiny(), Checkpoints(tmp_path / "trial", {})
    train(TASK, settings, checkpoints=place, on_step=stop_at(4))
    state = place.load(4)
    assert 0 < state["seconds"] < 60
    place.clear()
    place.save(4, {**state, "seconds": 1000.0})
    with open_processes(settings) as accelerator:
        trial = Trial("rezero", settings.lr, 3)
        named: dict[str, Any] = {"accelerator": accelerator, "checkpoints": place, "start": 4}
        points = list(run_trial(TASK, settings, trial, DATA, lambda _: None, **named))
    assert [point.step for point in points] == [6, 8]
    assert 1000 < points[0].metrics["seconds"] < points[1].metrics["seconds"] < 1060


@pytest.mark.parametrize("every", [math.inf, 1000.0], ids=["never", "long"])
def test_no_checkpoint_before_its_time(tmp_path: Path, every: float) -> None:
    """A trial that is over before the first checkpoint is due writes nothing."""
    settings, place = tiny(), Checkpoints(tmp_path / "trial", {})
    with open_processes(settings) as accelerator:
        trial = Trial("plain", settings.lr, 0)
        named: dict[str, Any] = {"accelerator": accelerator, "checkpoints": place, "checkpoint_every": every}
        assert len(list(run_trial(TASK, settings, trial, DATA, lambda _: None, **named))) == 3
    assert list(tmp_path.iterdir()) == []


def test_on_step_goes_on_counting(tmp_path: Path) -> None:
    """The steps that are heard of after a checkpoint are those that follow it."""
    settings, place, heard = tiny(), Checkpoints(tmp_path / "trial", {}), []
    train(TASK, settings, checkpoints=place, on_step=stop_at(5))
    train(TASK, settings, checkpoints=place, on_step=heard.append)
    assert heard == [6, 7, 8]


def text_study(folder: Path) -> tuple[Task, Settings, Data]:
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}; " for n in range(200)))
    small: dict[str, Any] = {
        "data": str(folder / "text.txt"),
        "arms": ("rezero",),
    }
    small |= {"depth": 2, "width": 16, "heads": 2, "context": 16, "batch_size": 8, "threads": 1}
    small |= {"steps": 6, "warmup": 2, "measure_every": 4, "lr": 0.01}
    task = find_task("lm-text")
    settings = task.settings(small)
    return task, settings, task.load(settings)


def test_a_text_ends_with_a_sample(tmp_path: Path) -> None:
    """A trial on text writes 400 bytes that continue the validation part, at its end alone, the same every time."""
    task, settings, data = text_study(tmp_path)
    whole = train(task, settings, data)
    assert [(point[0], point[4] is not None) for point in whole.points] == [(4, False), (6, True)]
    sample = whole.points[-1][4]
    assert len(whole.points[-1][3]) == 2  # a gate a layer
    content = (tmp_path / "text.txt").read_bytes()
    prompt = content[len(content) * 90 // 100 :][:64].decode()
    assert sample.startswith(prompt)
    assert 64 + 400 / 4 <= len(sample) <= 64 + 400  # some bytes are joined to one character, or are none
    assert_equal(train(task, settings, data), whole)


@pytest.mark.parametrize("last", [1, 3, 5], ids=str)
def test_a_text_that_was_stopped_ends_with_the_same_sample(tmp_path: Path, last: int) -> None:
    """A language model that goes on from a checkpoint ends with the same points, weights and sample."""
    task, settings, data = text_study(tmp_path)
    place = Checkpoints(tmp_path / "trial", {})
    before = train(task, settings, data, checkpoints=place, on_step=stop_at(last))
    after = train(task, settings, data, checkpoints=place)
    assert_equal(Outcome([*before.points, *after.points], after.weights), train(task, settings, data))


def states_that_do_not_fit() -> dict[str, Callable[[dict[str, Any]], object]]:
    return {
        "another-width": lambda state: {**state, "model": {k: v[:1] for k, v in state["model"].items()}},
        "a-weight-is-missing": lambda state: {**state, "model": dict([*state["model"].items()][1:])},
        "no-optimizer": lambda state: {k: v for k, v in state.items() if k != "optimizer"},
        "another-optimizer": lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}},
        "losses-are-a-number": lambda state: {**state, "losses": 5},
        "seconds-are-a-text": lambda state: {**state, "seconds": "abc"},
        "a-list": lambda state: [state],
        "nothing": lambda _: None,
    }


@pytest.mark.parametrize("change", states_that_do_not_fit().values(), ids=states_that_do_not_fit())
def test_a_state_that_does_not_fit_is_one_line(tmp_path: Path, change: Any) -> None:
    """A checkpoint that is whole and not of this model is a UsageError of one line, before any step."""
    place, heard = Checkpoints(tmp_path / "trial", {}), []
    train(TASK, tiny(), checkpoints=place, on_step=stop_at(2))
    state = change(place.load(2))
    place.clear()
    place.save(2, state)
    with pytest.raises(UsageError, match=r"checkpoint of Trial\(arm='rezero'.*does not fit the model") as caught:
        train(TASK, tiny(), checkpoints=place, on_step=heard.append)
    assert "\n" not in str(caught.value)
    assert heard == []
