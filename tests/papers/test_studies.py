"""Studies of the lab as parts of a reproduction."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from rezero.cli import run as command_line
from rezero.papers.drawing import draw_arms
from rezero.papers.reading import ends_at, gain_of, learned_nothing, loss_of_epoch, of_pair, speed_of
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
    assert speed_of({**found, "censored": [0, 4]}) == "there on 5 of 5 seeds, b on 1"
    assert speed_of({**found, "censored": [1, 5]}) == "there on 4 of 5 seeds, b on 0"
    assert speed_of({**found, "lead": None, "censored": [0, 0]}) == "as fast as b or not cannot be told"


def test_p_is_told_where_it_says_less_than_the_interval() -> None:
    """After the correction the seeds may show no difference although the interval lies on one side."""
    apart, about = {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 5}, {"mean": 2.0, "low": -1.0, "high": 5.0, "n": 5}
    found = {"arm": "a", "baseline": "b", "censored": [0, 0], "lead": apart, "lead p": 0.08, "gain": about}
    assert speed_of(found) == "7.39 (2.72 to 20.1) times as fast as b, p = 0.08"
    assert speed_of({**found, "lead p": 0.04}) == "7.39 (2.72 to 20.1) times as fast as b"
    assert gain_of({**found, "gain p": 0.2}, "nats") == "2.00 (-1.00 to 5.00) nats better"
    assert gain_of({**found, "gain": apart, "gain p": 0.2}, "nats") == "2.00 (1.00 to 3.00) nats better, p = 0.2"


def ended(arms: dict[str, list[float | None]], status: str = "finished") -> dict[str, Any]:
    """Return a study in which every arm has a seed, with its training losses."""
    return {
        "arms": {
            arm: {
                "status": {"0": status},
                "points": {"0": [{"step": at, "train_loss": loss} for at, loss in enumerate(losses, 1)]},
            }
            for arm, losses in arms.items()
        }
    }


def test_what_ends_at_chance_has_learned_nothing() -> None:
    """Nor has what diverges; the accuracy of a network that diverged is no number."""
    study = ended({"a": [50.0, 11.0], "b": [2.4, 2.0], "c": [2.4, 2.29], "d": [1.0, None]})
    assert learned_nothing(study, 2.3) == ["a", "c", "d"]
    assert ends_at(study, "b", "train_loss") == [2.0]
    assert ends_at(study, "b", "train_loss", 0) == [2.4]
    study["arms"]["b"]["points"]["0"][0] |= {"val_accuracy": 0.1, "train_loss": None}
    assert ends_at(study, "b", "val_accuracy", 0) == [None]
    assert ends_at(ended({"b": [2.4, 2.0]}, "diverged"), "b", "train_loss") == [None]


def test_losses_are_told_as_losses() -> None:
    """With the interval of the loss, and in words of one's own; with its sign where it may be none."""
    found = {"gain": {"mean": -2.0, "low": -3.0, "high": 1.0, "n": 5}}
    assert gain_of(found, "nats") == "-2.00 (-3.00 to 1.00) nats better"  # told to be neither
    surely = {**found, "gain": {**found["gain"], "high": -1.0}}
    assert gain_of(surely, "nats") == "2.00 (1.00 to 3.00) nats worse"
    assert gain_of(found, "points", 100, ("lower", "higher")) == "-200 (-300 to 100) points lower"
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
        "asked": [
            {"baseline": each["baseline"], "metric": "val_accuracy", "target": target, "found": [found]}
            for each in pairs
            for target, found in ((None, each), (0.5, {**each, "target": 0.5}))
        ],
    }
    first, second = (of_pair(study, one, other, "val_accuracy") for one, other in ("ab", "ba"))
    assert (first["early"], second["early"]) == ([1, 0], [0, 1])
    assert of_pair(study, "a", "b", "val_accuracy", target=True)["target"] == 0.5
    number = "1.00 (0.368 to 2.72) times as fast as"
    assert (speed_of(first), speed_of(second)) == (f"at least {number} b", f"at most {number} a")
    assert speed_of({**first, "early": [1, 1]}) == f"{number} b"


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
