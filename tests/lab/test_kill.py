"""Studies that are killed: real processes, real signals."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import psutil
import pytest
from tests.forked import Forked

from rezero.data.digits import load_digits
from rezero.lab import Store, Study, Watcher, find_task, run_study

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]

TASK, DATA = find_task("fc-digits"), load_digits()
SIZES = {"arms": ("plain", "rezero"), "depth": 8, "width": 32, "epochs": 14, "seeds": 1, "threads": 1}
STEPS = 168
ALONE = [sys.executable, "-m", "rezero"]
TOGETHER = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2", "-m", "rezero"),
]
PATIENCE = 120.0  # seconds, on a machine that does other things too


def arguments(folder: Path, checkpoint_every: float) -> list[str]:
    sizes = {**SIZES, "arms": "plain,rezero", "checkpoint-every": checkpoint_every, "output": folder}
    return ["compare", "fc-digits", *(str(word) for name, value in sizes.items() for word in (f"--{name}", value))]


class Run:
    """A command line that was started, with all the processes that it starts.

    Args:
        command: The program.
        folder: The study's folder; what is printed lies beside it.
        checkpoint_every: Seconds between checkpoints.
    """

    def __init__(self, command: list[str], folder: Path, checkpoint_every: float = 0.05) -> None:
        self.folder = folder
        self.printed = folder.with_name(f"{folder.name}-stderr.txt")
        with self.printed.open("w") as stderr:
            self.process = (Forked if command == ALONE else subprocess.Popen)(
                [*command, *arguments(folder, checkpoint_every)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something that this run does."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            assert self.process.poll() is None, f"it ended too soon: {self.stderr}"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def kill(self) -> None:
        """Send SIGKILL to every process; torchrun puts each into a session of its own."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        for each in (self.process, *children):
            each.kill()
        self.process.wait(PATIENCE)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert not alive

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    @property
    def stderr(self) -> str:
        return self.printed.read_text(encoding="utf-8")


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Start runs, none of which outlives the test."""
    runs: list[Run] = []

    def begin(*given: Any, **named: Any) -> Run:
        runs.append(Run(*given, **named))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()


def newest(folder: Path, arm: str = "*") -> int:
    """The step of the newest checkpoint of the trial that runs, 0 if there is none."""
    paths = folder.glob(f"checkpoints/{arm}-lr0.01-seed0/step-*")
    return max((int(path.name.removeprefix("step-")) for path in paths), default=0)


def numbers(folder: Path) -> list[Any]:
    """All results of a study but the times."""
    with Store.open(folder) as store:
        return [
            (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
            for r in store.results()
        ]


def go_on_here(folder: Path) -> list[int]:
    """Bring a study of one process to its end in this process; return the steps that its trials started from."""
    watcher = create_autospec(Watcher, instance=True)
    with Store.open(folder, Study("fc-digits", TASK.settings(SIZES), {}, DATA.name)) as store:
        run_study(store, TASK, DATA, watcher)
    return [call.args[2] for call in watcher.begin.call_args_list]


def assert_learned(results: list[Any]) -> None:
    """Both trials have all their points, and gates that have left zero, so that equal numbers say something."""
    (_, first, plain), (_, second, rezero) = results
    assert (first, second) == ("finished", "finished")
    assert len(plain) == len(rezero) == SIZES["epochs"]
    assert min(abs(alpha) for alpha in rezero[-1][3]) > 1e-3
    assert rezero[-1][2]["train_loss"] < rezero[0][2]["train_loss"] / 5


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The numbers of the study of one process that nothing stops, without a checkpoint."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert go_on_here(folder) == [0, 0]
    results = numbers(folder)
    assert_learned(results)
    return results


@pytest.fixture(scope="module")
def undisturbed_together(tmp_path_factory: pytest.TempPathFactory, undisturbed: list[Any]) -> list[Any]:
    """The numbers of the same study in two processes that nothing stops: those of one process but for rounding."""
    folder = tmp_path_factory.mktemp("undisturbed") / "together"
    run = Run(TOGETHER, folder, checkpoint_every=1000)
    try:
        assert run.end() == 0, run.stderr
    finally:
        run.kill()
    assert "goes on" not in run.stderr
    with Store.open(folder) as store:
        assert store.study.settings.processes == 2
    results = numbers(folder)
    assert_learned(results)
    assert results != undisturbed
    for (_, _, alone), (_, _, together) in zip(undisturbed, results, strict=True):
        assert [point[:2] for point in alone] == [point[:2] for point in together]
        for name in ("train_loss", "val_loss"):
            assert together[0][2][name] == pytest.approx(alone[0][2][name], rel=1e-4)
    return results


@pytest.mark.parametrize(
    ("command", "expected"),
    [(ALONE, "undisturbed"), (TOGETHER, "undisturbed_together")],
    ids=["one-process", "two-processes"],
)
def test_a_killed_study_ends_as_if_it_had_not_been(
    tmp_path: Path, request: pytest.FixtureRequest, start: Callable[..., Run], command: list[str], expected: str
) -> None:
    """After kill -9 the same command goes on from the newest checkpoint, and ends with the very same numbers."""
    folder = tmp_path / "study"
    first = start(command, folder)
    first.until(lambda: newest(folder, "rezero") > 0)
    first.kill()
    assert first.process.returncode == -signal.SIGKILL
    left = newest(folder)
    assert 0 < left < STEPS
    assert [trial.arm for trial, *_ in numbers(folder)] == ["plain"]

    again = start(command, folder)
    assert again.end() == 0, again.stderr
    assert "1 of 2 trials are in" in again.stderr
    assert re.findall(r"^(\w+) +seed 0 +goes on from step (\d+)$", again.stderr, re.MULTILINE) == [
        ("rezero", str(left))
    ]
    assert newest(folder) == 0  # a trial that has ended needs no checkpoint
    assert (folder / "report.html").stat().st_size > 0
    assert numbers(folder) == request.getfixturevalue(expected)


def test_kills_at_random_moments_leave_no_trace(
    tmp_path: Path, undisturbed: list[Any], start: Callable[..., Run]
) -> None:
    """Killed five times while it writes a checkpoint after every step, a study still ends with the same numbers."""
    folder, chance = tmp_path / "study", random.Random(0)
    steps = [0]
    for _ in range(5):
        run = start(ALONE, folder, checkpoint_every=1e-9)
        run.until(lambda: newest(folder) > steps[-1])
        time.sleep(chance.uniform(0, 0.1))
        run.kill()
        assert run.process.returncode == -signal.SIGKILL
        if steps[-1]:
            assert re.findall(r"goes on from step (\d+)$", run.stderr, re.MULTILINE) == [str(steps[-1])]
        steps.append(newest(folder))
    assert 0 < steps[1] < steps[2] < steps[3] < steps[4] < steps[5] < STEPS
    assert go_on_here(folder) == [steps[-1], 0]
    assert numbers(folder) == undisturbed


def test_ctrl_c_keeps_the_checkpoint(tmp_path: Path, undisturbed: list[Any], start: Callable[..., Run]) -> None:
    """Ctrl-C is exit code 130 and one line without a traceback; the study goes on from the checkpoint that is there."""
    folder = tmp_path / "study"
    run = start(ALONE, folder)
    run.until(lambda: newest(folder, "rezero") > 0)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    plain, last = [line for line in run.stderr.splitlines() if line]
    assert plain.startswith(f"plain   seed 0  {STEPS} steps")
    assert last == "rezero: stopped; what is done is kept, and the same command goes on from there"
    assert numbers(folder) == undisturbed[:1]
    left = newest(folder)
    assert go_on_here(folder) == [left]
    assert 0 < left < STEPS
    assert numbers(folder) == undisturbed


# The first of two processes, which waits for a second one that never comes.
LONELY = """
import os, sys
from rezero.lab import find_task, open_processes
settings = find_task("fc-digits").settings({"threads": 1})
print("ready", flush=True)
with open_processes(settings):
    pass
"""


def test_ctrl_c_ends_a_process_that_waits_for_another(tmp_path: Path) -> None:
    """Ctrl-C ends a process at once that waits for the others of its group, one of which has ended already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-c", LONELY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **group, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(3)  # until it waits
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
