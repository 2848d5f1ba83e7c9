"""Running the trials of a study that are missing."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch

from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import Checkpoints, Store, Study, Trial, TrialResult, Watcher, find_task, plan, run_study

TASK = find_task("fc-digits")
DATA = load_digits()


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def study(**changes: Any) -> Study:
    small = {"arms": ("plain", "rezero"), "depth": 2, "width": 8, "epochs": 2, "batch_size": 500, "seeds": 2}
    return Study("fc-digits", TASK.settings({**small, **changes}), {}, DATA.name)


def silent() -> Mock:
    return create_autospec(Watcher, instance=True)


def run(folder: Path, asked: Study, watcher: Watcher | None = None) -> list[TrialResult]:
    with Store.open(folder, asked) as store:
        run_study(store, TASK, DATA, watcher or silent())
        return store.results()


def timeless(results: list[TrialResult]) -> list[tuple[Trial, str, list[Any]]]:
    """Results without what a clock decides."""
    return [
        (
            result.trial,
            result.status,
            [(p.step, p.epoch, {**p.metrics, "seconds": None}, p.alphas) for p in result.points],
        )
        for result in results
    ]


def began(watcher: Mock) -> list[tuple[str, int]]:
    return [(call.args[0].arm, call.args[0].seed) for call in watcher.begin.call_args_list]


ALL = [("plain", 0), ("rezero", 0), ("plain", 1), ("rezero", 1)]


def test_plan_goes_seed_by_seed() -> None:
    """All arms of a seed come before the next seed, so that a study that is stopped early can be compared."""
    trials = plan(study(lr=0.5).settings, {})
    assert [(trial.arm, trial.seed) for trial in trials] == ALL
    assert {trial.lr for trial in trials} == {0.5}


def test_a_study_runs_every_trial_once(tmp_path: Path) -> None:
    """Every planned trial is run in order, with all its points, and the watcher hears of each step, point and end."""
    watcher = silent()
    results = run(tmp_path, study(), watcher)
    assert sorted((result.trial.arm, result.trial.seed) for result in results) == sorted(ALL)
    assert all(result.status == "finished" for result in results)
    assert all([point.step for point in result.points] == [3, 6] for result in results)
    heard = [name for name, _, _ in watcher.method_calls]
    assert heard == 4 * ["begin", *3 * ["step"], "point", *3 * ["step"], "point", "finish"]
    assert began(watcher) == ALL
    assert {call.args[1] for call in watcher.begin.call_args_list} == {6}
    ends = {call.args[0].trial: call.args[0].last for call in watcher.finish.call_args_list}
    assert ends == {result.trial: result.last for result in results}


def test_a_finished_study_runs_nothing(tmp_path: Path) -> None:
    """The same study again trains nothing, looks at no data but its name, and changes no number."""
    results = run(tmp_path, study())
    watcher, data = silent(), SimpleNamespace(name=DATA.name)
    with Store.open(tmp_path, study()) as store:
        run_study(store, TASK, data, watcher)  # type: ignore[arg-type]
        assert store.results() == results
    assert watcher.method_calls == []


# Where Ctrl-C can come: which call of which method of the watcher raises it, and which trials have ended by then.
INTERRUPTIONS = [
    ("begin", 1, []),
    ("step", 1, []),
    ("step", 5, []),
    ("point", 2, []),
    ("finish", 1, [("plain", 0)]),
    ("begin", 2, [("plain", 0)]),
    ("step", 6 + 4, [("plain", 0)]),
    ("step", 2 * 6 + 4, [("plain", 0), ("rezero", 0)]),
    ("point", 8, [("plain", 0), ("rezero", 0), ("plain", 1)]),
]


@pytest.mark.parametrize(
    ("method", "count", "ended"), INTERRUPTIONS, ids=[f"{method}-{count}" for method, count, _ in INTERRUPTIONS]
)
def test_an_interrupted_study_goes_on(tmp_path: Path, method: str, count: int, ended: list[tuple[str, int]]) -> None:
    """What had ended is kept, the trial that was stopped runs again, the numbers are those of an undisturbed study."""
    watcher = silent()
    getattr(watcher, method).side_effect = [*[None] * (count - 1), KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", study(), watcher)
    with Store.open(tmp_path / "stopped") as store:
        kept = store.results()
    assert {(result.trial.arm, result.trial.seed) for result in kept} == {*ended}

    again = silent()
    results = run(tmp_path / "stopped", study(), again)
    assert began(again) == [trial for trial in ALL if trial not in ended]
    assert all(result in results for result in kept)  # their seconds too: they were not run again
    assert timeless(results) == timeless(run(tmp_path / "undisturbed", study()))


@pytest.mark.parametrize(
    ("count", "starts"),
    [(1, [0, 0, 0, 0]), (5, [4, 0, 0, 0]), (6 + 4, [3, 0, 0]), (2 * 6 + 6, [5, 0])],
    ids=["first-step", "first-trial", "second-trial", "last-step-of-the-third"],
)
def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path: Path, count: int, starts: list[int]) -> None:
    """The trial that was stopped starts at its checkpoint, the others at the beginning, and no checkpoint is left."""
    watcher = silent()
    watcher.step.side_effect = [*[None] * (count - 1), KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt), Store.open(tmp_path / "stopped", study()) as store:
        run_study(store, TASK, DATA, watcher, checkpoint_every=1e-9)
    assert len(list((tmp_path / "stopped").glob("checkpoints/*/step-*"))) == (1 if starts[0] else 0)

    again = silent()
    results = run(tmp_path / "stopped", study(), again)
    assert [call.args[2] for call in again.begin.call_args_list] == starts
    first = [call.args[0] for call in again.step.call_args_list][: 6 - starts[0]]
    assert first == list(range(starts[0] + 1, 7))
    assert timeless(results) == timeless(run(tmp_path / "undisturbed", study()))
    assert list((tmp_path / "stopped").glob("checkpoints/*")) == []


def test_a_checkpoint_of_a_trial_that_has_ended_is_dropped(tmp_path: Path) -> None:
    """What a kill between a trial's end and the removal of its checkpoint leaves is gone after the same command."""
    results = run(tmp_path, study(seeds=1))
    for arm in ("plain", "rezero"):
        Checkpoints(tmp_path / "checkpoints" / f"{arm}-lr0.01-seed0", {}).save(5, "left")
    assert len(list(tmp_path.glob("checkpoints/*/step-*"))) == 2
    watcher = silent()
    assert run(tmp_path, study(seeds=1), watcher) == results
    assert watcher.method_calls == []
    assert list(tmp_path.glob("checkpoints/*")) == []


