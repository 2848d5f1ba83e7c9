"""Several trials at once, in processes that may die."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import psutil
import pytest

from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import Store, Study, Trial, TrialResult, Watcher, find_task, run_study
from rezero.lab import jobs as lab_jobs
from rezero.lab.one import missing_trials
from rezero.lab.trial import Point

pytestmark = pytest.mark.slow

TASK = find_task("fc-digits")
DATA = load_digits()
KILLS = int(os.environ.get("REZERO_KILLS", "5"))


def study(**changes: Any) -> Study:
    small = {"arms": ("plain", "rezero"), "depth": 2, "width": 8, "epochs": 2, "batch_size": 500, "seeds": 2, "tune": 2}
    return Study("fc-digits", TASK.settings({**small, **changes}), {}, DATA.name)


def timeless(results: list[TrialResult]) -> list[tuple[Trial, str, list[Any]]]:
    """Results without what a clock decides."""
    return [
        (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
        for r in results
    ]


def run(folder: Path, asked: Study, jobs: int, watcher: Watcher | None = None) -> list[TrialResult]:
    with Store.open(folder, asked) as store:
        run_study(store, TASK, DATA, watcher or create_autospec(Watcher, instance=True), jobs=jobs)
        return store.results()


@pytest.mark.timeout(300)
def test_jobs_change_no_number(tmp_path: Path) -> None:
    """Two at once end with the bits of one after another, each trial is told as it ends, and no lock stays behind."""
    watcher = create_autospec(Watcher, instance=True)
    found = run(tmp_path / "two", study(), 2, watcher)
    assert timeless(found) == timeless(run(tmp_path / "one", study(), 1))
    ends = {call.args[0].trial: call.args[0].last for call in watcher.finish.call_args_list}
    assert ends == {result.trial: result.last for result in found}
    assert list((tmp_path / "two").glob(".lock*")) == []
    assert all(result.memory for result in found)


@pytest.mark.parametrize(("epochs", "steps"), [(None, 10), (1, None)], ids=["steps", "epochs"])
def test_a_step_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int | None, steps: int | None
) -> None:
    """What is done of the trials that run is a share of each, from the first point on."""
    monkeypatch.setattr(lab_jobs, "_EVERY", 0.01)
    watcher = create_autospec(Watcher, instance=True)
    with Store.open(tmp_path / "study", study(epochs=epochs, steps=steps)) as store:
        first, second = missing_trials(store)[:2]
        for trial in (first, second):
            store.begin(trial)
            store.add(trial, Point(5, 0.5, {"train_loss": 1.0}, ()))
        with lab_jobs._looking(store.folder, watcher):
            wait_for(lambda: watcher.several.called)
            known = watcher.several.call_args
            store.finish(first, "finished")
            wait_for(lambda: watcher.several.call_args != known)
        assert (known.args, watcher.several.call_args.args) == ((2, 1.0), (1, 1.5))


def wait_for(happens: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_process_that_dies_again_and_again_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is begun again ten times, each time is told, and then the study stops with one line."""

    def die(folder: Path, trials: list[Trial], *_: Any) -> Any:
        with Store.open(folder) as store:
            store.begin(trials[0])
        raise lab_jobs.TerminatedWorkerError("gone")
        yield

    monkeypatch.setattr(lab_jobs, "_pool", die)
    watcher = create_autospec(Watcher, instance=True)
    with pytest.raises(UsageError, match=r"the process of plain, seed 1000000, died 10 times at step 0: is there mem"):
        run(tmp_path, study(), 2, watcher)
    assert [call.args[1] for call in watcher.died.call_args_list] == [*range(1, 11)]


def test_what_a_trial_refuses_ends_the_study(tmp_path: Path) -> None:
    """An error in a process of the pool is the error of the study, and what had ended is kept."""
    asked = study(tune=0)
    with Store.open(tmp_path, asked) as store:
        (tmp_path / "checkpoints").mkdir()
    with Store.open(tmp_path, asked) as store:
        slug = lab_jobs.slug(Trial("rezero", 0.01, 1))
        (tmp_path / "checkpoints" / slug / "step-000000001").mkdir(parents=True)
        with pytest.raises(UsageError, match="is not the state of a checkpoint"):
            run_study(store, TASK, DATA, create_autospec(Watcher, instance=True), jobs=2)


HERE = """
import multiprocessing, os, sys
from torch.nn import Identity
from rezero import lab

def train(model):
    lab.log(1, loss=1.0, process=os.getpid())

def main(folder):
    answer = lab.compare(build=Identity, train=train, arms=["original"], seeds=3, jobs=2, output=folder)
    assert {each.final("process") for each in answer.results} == {os.getpid()}

if __name__ == "__main__":
    if sys.argv[2] == "daemonic":
        process = multiprocessing.get_context("spawn").Process(target=main, args=sys.argv[1:2], daemon=True)
        process.start()
        process.join()
        sys.exit(process.exitcode)
    main(sys.argv[1])
"""


