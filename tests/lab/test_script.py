"""Scripts of one's own: run by themselves, and as the trials of a study."""

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import psutil
import pytest
import torch
from tests.forked import Forked

from rezero import lab
from rezero.cli import run
from rezero.errors import UsageError
from rezero.lab import OwnSettings, Store, Study, TrialResult, Watcher, launch
from rezero.lab.launch import run_script
from rezero.lab.script import running
from rezero.lab.sweep import run_own

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
import torch
from torch import nn
from rezero import lab

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.branch(x)

torch.manual_seed(lab.seed(7))
model = nn.Sequential(*(Block() for _ in range(3)))
x = torch.randn(64, 8)
model = lab.arm(model, x[:2])
optimizer = torch.optim.SGD(model.parameters(), lr=lab.lr(0.01))
for step in range(1, 31):
    loss = (model(x) - x.flip(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        lab.log(step, train_loss=loss)
    {each}
lab.log(30, val_loss=loss.item())
print("weights", sum(p.double().sum().item() for p in model.parameters()))
"""

# The same with an optimizer of its own: a process waits a second for torch's first one.
OWN = """
class Descent:
    def __init__(self, parameters, lr):
        self.parameters, self.lr = [*parameters], lr

    def zero_grad(self):
        for each in self.parameters:
            each.grad = None

    def step(self):
        for each in self.parameters:
            each.data.sub_(each.grad, alpha=self.lr)

"""
QUICK = SCRIPT.replace("torch.optim.SGD", "Descent").replace("\ntorch.manual", f"{OWN}torch.manual")

LIGHT = """
import os, sys, time
from rezero import lab

value = 1.0
for step in range(1, 31):
    if step % 10 == 0:
        lab.log(step, train_loss=value * lab.lr(1.0) / (step + lab.seed()))
    {each}
lab.log(30, val_loss=value)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a script into a folder of its own, from which everything is run."""
    monkeypatch.chdir(tmp_path)

    def write(each: str = "pass", text: str = SCRIPT) -> Path:
        path = tmp_path / "train.py"
        path.write_text(text.replace("{each}", each))
        return path

    return write


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are forked processes, which know torch already."""
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Forked}))


@pytest.fixture
def _started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are started as they are for everybody."""
    monkeypatch.setattr(launch, "subprocess", subprocess)


def compare(*more: str, output: str = "study") -> int:
    return run(["compare", "--script", "train.py", "-o", output, *more])


def measure(*, arms: tuple[str, ...] = ("original",), **more: Any) -> list[TrialResult]:
    """Run a study of the script without a command line and a report."""
    digest = sha256(Path("train.py").read_bytes()).hexdigest()
    settings = OwnSettings(arms=arms, lr=1.0, script="train.py", digest=digest, **more)
    with Store.open(Path("study"), Study("train.py", settings, {})) as store:
        run_own(store, run_script, create_autospec(Watcher, instance=True))
        return store.results()


def results(folder: str = "study") -> list[TrialResult]:
    with Store.open(Path(folder)) as store:
        return store.results()


def by_itself() -> str:
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_script_by_itself_behaves_as_without_the_lab(script: Callable[..., Path]) -> None:
    """Run alone, its numbers are those of the same script without the lab's lines, and it writes nothing."""
    text = re.sub(r"^ *lab\.log.*\n|^model = lab\.arm.*\n|^from rezero import lab\n", "", SCRIPT, flags=re.M)
    text = text.replace("lab.seed(7)", "7").replace("lab.lr(0.01)", "0.01").replace("if step % 10 == 0:", "pass")
    assert "lab." not in text
    script(text=text)
    without = by_itself()
    script()
    assert by_itself() == without
    assert [each.name for each in Path.cwd().iterdir()] == ["train.py"]
    script(text=SCRIPT.replace("lab.seed(7)", "lab.seed(7) + 7"))
    measure(seeds=1)
    assert Path("study/logs/original-lr1.0-seed0.log").read_text() == without  # at the script's own rate


