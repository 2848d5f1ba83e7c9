"""Studies of the lab as parts of a reproduction."""

import json
import math
import shlex
from pathlib import Path

import pytest

from rezero.cli import run as command_line
from rezero.papers.drawing import draw_arms
from rezero.papers.reading import gain_of, loss_of_epoch, of_pair, speed_of
from rezero.papers.reproduction import Work
from rezero.papers.studies import Asked, Recipe, run_all

TINY = {"depth": 2, "width": 8, "steps": 6, "measure_every": 2, "threads": 1}
FAST = "rezero lr=0.02"
ASKS = (Asked("plain", "train_loss"), Asked(FAST, "val_accuracy"))
RECIPE = Recipe("tiny", "fc-digits", {**TINY, "arms": f"plain,{FAST}", "lr": 0.01}, ASKS, jobs=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return where the study is, which is run once."""
    folder = tmp_path_factory.mktemp("work")
    return Work(folder, folder / "out", 2)


def test_what_is_read_is_what_the_lab_holds(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, rates, points of each seed, and what was asked; of the arms that were asked for."""
    found = run_all((RECIPE,), work)["studies"]["tiny"]
    assert json.loads(json.dumps(found)) == found
    assert "report:" in capsys.readouterr().out
    assert list(found["arms"]) == ["plain", FAST]
    assert (found["arms"]["plain"]["lr"], found["settings"]["depth"], found["data"]) == (0.01, 2, "digits")
    for arm in found["arms"].values():
        assert {seed: [point["step"] for point in points] for seed, points in arm["points"].items()} == {
            "0": [2, 4, 6],
            "1": [2, 4, 6],
        }
    assert [(each["baseline"], each["metric"]) for each in found["asked"]] == [
        ("plain", "train_loss"),
        (FAST, "val_accuracy"),
    ]


def test_what_was_asked_is_answered_of_the_two_arms(work: Work) -> None:
    """The difference at the end is that of the points, the better way up, and the text says the same."""
    found = RECIPE.run(work)
    answer = of_pair(found, FAST, "plain", "train_loss")
    ends = {
        arm: [points[-1]["train_loss"] for points in each["points"].values()] for arm, each in found["arms"].items()
    }
    gains = [theirs - ours for ours, theirs in zip(ends[FAST], ends["plain"], strict=True)]
    assert answer["gain"]["mean"] == pytest.approx(sum(gains) / 2)
    assert gain_of(answer, "points", 100).startswith(f"{50 * sum(gains):#.3g} (")
    assert speed_of(answer).startswith(f"{math.exp(answer['lead']['mean']):#.3g} (")
    assert of_pair(found, "plain", FAST, "val_accuracy")["arm"] == "plain"


def test_the_loss_of_an_epoch_is_the_mean_of_what_lies_in_it(work: Work) -> None:
    """Points beyond it do not count, and a run that ends before has none."""
    found = RECIPE.run(work)
    losses = [point["train_loss"] for point in found["arms"]["plain"]["points"]["0"]]
    assert loss_of_epoch(found, "plain", 4)[0] == pytest.approx((losses[0] + losses[1]) / 2)
    assert loss_of_epoch(found, "plain", 8) == [None, None]


def test_what_diverged_or_never_got_there_is_said() -> None:
    """In words, in the place of a number."""
    found = {"arm": "a", "baseline": "b", "gain": None, "diverged": [0, 2], "lead": {"mean": 3.0, "n": 5}}
    assert gain_of(found, "points") == "b diverged"
    assert speed_of({**found, "censored": [0, 4]}) == "b never got there on 4 of 5 seeds"
    assert speed_of({**found, "censored": [1, 0]}) == "a never got there on 1 of 5 seeds"


def test_losses_are_told_as_losses() -> None:
    """With the interval of the loss, and in words of one's own."""
    found = {"gain": {"mean": -2.0, "low": -3.0, "high": 1.0, "n": 5}}
    assert gain_of(found, "nats") == "2.00 (-1.00 to 3.00) nats worse"
    assert gain_of(found, "points", 100, ("lower", "higher")) == "200 (-100 to 300) points higher"
    assert gain_of({"gain": {"mean": -2.0, "low": None, "high": None, "n": 1}}, "nats") == "2.00 (one seed) nats worse"


def test_who_was_there_at_the_first_measurement_may_have_been_sooner() -> None:
    """Then the ratio is a bound; where both were, it is neither."""
    points = {"a": [0.5, 0.6], "b": [0.1, 0.5]}
    arms = {
        arm: {"points": {"0": [{"step": step, "val_accuracy": value} for step, value in enumerate(values, 1)]}}
        for arm, values in points.items()
    }
    lead = {"mean": 0.0, "low": -1.0, "high": 1.0, "n": 1}
    pairs = [
        {"arm": one, "baseline": other, "target": 0.4, "lead": lead, "censored": [0, 0]} for one, other in ("ab", "ba")
    ]
    study = {
        "arms": arms,
        "asked": [{"baseline": each["baseline"], "metric": "val_accuracy", "found": [each]} for each in pairs],
    }
    first, second = (of_pair(study, one, other, "val_accuracy") for one, other in ("ab", "ba"))
    assert (first["early"], second["early"]) == ([1, 0], [0, 1])
    assert (speed_of(first), speed_of(second)) == ("at least 1.00 (0.368 to 2.72)", "at most 1.00 (0.368 to 2.72)")
    assert speed_of({**first, "early": [1, 1]}) == "1.00 (0.368 to 2.72)"


def test_curves_are_drawn_where_there_are_numbers(work: Work, tmp_path: Path) -> None:
    """A value that is not finite is left out, not drawn at zero."""
    found = RECIPE.run(work)
    found["arms"]["plain"]["points"]["0"][1]["train_loss"] = None
    draw_arms(found, tmp_path / "loss", metric="train_loss", title="loss", description="A test.", log=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", "loss.svg"]


def test_the_command_that_is_named_is_the_same_study(work: Work) -> None:
    """Given on the command line, with the same folder, it finds all trials done."""
    RECIPE.run(work)
    words = RECIPE.command(2).split(" ", 1)
    assert words[0] == "rezero"
    folder = work.folder / "tiny-2"
    before = (folder / "summary.json").read_text(encoding="utf-8")
    assert command_line([*shlex.split(words[1]), "-o", str(folder)]) == 0
    assert json.loads((folder / "summary.json").read_text())["results"] == json.loads(before)["results"]
