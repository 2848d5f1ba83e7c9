"""The lab: run the same task with several arms on paired seeds, keep every number, and say what came out."""

from rezero.lab.arm import parse_arms
from rezero.lab.checkpoint import Checkpoints
from rezero.lab.comparison import Comparison
from rezero.lab.design import Design, Question
from rezero.lab.one import Watcher
from rezero.lab.optimize import build_optimizer, build_schedule
from rezero.lab.processes import open_processes
from rezero.lab.quality import Quality
from rezero.lab.report import write_report
from rezero.lab.run import run_trial
from rezero.lab.settings import Settings
from rezero.lab.spread import Spread, spread
from rezero.lab.stats import Paired
from rezero.lab.store import Store, Study, TrialResult
from rezero.lab.sweep import follow_study, run_study
from rezero.lab.task import Task
from rezero.lab.tasks import TASKS, find_task
from rezero.lab.trial import Point, Trial
from rezero.lab.tune import plan
from rezero.lab.verdict import compare_arms, write_verdict

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
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
    "Design",
]