@pytest.mark.usefixtures("_started")
def test_a_script_is_compared(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Every arm runs on every seed; the original is the script's own run, and rezero has gates that move."""
    script()
    alone = by_itself()  # with seed 7
    assert compare("--seeds", "2") == 0
    out = capsys.readouterr().out
    assert "rezero against original, 2 paired seeds" in out
    rate = "Every arm ran at the learning rate of train.py: not tuned, and what suits one may not suit another."
    assert f"\n\ntrain.py: 2 seeds. {rate}\n\nrezero against" in out
    found = {(each.trial.arm, each.trial.seed): each for each in results()}
    assert found.keys() == {(arm, seed) for arm in ("original", "rezero") for seed in (0, 1)}
    for (arm, _), each in found.items():
        assert each.status == "finished"
        assert [point.step for point in each.points] == [10, 20, 30]
        assert each.points[-1].metrics.keys() == {"train_loss", "val_loss", "seconds"}
        assert each.memory is not None
        assert each.memory > 1e7
        assert {len(point.alphas) for point in each.points} == {3 if arm == "rezero" else 0}
    assert all(abs(alpha) > 1e-4 for alpha in found["rezero", 0].last.alphas)
    assert found["original", 0].last.metrics["val_loss"] != found["original", 1].last.metrics["val_loss"]
    printed = {Path(f"study/logs/original-lr1.0-seed{seed}.log").read_text() for seed in (0, 1)}
    assert len(printed | {alone}) == 3
    assert not [*Path("study/logs").glob("*.json*")]
    assert run(["report", "study", "--metric", "train_loss"]) == 0
    assert "training loss" in capsys.readouterr().out.split("rezero against original")[1]
    assert run(["report", "study", "--metric", "f1"]) == 2
    assert "expected the script to log 'f1', got train_loss, val_loss" in capsys.readouterr().err


def test_the_rate_is_tuned(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Rates are tried out as multiples of the script's own, on seeds that the comparison does not use."""
    script(text="from rezero import lab\nlab.log(1, loss=abs(lab.lr(10.0) - 30.5))\n")
    assert compare("--seeds", "2", "--tune", "3", "--arms", "original", "--jobs", "2") == 0
    assert sorted(each.trial.lr for each in results() if each.trial.tuning) == [0.3, 1.0, 3.0, 10.0]
    assert {each.trial.lr for each in results() if not each.trial.tuning} == {3.0}
    assert "times that of train.py" in " ".join(capsys.readouterr().out.split())


def test_arms_of_ones_own_and_arguments(script: Callable[..., Path]) -> None:
    """A script's own arm is its function; what stands behind -- is given to it as it is."""
    script(
        text=QUICK.replace("lab.arm(model, x[:2])", "lab.arm(model, x[:2], arms={'short': lambda model: model[:1]})")
        + "print(len(model), sys.argv[1:])\n"
    )
    assert compare("--seeds", "1", "--arms", "short, rezero lr=2", "--", "--depth", "-3", "a b") == 0
    assert Path("study/logs/short-lr1.0-seed0.log").read_text().endswith("1 ['--depth', '-3', 'a b']\n")
    assert Path("study/logs/rezero-lr=2-lr2.0-seed0.log").read_text().endswith("3 ['--depth', '-3', 'a b']\n")


def test_an_arm_with_a_space_is_itself(script: Callable[..., Path]) -> None:
    """The whole name tells an arm, also where its first word is another one."""
    names = ["short", "short one", "short-one"]
    arms = ", ".join(f"{name!r}: lambda model: model[:{length}]" for length, name in enumerate(names, 1))
    script(text=QUICK.replace("lab.arm(model, x[:2])", f"lab.arm(model, arms={{{arms}}})") + "print(len(model))\n")
    assert compare("--seeds", "1", "--arms", ",".join(names), "--jobs", "2") == 0
    assert sorted(path.read_text()[-2:] for path in Path("study/logs").iterdir()) == ["1\n", "2\n", "3\n"]


def test_an_arm_may_have_a_long_name_of_any_letters(script: Callable[..., Path]) -> None:
    """Its files have a name that a file system takes, which counts bytes."""
    script(text=LIGHT)
    assert [each.status for each in measure(arms=(60 * "\U0001d51e",), seeds=1)] == ["finished"]


def test_a_script_that_changes_meanwhile(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Its later trials would be of another study: it ends, and goes on once the change is undone."""
    before = script("if step == 30 and lab.seed() == 0: open('train.py', 'a').write('#')", text=LIGHT).read_bytes()
    options = ["--seeds", "2", "--arms", "original"]
    assert compare(*options) == 2
    assert "train.py has changed since the study began: undo that" in capsys.readouterr().err.splitlines()[-1]
    assert len(results()) == 1
    Path("train.py").write_bytes(before)
    assert compare(*options) == 0
    assert len(results()) == 2


def test_a_script_whose_lab_was_killed_writes_into_no_other_run(script: Callable[..., Path]) -> None:
    """What it is to do is gone with its lab, and where it wrote is read by nobody."""
    script(text=LIGHT)
    done = subprocess.run(
        [sys.executable, "train.py"], env={**os.environ, "REZERO_TRIAL": "gone.json"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    measure(seeds=1)
    with Store.open(Path("study")) as store:
        store.forget()
    (stale := Path("study/logs/original-lr1.0-seed0.deadbeef.jsonl")).write_text('{"step": 99, "metrics": {}}\n')
    (found,) = measure(seeds=1)
    assert [point.step for point in found.points] == [10, 20, 30]
    assert not stale.exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_threads_are_those_of_the_command(
    script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    """A script computes with as many threads whether it runs alone or beside others, and so to the same bits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    script(
        text=LIGHT + "lab.log(30, **{f'loss_{n}': int(os.environ.get(f'{n}_NUM_THREADS', 0)) for n in ('OMP', 'MKL')})"
    )
    assert compare("--seeds", "2", "--arms", "original", "--jobs", jobs) == 0
    assert [(each.final("loss_OMP"), each.final("loss_MKL")) for each in results()] == [(0, 3), (0, 3)]


FAULTS = {
    "crash": ("if step == 20: raise RuntimeError('out of luck')", "crashed", "exit code 1: RuntimeError: out of luck"),
    "killed": ("if step == 20: os.kill(os.getpid(), 9)", "crashed", "killed by signal SIGKILL; its last line: it pri"),
    "real-time signal": ("if step == 20: os.kill(os.getpid(), 40)", "crashed", "killed by signal 40; its last line: "),
    "exit": ("if step == 20: print('enough'); sys.exit(3)", "crashed", "exit code 3: enough"),
    "hangs": ("if step == 20: time.sleep(1000)", "timed out", "it was ended after 8 seconds"),
    "escapes": (
        r"if step == 20: print('\x1b[31mno\tmore\x9b0m\x07\n\x1b\x07'); sys.exit(3)",
        "crashed",
        r"exit code 3: \[31mno more0m$",
    ),
    "nan": ("value = float('nan') if step == 30 else 1.0", "diverged", ""),
    "twice": ("if step == 20: lab.log(20, train_loss=1.0)", "finished", "a step was logged again, .*, once: the last"),
    "back": ("if step == 30: lab.log(10, train_loss=1.0)", "finished", "a step was logged again, or after a later one"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_is_recorded(script: Callable[..., Path], name: str) -> None:
    """A trial that fails has its status, the reason, and what it had measured before."""
    fault, status, note = FAULTS[name]
    script(fault, text=LIGHT)
    (found,) = measure(seeds=1, time_limit=8.0)
    assert found.status == status
    assert re.match(note, found.note)
    assert found.points[0].step == 10
    assert math.isfinite(found.final("train_loss")) == (status == "finished")


TORN = {
    "cut off": (b'{"step": 10, "met', "1 line of what was logged was lost"),
    "joined": (b'{"step": 10, "met{"step": 20}\n\n', "1 line of what was logged was lost"),
    "no object": (b"15\n\xff\n", "2 lines of what was logged were lost"),
}


@pytest.mark.parametrize("name", TORN)
def test_a_line_that_is_torn_is_lost(script: Callable[..., Path], name: str) -> None:
    """The others count, and a note says so, also of a line that never ended."""
    text, note = TORN[name]
    journal = "json.load(open(os.environ['REZERO_TRIAL']))['journal']"
    script(text=f"import json\n{LIGHT}with open({journal}, 'ab') as file:\n    file.write({text!r})\n")
    (found,) = measure(seeds=1)
    assert (found.status, found.note) == ("finished", note)
    assert [point.step for point in found.points] == [10, 20, 30]


def test_a_study_goes_on_after_a_crash(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The other seeds are measured; the words and the report say what happened."""
    script("if lab.seed() == 0: raise RuntimeError('out of luck')", text=LIGHT)
    assert compare("--seeds", "2", "--arms", "original") == 0
    assert [each.status for each in results()] == ["crashed", "finished"]
    assert "mean of 1 seed; 1 crashed" in " ".join(capsys.readouterr().out.split())
    page = Path("study/report.html").read_text()
    assert "What went wrong" in page
    assert "original, seed 0: crashed, exit code 1: RuntimeError: out of luck" in page


def test_a_script_that_logs_nothing(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """If no arm measures anything the study ends at once and says so, and a mended script takes its place."""
    script(text="from rezero import lab\nprint('hello')\n")
    assert compare("--seeds", "3") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # one a trial that ran, and the end
    assert "no arm measured anything: original silent (nothing was logged: call rezero.lab.log(step, ...))" in lines[-1]
    assert not results()
    script()
    assert compare("--seeds", "1", "--arms", "original") == 0
    assert len(results()) == 1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_arm_that_cannot_be_applied(
    script: Callable[..., Path], capsys: pytest.CaptureFixture[str], jobs: str
) -> None:
    """The study ends at the first such trial, before others are trained for nothing; what was measured is kept."""
    script(text=QUICK.replace("x + self.branch(x)", "self.branch(x)"))
    assert compare("--seeds", "9", "--jobs", jobs) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "rezero: the arm rezero can't be applied: expected residual additions, found none. Mend that"
    )
    assert len(results()) < 4
    assert {each.trial.arm for each in results()} <= {"original"}
    assert compare("--seeds", "9", "--arms", "original,rezreo", output="other") == 2
    assert "expected an arm out of original, rezero: got 'rezreo'" in capsys.readouterr().err


UNUSED = {
    "arm": ("model = lab.arm(model, x[:2])", "model = model", (), r"train\.py never called rezero\.lab\.arm\(model, "),
    "lr": ("lab.lr(0.01)", "0.01", ("--tune", "2"), r"train\.py never read rezero\.lab\.lr\(\.\.\.\)"),
    "given lr": ("lab.lr(0.01)", "0.01", ("--arms", "rezero lr=3"), r"train\.py never read rezero\.lab\.lr"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_a_script_does_not_use_is_no_comparison(
    script: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Arms that are one model, and rates that nobody reads, end the study in one line after its first trial."""
    old, new, options, message = UNUSED[name]
    script(text=QUICK.replace(old, new))
    assert compare("--seeds", "2", *options) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert results() == []


DOUBTS = {
    "unseeded": (
        "lab.seed(7)",
        "time.time_ns() % 2**32",
        "The seeds were never read (rezero.lab.seed()): runs are paired by chance",
    ),
    "one seed": ("lab.seed(7)", "7 + 0 * lab.seed()", "All seeds of original, rezero gave the very same numbers"),
    "no gate": (
        "model = lab.arm(model, x[:2])",
        "parameters = [*model.parameters()]; model = lab.arm(model, x[:2]); model.parameters = lambda: parameters",
        "No gate of rezero moved: was the optimizer made before rezero.lab.arm()?",
    ),
    "same arm": (
        "lab.arm(model, x[:2])",
        "lab.arm(model, arms={'rezero': lambda m: m})",
        "rezero gave the very same num",
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_makes_a_verdict_doubtful_stands_before_it(
    script: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Numbers that can't be what they are taken for are named where they are read."""
    old, new, doubt = DOUBTS[name]
    script(text=QUICK.replace(old, new))
    assert compare("--seeds", "2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert doubt in said.split("rezero against original")[0]


def test_failed_trials_are_run_again_when_asked(script: Callable[..., Path]) -> None:
    """They are kept as they ended, until --retry."""
    script("if step == 20 and lab.seed() == 1 and not os.path.exists('mended'): sys.exit(1)", text=LIGHT)
    assert compare("--seeds", "2", "--arms", "original") == 0
    before = results()
    assert [each.status for each in before] == ["finished", "crashed"]
    Path("mended").touch()
    assert compare("--seeds", "2", "--arms", "original") == 0
    assert results() == before
    assert compare("--seeds", "2", "--arms", "original", "--retry") == 0
    assert [each.status for each in results()] == ["finished", "finished"]
    assert results()[0] == before[0]


def test_what_decides_no_number_can_be_asked_anew(
    script: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another metric needs no training where nothing is tuned by it, and another limit of time only what it cut off."""
    script(text=LIGHT.replace("val_loss", "odd"), each="time.sleep(100 if step == 15 and lab.seed() == 1 else 0)")
    asked = ["--seeds", "2", "--arms", "original"]
    assert compare(*asked, "--time-limit", "5", "--metric", "odd") == 2
    assert "is a low or a high odd good? Give --goal min or --goal max" in capsys.readouterr().err
    assert compare(*asked, "--time-limit", "4", "--metric", "odd", "--goal", "max") == 0
    assert "original alone: odd 1.000" in " ".join(capsys.readouterr().out.split())
    before = results()
    assert [each.status for each in before] == ["finished", "timed out"]
    assert compare(*asked, "--time-limit", "6", "--retry") == 0
    assert "original alone: training loss" in " ".join(capsys.readouterr().out.split())
    assert results()[0] == before[0]
    assert results()[1].note == "it was ended after 6 seconds"


def test_another_script_is_another_study(script: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A script that was changed does not go on with the numbers of the old one."""
    script(text="from rezero import lab\nlab.log(1, loss=1.0)\n")
    assert compare("--seeds", "1", "--arms", "original") == 0
    script(text="from rezero import lab\nlab.log(1, loss=2.0)\n")
    capsys.readouterr()
    assert compare("--seeds", "1", "--arms", "original") == 2
    assert "holds another study (train.py has changed since): choose another folder" in capsys.readouterr().err


SPAWNING = """
import multiprocessing
from rezero import lab

seed = lab.seed()

def work(_):
    return seed

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(work, range(4)) == 4 * [seed]
    lab.log(1, loss=seed)
"""


THREADED = """
import threading
from rezero import lab

def work():
    began.wait()
    lab.log(1, loss=1.0)

began = threading.Event()
thread = threading.Thread(target=work)
thread.start()
began.set()
thread.join()
lab.log(2, loss=0.5)
"""


def test_threads_that_a_script_starts_log(script: Callable[..., Path]) -> None:
    """Also one that was there before the script said anything to the lab."""
    script(text=THREADED)
    (found,) = measure(seeds=1)
    assert [point.step for point in found.points] == [1, 2]


@pytest.mark.usefixtures("_started")
def test_processes_that_a_script_starts_know_the_trial(script: Callable[..., Path]) -> None:
    """They live as long as the script wants, such as a DataLoader's that import it anew."""
    script(text=SPAWNING)
    (found,) = measure(seeds=1)
    assert (found.status, found.note) == ("finished", "")
    assert [point.step for point in found.points] == [1]


def waiting_for(folder: Path, steps: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "study.sqlite"
        if path.exists():
            with closing(sqlite3.connect(path, timeout=30)) as connection:
                try:
                    if connection.execute("SELECT count(*) FROM metric").fetchone()[0] >= steps:
                        return
                except sqlite3.OperationalError:
                    pass
        time.sleep(0.05)
    pytest.fail(f"it did not get so far: {process.poll()}")


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_script_ends_with_the_study(script: Callable[..., Path], jobs: int) -> None:
    """kill -9 of the command leaves no process behind; the same command ends with the numbers of one undisturbed."""
    script("time.sleep(0 if os.path.exists('quick') else 0.1)", text=LIGHT)
    arguments = ["compare", "--script", "train.py", "--seeds", "2", "--arms", "original", "--jobs", str(jobs)]
    process = Forked([sys.executable, "-m", "rezero", *arguments, "-o", "study"], stderr=subprocess.DEVNULL)
    waiting_for(Path("study"), 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    assert any("train.py" in each.cmdline() for each in below)
    process.kill()
    process.wait()
    scripts = [each for each in below if each.is_running()]
    assert not psutil.wait_procs(scripts, timeout=20)[1]
    Path("quick").touch()
    assert run([*arguments, "-o", "study"]) == 0
    assert run([*arguments, "-o", "undisturbed"]) == 0
    assert [numbers(each) for each in results()] == [numbers(each) for each in results("undisturbed")]


def numbers(result: TrialResult) -> Any:
    metrics = [{**point.metrics, "seconds": 0} for point in result.points]
    return result.trial, result.status, metrics, [point.alphas for point in result.points]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_the_script(script: Callable[..., Path]) -> None:
    """Ctrl-C ends the script too, keeps what is done, and exits with 130."""
    script("time.sleep(0.1)", text=LIGHT)
    process = Forked(
        [sys.executable, "-m", "rezero", "compare", "--script", "train.py", "--seeds", "2", "-o", "study"],
        stderr=subprocess.DEVNULL,
    )
    waiting_for(Path("study"), 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not psutil.wait_procs(below, timeout=5)[1]


BAD = {
    "log(step, train_loss='high')": "expected a step and metrics that are numbers, got step=1, {'train_loss': 'high'}",
    "log(step, train_loss=torch.zeros(2))": "expected a step and metrics that are numbers",
    "log(step, seconds=3.0)": "seconds is what the lab measures itself: log yours by another name",
    "log(step, alpha_12=3.0)": "alpha_12 is what the lab measures itself",
    "log(step, loss='0.5')": "expected a step and metrics that are numbers, got step=1, {'loss': '0.5'}",
    "log(step, loss=10**400)": "expected a step and metrics that are numbers",
    "log(2.9, loss=1.0)": "expected a step and metrics that are numbers, got step=2.9",
    "log(-1, train_loss=3.0)": "expected a step and metrics that are numbers, got step=-1",
    "log('one', train_loss=3.0)": "expected a step and metrics that are numbers, got step='one'",
    "arm(torch.nn.Linear(1, 1), arms={'rezreo': None})": "expected an arm out of original, rezero, rezreo: got 'other'",
}


@pytest.mark.parametrize("call", BAD)
def test_wrong_calls_are_named(call: str) -> None:
    """What the lab can't take is an error that says what it takes."""
    with running("other", 1.0, 0, lambda _: None), pytest.raises(UsageError, match=re.escape(BAD[call])):
        eval(call, {"log": lab.log, "arm": lab.arm, "torch": torch, "step": 1})  # noqa: S307 - the cases above


def test_lines_are_json_that_a_kill_cannot_tear(script: Callable[..., Path]) -> None:
    """Each call of log is one line of the journal, written at once; numbers that are not finite are null."""
    script("if step == 10: lab.log(10, odd=float('inf'))", text=QUICK)
    order = {"arm": "rezero", "lr": 1.0, "seed": 0, "journal": str(Path("journal").absolute()), "lab": os.getpid()}
    Path("order").write_text(json.dumps(order))
    subprocess.run([sys.executable, "train.py"], env={**os.environ, "REZERO_TRIAL": "order"}, check=True)
    told = [json.loads(line) for line in Path("journal").read_text().splitlines()]
    assert [line for line in told if "step" not in line] == [
        {"read": "seed"},
        {"read": "arm", "alphas": [0.0, 0.0, 0.0]},
        {"read": "lr"},
    ]
    lines = [line for line in told if "step" in line]
    assert [line["step"] for line in lines] == [10, 10, 20, 30, 30]
    assert lines[1]["metrics"] == {"odd": None}
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


FULL = """
import errno, os

write, room = os.write, 500

def short(file, text):
    global room
    if not room:
        room = 10**6
        raise OSError(errno.ENOSPC, "full")
    written = write(file, text[:min(room, 50)])
    room -= written
    return written

os.write = short
"""


def test_a_line_that_a_full_disk_cuts_off_goes_on_later(script: Callable[..., Path]) -> None:
    """The script is told of the full disk; if it goes on, each line is whole in the end."""
    text = FULL + LIGHT.replace("if step % 10 == 0:", "try:") + "print(failed)\n"
    script("except OSError:\n        failed = step", text=text)
    (found,) = measure(seeds=1)
    assert (found.status, found.note) == ("finished", "")
    assert [point.step for point in found.points] == [*range(1, 31)]
    assert 1 < int(Path("study/logs/original-lr1.0-seed0.log").read_text()) < 30
