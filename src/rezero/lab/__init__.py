"""The lab: run the same task with several arms on paired seeds, keep every number, and say what came out.

Names are resolved when first used, so that a script of one's own does not wait for what only the command line needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rezero.lab.script import arm, log, lr, seed

if TYPE_CHECKING:
    from rezero.lab.arms import parse_arms
    from rezero.lab.checkpoint import Checkpoints
    from rezero.lab.comparison import Comparison
    from rezero.lab.design import Question
    from rezero.lab.function import Answer, compare
    from rezero.lab.one import Watcher
    from rezero.lab.optimize import build_optimizer, build_schedule
    from rezero.lab.own import OwnSettings
    from rezero.lab.processes import open_processes
    from rezero.lab.quality import Quality
    from rezero.lab.report import write_report
    from rezero.lab.run import run_trial
    from rezero.lab.settings import Settings
    from rezero.lab.spreads import Spread, spread
    from rezero.lab.stats import Paired
    from rezero.lab.store import Store
    from rezero.lab.study import Study, TrialResult
    from rezero.lab.sweep import follow_study, run_study
    from rezero.lab.task import Task
    from rezero.lab.tasks import TASKS, find_task
    from rezero.lab.trial import Point, Trial
    from rezero.lab.tune import plan
    from rezero.lab.verdict import compare_arms, write_verdict

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # one's own script or function
    "arm",
    "seed",
    "lr",
    "log",
    "compare",
    "Answer",
    "OwnSettings",
    # what is run
    "TASKS",
    "Task",
    "Quality",
    "Settings",
    "Question",
    "find_task",
    "parse_arms",
    # running
    "Trial",
    "Point",
    "run_trial",
    "open_processes",
    "build_optimizer",
    "build_schedule",
    "Watcher",
    "plan",
    "run_study",
    "follow_study",
    # keeping
    "Store",
    "Study",
    "TrialResult",
    "Checkpoints",
    # telling
    "Spread",
    "spread",
    "Paired",
    "Comparison",
    "compare_arms",
    "write_verdict",
    "write_report",
]

_HOME = {
    "function": ("compare", "Answer"),
    "own": ("OwnSettings",),
    "tasks": ("TASKS", "find_task"),
    "task": ("Task",),
    "quality": ("Quality",),
    "settings": ("Settings",),
    "design": ("Question",),
    "arms": ("parse_arms",),
    "trial": ("Trial", "Point"),
    "run": ("run_trial",),
    "processes": ("open_processes",),
    "optimize": ("build_optimizer", "build_schedule"),
    "one": ("Watcher",),
    "tune": ("plan",),
    "sweep": ("run_study", "follow_study"),
    "store": ("Store", "Study", "TrialResult"),
    "checkpoint": ("Checkpoints",),
    "spreads": ("Spread", "spread"),
    "stats": ("Paired",),
    "comparison": ("Comparison",),
    "verdict": ("compare_arms", "write_verdict"),
    "report": ("write_report",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'rezero.lab' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"rezero.lab.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
