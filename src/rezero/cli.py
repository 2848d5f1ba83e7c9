"""The commands, thin: read the options, call the lab, show how it goes."""

# Nothing here imports torch until a command runs, so that --help answers at once.

import os
import platform
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter, Token

from rezero.errors import UsageError

if TYPE_CHECKING:
    from rezero.lab import Store, Study

__all__ = ["app", "run"]

app = App(
    name="rezero",
    help="Residual blocks whose gate starts at zero: compare them with other arms, honestly.",
    version=lambda: version("rezero-torch"),
    suppress_keyboard_interrupt=False,  # run() says what Ctrl-C leaves behind
)


def _read_whole_number(_: object, tokens: Sequence[Token]) -> int:
    # The framework's own reading of an int takes 2.5 for 2.
    text = tokens[0].value
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f'expected a whole number, got "{text}"') from error


Count = Annotated[int | None, Parameter(converter=_read_whole_number)]


def run(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        Exit code: 0 done, 2 for a request that cannot be carried out, 130 when stopped by Ctrl-C.
    """
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, UsageError, OSError, sqlite3.Error) as error:
        print(f"rezero: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rezero: stopped; finished trials are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


@app.command
def compare(
    task: str,
    *,
    arms: str | None = None,
    depth: Count = None,
    width: Count = None,
    epochs: Count = None,
    steps: Count = None,
    batch_size: Count = None,
    lr: float | None = None,
    seeds: Count = None,
    device: str | None = None,
    threads: Count = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Train the arms of a task on paired seeds and report what came out.

    Options that are left out have the task's own values. The study folder holds study.sqlite, report.html, verdict.txt
    and the charts as SVG and PNG. A study that was stopped goes on when the same command is given again.

    Args:
        task: What to train: fc-digits (a fully connected network on scikit-learn's digits, with Adagrad, in half a
            minute).
        arms: Residual formulas to compare, separated by commas: plain, plain-norm, residual, post-norm, pre-norm,
            rezero, skipinit, layerscale, deepnorm.
        depth: Number of residual blocks.
        width: Width of the blocks.
        epochs: Passes over the training set.
        steps: Optimizer steps, instead of epochs.
        batch_size: Examples a step.
        lr: Learning rate, the same for every arm.
        seeds: Number of paired seeds.
        device: Where to train: cpu, cuda, cuda:1, ...
        threads: CPU threads. Kept with the study, because results differ in their last bits between thread counts.
        output: Folder of the study. By default rezero-studies/TASK-KEY, where KEY stands for the options.
    """
    from rezero.lab import Study, find_task, parse_arms, run_study
    from rezero.progress import StudyProgress

    chosen = find_task(task)
    given: dict[str, Any] = {
        "arms": None if arms is None else parse_arms(arms, chosen.arms),
        "depth": depth,
        "width": width,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seeds": seeds,
        "device": device,
        "threads": threads,
    }
    settings = chosen.settings({name: value for name, value in given.items() if value is not None})
    key = sha256(repr(settings).encode()).hexdigest()[:8]
    folder = output or Path("rezero-studies") / f"{task}-{key}"
    with _open(folder, Study(task, settings, {**provenance(), **chosen.recipe})) as store:
        with StudyProgress(store) as progress:
            run_study(store, chosen, progress)
        _tell(store)


@app.command
def report(folder: Path) -> None:
    """Make the report of a study again, byte for byte.

    Args:
        folder: Folder of the study.
    """
    with _open(folder) as store:
        _tell(store)


def _open(folder: Path, study: "Study | None" = None) -> Any:
    from rezero.lab import Store

    return Store.open(folder, study)


def _tell(store: "Store") -> None:
    from rezero.lab import write_report, write_verdict
    from rezero.lab.report import summary_rows
    from rezero.progress import print_table, print_text

    results = store.results()
    path = write_report(store)
    print_table(summary_rows(store, results))
    print_text(write_verdict(store.study, results))
    print(f"report: {path}")


def provenance() -> dict[str, str]:
    """Say how a study comes about: the command, the commit if there is one, versions, machine and date.

    Returns:
        Title to text, in the order of the report.
    """
    import torch

    facts = {
        "command": shlex.join(["rezero", *sys.argv[1:]]).encode("utf-8", "backslashreplace").decode(),
        "commit": _commit(),
        "versions": f"rezero {version('rezero-torch')}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return {name: text for name, text in facts.items() if text}


def _commit() -> str:
    """Name the commit of this source tree, if it is one: an installed package may lie in somebody else's repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
