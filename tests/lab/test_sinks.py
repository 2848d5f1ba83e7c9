"""Trials in trackers, read back from what the real libraries wrote."""

import json
import math
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import wandb
from accelerate.state import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.forked import run_forked
from tests.offline import records_of, steps_of

from rezero.cli import run
from rezero.lab import Point, Store, Study, Trial, TrialResult, Watcher, find_task
from rezero.lab.one import slug
from rezero.lab.sinks import Tracked, scalars_of

pytestmark = pytest.mark.slow

SMALL = [
    "--arms",
    "plain,rezero",
    *["--depth", "2", "--width", "8", "--epochs", "2", "--seeds", "1", "--batch-size", "500"],
]
REZERO = Trial("rezero warmup=4", 0.5, 0, (("alpha_lr", 0.25),))


def point(step: int, *, loss: float = 2.0) -> Point:
    metrics = {"seconds": 0.5, "train_loss": loss, "val_accuracy": 0.25, "val_loss": 2.5}  # exact in float32
    return Point(step, step / 8, metrics, (0.5, -0.25))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    settings = find_task("fc-digits").settings({"arms": (REZERO.arm, "plain"), "depth": 2, "epochs": 2, "seeds": 1})
    with Store.open(tmp_path / "study", Study("fc-digits", settings, {}, "digits")) as store:
        yield store


def ended(store: Store, trial: Trial, *points: Point) -> TrialResult:
    store.begin(trial)
    for each in points:
        store.add(trial, each)
    store.finish(trial, "finished")
    return store.result(trial)


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def expected_of(result: TrialResult) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for each in result.points:
        for name, value in scalars_of(each).items():
            found.setdefault(name, []).append((each.step, pytest.approx(value, rel=1e-6, nan_ok=True)))
    return found


def test_no_two_arms_have_one_name_for_files() -> None:
    """What reads alike in a file's name is told apart by a checksum; arms with settings have their plain text."""
    assert slug(Trial("post-norm warmup=200", 0.01, 3)) == "post-norm-warmup=200-lr0.01-seed3"
    assert slug(REZERO) == "rezero-warmup=4-lr0.5-alpha_lr0.25-seed0"
    arms = ["a b", "a-b", "a/b", "a lr=1", "a-lr=1", "a b=1", "a-b=1", "a-b lr=1", "a b lr=1", 60 * "a", 61 * "a"]
    assert len({slug(Trial(arm, 1.0, 0)) for arm in arms}) == len(arms)
    assert len(slug(Trial(60 * "\U0001d51e", 1.0, 0)).encode()) < 80


def test_what_is_sent_of_a_point() -> None:
    """The metrics, the epoch and the gates, under the names that they have in a training of one's own."""
    assert scalars_of(point(12)) == {
        **point(12).metrics,
        "epoch": 1.5,
        "rezero/min_abs_alpha": 0.25,
        "rezero/mean_abs_alpha": 0.375,
        "rezero/max_abs_alpha": 0.5,
        "rezero_alpha/0": 0.5,
        "rezero_alpha/1": -0.25,
    }
    assert scalars_of(Point(0, 0.0, {"f1": 0.5}, ())) == {"f1": 0.5, "epoch": 0.0}
    assert len(scalars_of(replace(point(12), alphas=(0.5,) * 1000))) == 4 + 1 + 3 + 32


def test_tensorboard(store: Store, tmp_path: Path) -> None:
    """The files of a trial give back every number at its step, nan too; one that is run again replaces what it left."""
    watcher, lines = create_autospec(Watcher, instance=True), []
    tracked = Tracked(watcher, "tensorboard", store, lines.append)
    for points in ((point(6), point(12, loss=math.nan), point(24)), (point(12, loss=7.0),)):
        result = ended(store, REZERO, *points)
        tracked.finish(result)
        watcher.finish.assert_called_with(result)
        folder = tmp_path / "study" / "tensorboard" / slug(REZERO)
        assert events_of(folder) == expected_of(result)
        assert len(list(folder.glob("events.*"))) == 1  # several of one second have no order
        store.forget()
    assert lines == []
    assert PartialState._shared_state == {}
    config = next((tmp_path / "study" / "tensorboard").rglob("hparams.yml")).read_text()
    for fact in ("arm: rezero warmup=4", "lr: 0.5", "alpha_lr: 0.25", "warmup: 4", "depth: 2", "status: finished"):
        assert fact in config.split("\n")