@pytest.mark.parametrize("where", ["daemonic", "switched off"])
def test_where_no_process_can_be_started_trials_run_in_this_one(tmp_path: Path, where: str) -> None:
    """It does not take itself for a worker whose driver is gone."""
    (tmp_path / "here.py").write_text(HERE)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "here.py"), str(tmp_path / "study"), where]
    env = {**os.environ, "JOBLIB_MULTIPROCESSING": "0" if where == "switched off" else "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def test_there_are_no_more_processes_than_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is enough for a trial; a second keeps it out of this process, which is to outlive it."""
    asked: list[int] = []

    class Pool:
        def __init__(self, n_jobs: int, **_: Any) -> None:
            asked.append(n_jobs)

        def __call__(self, _: Any) -> Iterator[Trial]:
            return iter(())

    monkeypatch.setattr(lab_jobs, "Parallel", Pool)
    for trials, jobs in ((1, 2), (1, 64), (2, 64), (3, 64), (5, 4)):
        lab_jobs._pool(tmp_path, trials * [Trial("plain", 0.1, 0)], jobs, create_autospec(lab_jobs.run_jobs))
    assert asked == [2, 2, 2, 3, 4]


def test_workers_follow_from_the_start_and_never_hear_of_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while they import what they need; here it is heard again after they are started."""
    started: list[tuple[bool, Any]] = []

    class Pool:
        def __init__(self, **how: Any) -> None:
            self.how = how

        def __call__(self, _: Any) -> Iterator[Trial]:
            blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            started.append((blocked, self.how["initargs"]))
            return iter(())

    monkeypatch.setattr(lab_jobs, "Parallel", Pool)
    lab_jobs._pool(tmp_path, [Trial("plain", 0.1, 0)], 2, create_autospec(lab_jobs.run_jobs))
    assert started == [(True, (os.getpid(),))]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SIZE = ["--depth", "8", "--width", "16", "--epochs", "3", "--seeds", "2", "--tune", "2"]
COMMAND = ["compare", "fc-digits", "--arms", "plain,rezero", *SIZE, "--jobs", "2", "--checkpoint-every", "0.2", "-o"]


@pytest.mark.timeout(60 * KILLS + 600)
def test_a_storm_of_kills_loses_nothing(tmp_path: Path) -> None:
    """Killed at random moments, driver or worker, a study keeps every trial that ended and comes to the same bits."""
    subprocess.run([sys.executable, "-m", "rezero", *COMMAND, str(tmp_path / "calm")], check=True, capture_output=True)
    with Store.open(tmp_path / "calm") as calm:
        undisturbed = timeless(calm.results())
    draw, kills, studies = random.Random(0), 0, 0
    while kills < KILLS:  # where the machine is fast a study ends before it had them all
        folder, studies = tmp_path / f"stormy-{studies}", studies + 1
        kills += _storm(folder, draw, KILLS - kills)
        with Store.open(folder) as stormy:
            assert timeless(stormy.results()) == undisturbed
        assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "calm").iterdir()}
    print(f"{kills} kills of {studies} studies")


def _storm(folder: Path, draw: random.Random, most: int) -> int:
    """Run a study to its end and kill it so many times at most; return how many it were."""
    kills, kept = 0, set[Trial]()
    while True:
        driver = subprocess.Popen([sys.executable, "-m", "rezero", *COMMAND, str(folder)], stderr=subprocess.DEVNULL)
        while driver.poll() is None:
            time.sleep(draw.uniform(0.2, 4.0))
            if kills < most and _kill_one(driver, draw):
                kills += 1
                kept = _keeps(folder, kept)
        if driver.returncode != -signal.SIGKILL:
            assert driver.returncode == 0
            return kills


def _kill_one(driver: "subprocess.Popen[bytes]", draw: random.Random) -> bool:
    """Kill the driver or one of its workers; whether there was something to kill."""
    try:
        first = psutil.Process(driver.pid)
        workers = [each for each in first.children(recursive=True) if "loky" in " ".join(each.cmdline())]
        draw.choice([first, *workers]).kill()
    except psutil.Error:
        return False
    return True


def _keeps(folder: Path, before: set[Trial]) -> set[Trial]:
    """Return the trials that have ended, among which are all that had."""
    if not (folder / "study.sqlite").exists():
        return before
    try:
        with Store.open(folder) as store:
            ended = store.done()
    except UsageError:  # killed before it was written
        return before
    assert before <= ended
    return ended
