"""The lab: run the same task with several arms on paired seeds, keep every number, and say what came out."""

from rezero.lab.arm import parse_arms
from rezero.lab.report import write_report
from rezero.lab.stats import Spread, spread
from rezero.lab.store import Store, Study, TrialResult
from rezero.lab.sweep import Watcher, plan, run_study
from rezero.lab.task import TASKS, Settings, Task, find_task
from rezero.lab.trial import Point, Trial, run_trial
from rezero.lab.verdict import write_verdict

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # what is run
    "TASKS",
    "Task",
    "Settings",
    "find_task",
    "parse_arms",
    # running
    "Trial",
    "Point",
    "run_trial",
    "Watcher",
    "plan",
    "run_study",
    # keeping
    "Store",
    "Study",
    "TrialResult",
    # telling
    "Spread",
    "spread",
    "write_verdict",
    "write_report",
]
