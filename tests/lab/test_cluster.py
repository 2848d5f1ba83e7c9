"""Trials by Ray, on a local cluster of two worker processes, and by submitit's executor for this machine."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import psutil
import pytest
import ray
import torch

from rezero import lab
from rezero.cli import run
from rezero.errors import UsageError
from rezero.lab import Store, Watcher
from rezero.lab.cluster import open_cluster
from rezero.lab.one import Work
from rezero.lab.own import OwnSettings
from rezero.lab.study import Study
from rezero.lab.sweep import run_own

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WHERE = {"ray": "ray num_cpus=2", "submitit": "slurm cluster=local"}
SIZES = "--arms plain,rezero --depth 2 --width 8 --epochs 1 --seeds 1 --threads 1 --lr 0.01"


@pytest.fixture(scope="module", autouse=True)
def _two_workers() -> Iterator[None]:
    yield
    ray.shutdown()


def numbers(folder: Path) -> list[Any]:
    with Store.open(folder) as store:
        return [
            (each.trial, each.status, [({**point.metrics, "seconds": 0}, point.alphas) for point in each.points])
            for each in store.results()
        ]


@pytest.mark.parametrize("name", WHERE)
def test_a_task_has_the_same_numbers_anywhere(tmp_path: Path, name: str) -> None:
    """Trials of other processes are those of this one, bit for bit."""
    for folder, where in (("here", []), ("there", ["--on", WHERE[name], "--jobs", "2"])):
        assert run(["compare", "fc-digits", *SIZES.split(), "-o", str(tmp_path / folder), *where]) == 0
    assert len(numbers(tmp_path / "here")) == 2
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")


def slow(place: Path) -> Work:
    """Return trials that say where they run, and wait until the file `go` is there."""

    def slowly(store: Store, trial: Any, watcher: Watcher) -> None:  # local, so that it is pickled whole
        (place / f"{trial.seed}-{os.getpid()}").touch()
        while not (place / "go").exists():
            time.sleep(0.05)
        store.begin(trial, start=-1)
        store.add(trial, lab.Point(1, 1.0, {"loss": float(trial.seed), "seconds": 0.0}, ()))
        store.finish(trial, "finished")

    place.mkdir()
    return slowly


def settings(seeds: int) -> OwnSettings:
    return OwnSettings(arms=("original",), lr=1.0, seeds=seeds, script="slowly", digest="")


@pytest.mark.parametrize("name", WHERE)
def test_a_worker_that_dies_is_replaced(tmp_path: Path, name: str) -> None:
    """Two trials run at once in two processes; kill -9 of one is counted, and its trial is run again."""
    watcher, place = create_autospec(Watcher, instance=True), tmp_path / "place"
    work = slow(place)

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(found := [*place.iterdir()]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(int(found[0].name.split("-")[1]), signal.SIGKILL)
        (place / "go").touch()

    killer = threading.Thread(target=kill)
    with Store.open(tmp_path / "study", Study("slowly", settings(3), {})) as store:
        cluster = open_cluster(WHERE[name], store.folder)
        killer.start()
        run_own(store, work, watcher, jobs=2, cluster=cluster)
        killer.join()
        assert [each.final("loss") for each in store.results()] == [0.0, 1.0, 2.0]
    pids = {path.name.split("-")[1] for path in place.iterdir() if path.name != "go"}
    assert len(pids) >= 2
    assert str(os.getpid()) not in pids
    assert [call.args[1] for call in watcher.died.call_args_list] == [1]
    assert watcher.finish.call_count == 3


def test_a_function_runs_there(tmp_path: Path) -> None:
    """Functions that only exist here reach Ray's workers; what goes wrong in one comes back."""

    def train(_: object) -> None:
        lab.log(1, loss=lab.seed())
        if lab.seed() == 1:
            raise ZeroDivisionError("gone")

    answer = lab.compare(
        build=torch.nn.Identity, train=train, arms=("original",), seeds=2, on=WHERE["ray"], jobs=2, output=tmp_path
    )
    assert [each.status for each in answer.results] == ["finished", "crashed"]
    assert "ZeroDivisionError" in next((tmp_path / "logs").iterdir()).read_text()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kubernetes", "expected ray or slurm, with options, to run on: got 'kubernetes'"),
        ("", "expected ray or slurm"),
        ("ray two", "expected options of ray as name=value, got 'two'"),
        ("slurm partitoin=gpu", "'slurm partitoin=gpu' can't be used: .*partitoin"),
        ("slurm cluster=moon", "'slurm cluster=moon' can't be used: .*moon"),
    ],
)
def test_what_is_no_cluster_is_named(tmp_path: Path, where: str, message: str) -> None:
    """An unknown one, or an unknown option, is one line."""
    with pytest.raises(UsageError, match=message):
        open_cluster(where, tmp_path)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_running(tmp_path: Path) -> None:
    """When a study is cut off, its trials elsewhere are too."""
    watcher, place = create_autospec(Watcher, instance=True), tmp_path / "place"
    work = slow(place)

    def stop(*_: object) -> None:
        if len([*place.iterdir()]) == 2:
            raise KeyboardInterrupt

    watcher.several.side_effect = stop
    with Store.open(tmp_path / "study", Study("slowly", settings(2), {})) as store, pytest.raises(KeyboardInterrupt):
        run_own(store, work, watcher, jobs=2, cluster=open_cluster(WHERE["submitit"], store.folder))
    pids = [int(path.name.split("-")[1]) for path in place.iterdir()]
    gone = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < gone:
        time.sleep(0.2)
    assert not any(map(alive, pids))
