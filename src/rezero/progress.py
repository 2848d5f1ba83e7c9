"""What the command line shows while a study runs and when it ends."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rezero.lab.costs import costs_of
from rezero.lab.store import Store
from rezero.lab.study import TrialResult
from rezero.lab.subject import subject_of
from rezero.lab.trial import Point, Trial
from rezero.lab.tune import plan

__all__ = ["StudyProgress", "print_table", "print_text"]

_EVERY = 60.0  # seconds between two lines on trials that run, where there is no terminal for bars


class StudyProgress:
    """A bar for the trial that runs and one for the study; a line for each trial that has ended.

    Where there is no terminal, a line now and then in the place of the bars.

    Args:
        store: The study's records.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._subject = store, subject_of(store.study)
        trials = self._plan()
        self._width = max(len(trial.arm) for trial in trials)
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        done = len(store.done())
        if done:
            self._print(f"{done} of {len(trials)} trials are in {store.folder} already")
        self._study = self._bars.add_task("study", total=len(trials), completed=done, note="trials")
        self._trial = self._bars.add_task("", total=None, visible=False, note="")
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Show the bars.

        Returns:
            Itself.
        """
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._bars.stop()

    def begin(self, trial: Trial, total_steps: int | None, start: int) -> None:
        """Start the trial's bar."""
        name = self._name(trial)
        self._bars.reset(self._trial, total=total_steps, completed=start, description=name, visible=True, note="steps")
        if start:
            self._print(f"{name}  goes on from step {start}")

    def step(self, step: int) -> None:
        """Move the trial's bar."""
        self._bars.update(self._trial, completed=step)
        if self._is_due():
            task = self._bars.tasks[1]
            self._tell(f"{task.description}  step {step:,}" + (f" of {task.total:,.0f}" if task.total else ""))

    def point(self, point: Point) -> None:
        """Show what was measured beside the bar."""
        self._bars.update(self._trial, note=self._subject.brief(point))

    def finish(self, result: TrialResult) -> None:
        """Leave a line for the trial."""
        last = result.last
        parts = (self._name(result.trial), f"{last.step} steps", self._subject.shown(result))
        self._print(f"{'  '.join(parts)}  {last.metrics['seconds']:5.1f} s")
        self._bars.update(self._trial, visible=False)
        self._bars.update(self._study, completed=len(self._store.done()), total=len(self._plan()))

    def several(self, running: int, done: float) -> None:
        """Move the study's bar by what the running trials have done, and say how many they are."""
        self._bars.update(self._study, completed=done, note=f"trials, {running} running")
        if self._is_due():
            self._tell(f"{done:.1f} of {self._bars.tasks[0].total:.0f} trials, {running} running")

    def died(self, trial: Trial, times: int) -> None:
        """Leave a line for a process that died."""
        self._print(f"{self._name(trial)}  its process died{f' for the {times}th time' if times > 1 else ''}; again")

    def _plan(self) -> list[Trial]:
        study = self._store.study
        return plan(study.settings, costs_of(study, self._store.results()))

    def _name(self, trial: Trial) -> str:
        if not trial.tuning:
            return f"{trial.arm:{self._width}}  seed {trial.seed}"
        tried = " ".join(f"{name} {value:g}" for name, value in (("lr", trial.lr), *trial.tuned))
        return f"{trial.arm:{self._width}}  tuning  {tried}"

    def _is_due(self) -> bool:
        """Tell whether a line in the place of the bars is due; asked at every step."""
        if self._bars.disable and (now := time.monotonic()) - self._told >= _EVERY:
            self._told = now
            return True
        return False

    def _tell(self, line: str) -> None:
        self._print(f"{line}, {(self._told - self._began) / 60:.0f} min")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def print_table(rows: list[dict[str, str]], *, medians: bool = False) -> None:
    """Print the table of arms, without their formulas where the terminal is too narrow for them.

    Args:
        rows: A row an arm, column title to text.
        medians: Whether its numbers are those of several seeds.
    """
    if not rows:
        return
    console = _plain()
    table = _table(rows)
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        table = _table([{title: text for title, text in row.items() if title != "formula"} for row in rows])
    console.print(table)
    if medians:
        console.print("\nMedians of the seeds and their range; the text compares seed by seed.")
    console.print()


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(*rows[0], box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in rows:
        table.add_row(*row.values())
    return table


def print_text(text: str) -> None:
    """Print paragraphs, wrapped at words.

    Args:
        text: Paragraphs separated by empty lines.
    """
    console = _plain()
    console.print(text)
    console.print()


def _plain() -> Console:
    # Where output goes to a file its lines are as long as they need to be.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