def test_wandb(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run a trial, named as it and with its settings, gives back every number at its step."""
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    lines: list[str] = []
    tracked = Tracked(create_autospec(Watcher, instance=True), "wandb", store, lines.append)
    results = [ended(store, REZERO, point(6), point(12)), ended(store, Trial("plain", 0.5, 0), point(6))]
    for result in results:
        tracked.finish(result)
    assert lines == []
    wandb.teardown()  # its process closes the files
    folders = sorted(tmp_path.glob("wandb/offline-run-*"), key=lambda folder: len(steps_of(folder)), reverse=True)
    assert len(folders) == 2
    for folder, result in zip(folders, results, strict=True):
        for logged, each in zip(steps_of(folder), result.points, strict=True):
            assert logged.items() >= {**scalars_of(each), "_step": each.step}.items()
        (started,) = [record.run for record in records_of(folder) if record.HasField("run")]
        config = {each.key: json.loads(each.value_json) for each in started.config.update}
        assert (started.display_name, started.project, started.run_group) == (
            slug(result.trial),
            "study",
            result.trial.arm,
        )
        assert (
            config.items() >= {"arm": result.trial.arm, "lr": 0.5, "seed": 0, "depth": 2, "task": "fc-digits"}.items()
        )


def test_trackio(tmp_path: Path) -> None:
    """A local run a trial, named as it and with its settings, has every number at its step; the output is our own."""
    words = ["compare", "fc-digits", *SMALL, "-o", "study", "--log-with", "trackio"]
    done = run_forked(
        [sys.executable, "-m", "rezero", *words],
        cwd=tmp_path,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
    )
    assert done.returncode == 0
    assert not re.search(r"^\* ", done.stdout + done.stderr, re.MULTILINE)  # trackio's lines begin so
    with Store.open(tmp_path / "study") as store:
        results = store.results()
    with closing(sqlite3.connect(tmp_path / "trackio" / "study.db")) as kept:
        for result in results:
            name = slug(result.trial)
            rows = kept.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY step", (name,))
            assert [(step, json.loads(each)) for step, each in rows] == [(p.step, scalars_of(p)) for p in result.points]
            ((config,),) = kept.execute("SELECT config FROM configs WHERE run_name = ?", (name,))
            facts = {
                "arm": result.trial.arm,
                "lr": 0.01,
                "seed": 0,
                "depth": 2,
                "task": "fc-digits",
                "_Group": result.trial.arm,
            }
            assert json.loads(config).items() >= facts.items()
        assert kept.execute("SELECT count(DISTINCT run_name) FROM configs").fetchone() == (len(results),)


def test_a_tracker_that_fails_is_given_up_with_one_line(store: Store, tmp_path: Path) -> None:
    """What a tracker raises ends nothing: the first failure is a line, and every trial is passed on all the same."""
    (tmp_path / "study" / "tensorboard").write_text("in its way")
    watcher, lines = create_autospec(Watcher, instance=True), []
    tracked = Tracked(watcher, "tensorboard", store, lines.append)
    results = [ended(store, REZERO, point(6)), ended(store, Trial("plain", 0.5, 0), point(6))]
    for result in results:
        tracked.finish(result)
    assert [call.args[0] for call in watcher.finish.call_args_list] == results
    (line,) = lines
    assert line.startswith("tensorboard failed (")
    assert line.endswith(") and gets no more trials; the study goes on and keeps them all")
    assert "\n" not in line


def test_everything_is_passed_on(store: Store) -> None:
    """The watcher behind a tracker is told all that it would be told without."""
    watcher = create_autospec(Watcher, instance=True)
    tracked: Watcher = Tracked(watcher, "tensorboard", store, print)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("begin", (REZERO, 5, 1)),
        ("step", (3,)),
        ("point", (point(4),)),
        ("several", (2, 0.5)),
        ("died", (REZERO, 3)),
    ]
    for name, arguments in calls:
        getattr(tracked, name)(*arguments)
    assert [(call[0], call.args) for call in watcher.method_calls] == calls


def numbers(folder: Path) -> list[Any]:
    """All results of a study but the times."""
    with Store.open(folder) as store:
        return [
            (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
            for r in store.results()
        ]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_study_is_the_same_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    """A tracker changes no number and no folder, however many jobs; each trial is a run, and goes on without."""
    monkeypatch.chdir(tmp_path)
    command = ["compare", "fc-digits", *SMALL, "--jobs", jobs]
    assert run([*command, "-o", "without"]) == 0
    assert run([*command, "--log-with", "tensorboard"]) == 0
    (folder,) = Path("rezero-studies").iterdir()
    assert numbers(folder) == numbers(Path("without"))
    with Store.open(folder) as store:
        for result in store.results():
            assert events_of(folder / "tensorboard" / slug(result.trial)) == expected_of(result)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert {each.name for each in folder.iterdir()} == {each.name for each in Path("without").iterdir()} | {
        "tensorboard"
    }
    capsys.readouterr()
    assert run(command) == 0
    assert "2 of 2 trials are in" in capsys.readouterr().err


def test_a_script_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of one's own needs no tracker itself: what it logs is sent, a metric of its own too."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("from rezero import lab\nfor step in (0, 5):\n    lab.log(step, f1=step / 8)\n")
    words = "compare --script train.py --arms original --seeds 1 --goal max --metric f1 -o study --log-with tensorboard"
    assert run(words.split()) == 0
    (folder,) = Path("study/tensorboard").iterdir()
    assert events_of(folder)["f1"] == [(0, 0.0), (5, 0.625)]


@pytest.mark.parametrize(
    ("tracker", "library"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")],
    ids=["tensorboard", "wandb", "trackio"],
)
def test_a_tracker_that_is_not_there_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tracker: str,
    library: str,
) -> None:
    """It is exit code 2 before anything is written, and the line says what to install."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    assert run(["compare", "fc-digits", *SMALL, "--log-with", tracker]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rezero: log-with {tracker}: {tracker} can't be imported (")
    assert err.endswith(f"): pip install 'rezero-torch[{tracker}]'\n")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Another name is refused with those that there are."""
    assert run(["compare", "fc-digits", *SMALL, "--log-with", "mlflow"]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("mlflow", "tensorboard", "wandb", "trackio"))
