"""The lab: run the same task with several arms on paired seeds, keep every number, and say what came out."""

from rezero.lab.arm import parse_arms
from rezero.lab.checkpoint import Checkpoints
from rezero.lab.optimize import build_optimizer, build_schedule
from rezero.lab.processes import open_processes
from rezero.lab.report import write_report
from rezero.lab.settings import Settings
from rezero.lab.stats import Spread, spread
from rezero.lab.store import Store, Study, TrialResult
from rezero.lab.sweep import Watcher, follow_study, plan, run_study
from rezero.lab.task import Quality, Task
from rezero.lab.tasks import TASKS, find_task
from rezero.lab.trial import Point, Trial, run_trial
from rezero.lab.verdict import write_verdict

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # what is run
    "TASKS",
    "Task",
    "Quality",
    "Settings",
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
    "write_verdict",
    "write_report",
]
