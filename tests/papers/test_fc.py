"""The fully connected reproduction: what it declares, and what it says of numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rezero.papers import fc
from rezero.papers.reproduction import Work
from rezero.papers.studies import Recipe, run_all

pytestmark = pytest.mark.slow

TINY = {"depth": 2, "width": 8, "steps": 4, "measure_every": 2, "threads": 1}


def small(recipe: Recipe) -> Recipe:
    """Return a study of the same arms and questions that takes no time, on the digits that are always there."""
    return replace(recipe, task="fc-digits", settings={**recipe.settings, **TINY, "tune": 2}, jobs=1)


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Return what comes out of small studies, of two seeds and of one."""
    folder = tmp_path_factory.mktemp("fc")
    recipes = [small(each) for each in fc.LAPTOP]
    return {n: {"seeds": n, **run_all(recipes, Work(folder, folder / "out", n))} for n in (2, 1)}


@pytest.mark.parametrize("seeds", [2, 1])
def test_lines_claims_and_pictures_are_made(
    summaries: dict[int, dict[str, Any]], seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all studies, also where a single seed leaves no interval."""
    monkeypatch.setattr(fc, "EPOCH", 4)
    summary = summaries[seeds]
    fc.FC.write(summary, tmp_path)
    assert len(list(tmp_path.glob("*.svg"))) == len(list(tmp_path.glob("*.png"))) == 6
    said = fc.FC.lines(summary)
    assert len([line for line in said if "knows nothing" not in line]) == 18
    assert ("one seed" in said[0]) == (seeds == 1)
    assert all(claim.find(summary).ours for claim in fc.FC.claims)


@pytest.mark.parametrize(
    ("lead", "censored", "reaches"),
    [
        ((2.3, 2.2, 2.4), (0, 0), True),
        ((1.9, 1.7, 2.4), (0, 0), None),
        ((1.0, 0.9, 1.1), (0, 0), False),
        ((2.3, None, None), (0, 0), None),
        ((500.0, 1.0, 900.0), (0, 5), True),
        ((-500.0, -900.0, 1.0), (5, 0), None),
    ],
    ids=["above", "touching", "below", "one-seed", "plain-never", "rezero-never"],
)
def test_seven_times_is_asked_of_the_interval(
    lead: tuple[float | None, ...], censored: tuple[int, int], reaches: bool | None
) -> None:
    """It is logarithmic; where the plain network never gets there ReZero is faster than any ratio."""
    found = {"lead": dict(zip(("mean", "low", "high"), lead, strict=True)), "censored": list(censored), "early": [0, 0]}
    assert fc._reaches(found, fc.LEAST) is reaches


def test_a_bound_never_falls_short() -> None:
    """Where ReZero was there when it was first measured the ratio is a lower bound."""
    found = {"lead": {"mean": 1.0, "low": 0.9, "high": 1.1}, "censored": [0, 0], "early": [5, 0]}
    assert fc._reaches(found, fc.LEAST) is None
    assert fc._reaches({**found, "lead": {"mean": 2.2, "low": 2.1, "high": 2.4}}, fc.LEAST)


def test_an_arm_that_explodes_is_left_out_of_the_picture() -> None:
    """By the largest loss of all, which would flatten the others."""
    points = {"a": [(1, 50.0), (2, 11.0)], "b": [(1, 2.4), (2, 2.0)]}
    arms = {
        arm: {"points": {"0": [{"step": step, "train_loss": loss} for step, loss in each]}}
        for arm, each in points.items()
    }
    assert [fc._highest({"arms": arms}, arm) for arm in arms] == [50.0, 2.4]


def test_an_explosion_is_told_by_its_range() -> None:
    """A mean over seeds of which one exploded is that one's."""
    points = {str(seed): [{"step": 500, "train_loss": loss}] for seed, loss in enumerate((3.0, 9000.0, 200.0))}
    summary = {"studies": {"64 layers, authors' rate": {"arms": {"plain": {"points": points}}}}}
    assert fc._epoch(summary, "plain") == "200 (median; range 3 to 9,000)"
    del points["0"], points["2"]
    assert fc._epoch(summary, "plain") == "9,000 (one seed)"


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "holds"), (1, "cannot be told")])
def test_one_seed_tells_nothing_of_the_first_epoch(seeds: int, verdict: str) -> None:
    """As of anything else."""
    arms = {
        arm: {"points": {str(seed): [{"step": 500, "train_loss": loss}] for seed in range(seeds)}}
        for arm, loss in fc.PUBLISHED.items()
    }
    assert fc._first_epoch({"studies": {"64 layers, authors' rate": {"arms": arms}}}).verdict == verdict


@pytest.mark.parametrize("recipe", [*fc.LAPTOP, *fc.PAPER], ids=lambda each: each.name)
def test_the_network_is_the_papers(recipe: Recipe) -> None:
    """Width 256, Adagrad at 0.01, batches of 100, alpha at the rate of everything else."""
    from rezero.lab.tasks import find_task

    settings = find_task(recipe.task).settings(
        {**recipe.settings, "arms": tuple(recipe.settings["arms"].split(",")), "device": "cpu"}
    )
    assert (settings.width, settings.lr, settings.batch_size) == (256, 0.01, 100)
    assert (settings.optimizer, settings.alpha_lr, settings.schedule) == ("Adagrad", None, "constant")
    assert settings.depth == int(recipe.name.split()[0])
