"""Studies of arms that are the same, and how often the lab sees a difference between them."""

import json
import sqlite3
from pathlib import Path

import pytest
import torch

from rezero.errors import UsageError
from rezero.lab import find_task, open_processes, run_trial
from rezero.lab.trial import Trial
from rezero.papers import null
from rezero.papers.null import Scheme, deal, judge, main, rates, settings, train

SCHEMES = (Scheme(2, 2, 2), Scheme(1, 3, 2, "val_loss"))


def told(share: float, doing: str) -> None:
    if doing.startswith("training 4 "):
        raise KeyboardInterrupt


def command(folder: Path) -> list[str]:
    return ["--work", str(folder / "work"), "--output", str(folder / "out")]


def test_it_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After Ctrl-C the same command trains what is missing alone, and a third time nothing, to the same bytes."""
    with pytest.raises(KeyboardInterrupt):
        train(settings(8), tmp_path / "work", {"command": "as told"}, tell=told)
    with sqlite3.connect(tmp_path / "work/study.sqlite") as kept:
        assert kept.execute("SELECT count(*) FROM trial WHERE status = 'finished'").fetchone() == (3,)
    assert main(command(tmp_path), SCHEMES) == 0
    files = {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["null.json", "null.png", "null.svg"]
    assert "2 studies of 2 arms, 2 seeds, val_accuracy" in capsys.readouterr().out

    monkeypatch.setattr(null, "run_one", lambda *_: pytest.fail("nothing is missing"))
    assert main(command(tmp_path), SCHEMES) == 0
    assert {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()} == files

    held = json.loads(files["null.json"])
    assert (held["command"], held["trials"], held["ended"], held["tuned"]) == ("as told", 8, ["finished"], False)
    assert [each["studies"] for each in held["schemes"]] == [2, 1]
    assert [each["dealt anew"]["studies"] for each in held["schemes"]] == [40, 20]
    assert main(command(tmp_path), (Scheme(3, 2, 2),)) == 2
    assert "holds another study" in capsys.readouterr().err


def test_a_planted_difference_is_counted(tmp_path: Path) -> None:
    """An arm at a third of the rate is worse and slower in every study; the other way round it is better and faster.

    A trial of the pool is one of the lab's own runner, bit for bit but for the clock.
    """
    asked, scheme = settings(8), Scheme(2, 2, 4, "val_loss")
    good, _ = train(asked, tmp_path / "good", {})
    bad, _ = train(null.replace(asked, lr=0.003), tmp_path / "bad", {})
    with open_processes(asked) as accelerator:
        task = find_task("fc-digits")
        trial = Trial("rezero", 0.01, 1)
        points = list(run_trial(task, asked, trial, task.load(asked), lambda _: None, accelerator=accelerator))
    assert [point.metrics["val_loss"] for point in points] == [each.metrics["val_loss"] for each in good[1].points]

    pairs = [(good[4 * study : 4 * study + 4], bad[4 * study : 4 * study + 4]) for study in range(2)]
    worse = rates(judge([trial for one, other in pairs for trial in (*one, *other)], scheme, asked))
    better = rates(judge([trial for one, other in pairs for trial in (*other, *one)], scheme, asked))
    for found, seen, unseen in ((worse, ("worse", "slower"), "better"), (better, ("better", "faster"), "worse")):
        assert [found[name].count for name in ("any verdict", *seen, unseen)] == [2, 2, 2, 0]
    assert worse["worse"].low == pytest.approx(0.025 ** (1 / 2))  # 2 of 2
    assert worse["worse"].high == 1


def test_no_trial_serves_twice(tmp_path: Path) -> None:
    """The studies of a scheme share no trial, their arms are paired by seeds from 0, and too few trials are refused."""
    pool, _ = train(settings(9), tmp_path / "work", {})
    studies = list(deal(pool, Scheme(2, 2, 2)))
    assert [[(each.trial.arm, each.trial.seed) for each in study] for study in studies] == [
        [("A", 0), ("A", 1), ("B", 0), ("B", 1)]
    ] * 2
    assert [id(each.points) for study in studies for each in study] == [id(each.points) for each in pool[:8]]
    finals = torch.tensor([each.final("val_loss") for each in pool])
    assert len(finals.unique()) == 9
    with pytest.raises(UsageError, match="expected 10 trials for 1 studies, got 9"):
        list(deal(pool, Scheme(1, 2, 5)))


def test_the_bounds_are_those_of_the_binomial_distribution() -> None:
    """R: qbinom(c(.025, .975), 200, .05) is 4 and 16."""
    assert null.bounds(200) == (4, 16)