def test_checkpoints_leave_the_numbers(tmp_path: Path) -> None:
    """A study with a checkpoint after every step has the numbers of one that writes none."""
    with Store.open(tmp_path / "often", study()) as store:
        run_study(store, TASK, DATA, silent(), checkpoint_every=1e-9)
        often = store.results()
    assert timeless(often) == timeless(run(tmp_path / "never", study()))


def test_a_study_that_is_stopped_twice_goes_on(tmp_path: Path) -> None:
    """Two stops in one trial leave nothing of it behind."""
    for step in (5, 4):
        watcher = silent()
        watcher.step.side_effect = [*[None] * (step - 1), KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", study(), watcher)
    assert timeless(run(tmp_path / "stopped", study())) == timeless(run(tmp_path / "undisturbed", study()))


def test_a_diverged_arm_does_not_stop_the_study(tmp_path: Path) -> None:
    """An arm whose loss overflows is recorded as diverged, the other arms are trained to their end."""
    asked = study(arms=("residual", "post-norm"), depth=8, lr=1e6)
    results = run(tmp_path, asked)
    found = {(result.trial.arm, result.trial.seed): (result.status, result.last.step) for result in results}
    assert found == {
        ("residual", 0): ("diverged", 3),
        ("residual", 1): ("diverged", 3),
        ("post-norm", 0): ("finished", 6),
        ("post-norm", 1): ("finished", 6),
    }
    for result in results:
        assert math.isfinite(result.last.metrics["train_loss"]) == (result.trial.arm == "post-norm")


def test_a_diverged_trial_is_not_run_again(tmp_path: Path) -> None:
    """A trial that diverged has ended: the same study again leaves it."""
    asked = study(arms=("residual",), lr=1e30)
    run(tmp_path, asked)
    watcher = silent()
    run(tmp_path, asked, watcher)
    assert began(watcher) == []


@pytest.mark.parametrize("stop", [False, True], ids=["finished", "stopped"])
def test_threads_are_the_studys_while_it_runs(tmp_path: Path, stop: bool) -> None:
    """Training has the study's number of threads, and the caller's number is back afterwards."""
    torch.set_num_threads(2)
    seen: list[int] = []

    def step(_: int) -> None:
        seen.append(torch.get_num_threads())
        if stop:
            raise KeyboardInterrupt

    watcher = silent()
    watcher.step.side_effect = step
    try:
        run(tmp_path, study(threads=1), watcher)
    except KeyboardInterrupt:
        assert stop
    assert {*seen} == {1}
    assert torch.get_num_threads() == 2


def test_a_studys_numbers_do_not_depend_on_the_callers_threads(tmp_path: Path) -> None:
    """The thread count is a setting, so two runs agree to the last bit wherever they are started."""
    outcomes = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outcomes.append(timeless(run(tmp_path / str(threads), study(width=64, seeds=1))))
    assert outcomes[0] == outcomes[1]


def test_a_trial_alone_equals_the_trial_in_a_study(tmp_path: Path) -> None:
    """A trial's numbers do not depend on which trials came before it."""
    together = timeless(run(tmp_path / "together", study(arms=("plain", "pre-norm", "rezero"), seeds=1)))
    alone = timeless(run(tmp_path / "alone", study(arms=("rezero",), seeds=1)))
    assert together[-1:] == alone


def test_a_finished_study_does_not_go_on(tmp_path: Path) -> None:
    """The same command under another version, when there is nothing left to run, is no continuation of the study."""
    first = Study("fc-digits", study(seeds=1).settings, {"versions": "1", "date": "Monday"}, DATA.name)
    later = Study("fc-digits", study(seeds=1).settings, {"versions": "2", "date": "Tuesday"}, DATA.name)
    run(tmp_path, first)
    run(tmp_path, later)
    with Store.open(tmp_path) as store:
        assert store.study == first


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/rezero-lr0.01-seed1"])
def test_a_file_in_the_way_of_checkpoints_is_named_before_any_step(tmp_path: Path, place: str) -> None:
    """A file where a trial's checkpoints should lie is refused at the start, whichever trial it is."""
    with Store.open(tmp_path / "study", study()):
        pass
    (tmp_path / "study" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "study" / place).write_text("a file")
    watcher = silent()
    with pytest.raises(UsageError, match=f"{place} should become a folder for checkpoints, and is a file: move it"):
        run(tmp_path / "study", study(), watcher)
    assert watcher.method_calls == []


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=["cpu", "cuda", "python", "another-fault"],
)
def test_memory_that_runs_out_on_the_way_is_one_line(tmp_path: Path, error: Exception, named: bool) -> None:
    """Where memory runs out in a trial one line says what to make smaller, and the trials before it are kept."""
    watcher = silent()
    watcher.step.side_effect = [*[None] * 6, error]
    message = r"^cpu has not the memory for depth 2, width 8 and batch-size 500: make them smaller, or .*--accumulate$"
    expected = pytest.raises(UsageError, match=message) if named else pytest.raises(RuntimeError, match="mat1")
    with expected, Store.open(tmp_path, study()) as store:
        run_study(store, TASK, DATA, watcher)
    with Store.open(tmp_path) as store:
        assert len(store.results()) == 1
