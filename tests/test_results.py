"""The numbers of the page on when ReZero helps are those of the records it names."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

import pytest

from rezero.lab.comparison import Comparison, compare
from rezero.lab.quality import ACCURACY, BITS, Quality
from rezero.lab.study import TrialResult
from rezero.lab.trial import Point, Trial
from rezero.papers import alphas, depth_recipe
from rezero.papers.claims import shown, written
from rezero.papers.transformer import TRANSFORMER

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "when.md").read_text(encoding="utf-8")
LOSS = Quality("training loss", "nats", "train_loss", 1.0, lower_is_better=True, percent=False)


def results_of(study: str) -> list[TrialResult]:
    """Rebuild the trials that were compared from their exported numbers."""
    points: dict[tuple[str, float, int, str], dict[tuple[int, float], dict[str, float]]]
    points = defaultdict(lambda: defaultdict(dict))
    with (ROOT / "results" / "when" / study / "curves.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            trial = row["arm"], float(row["lr"]), int(row["seed"]), row["status"]
            points[trial][int(row["step"]), float(row["epoch"])][row["metric"]] = float(row["value"] or math.nan)
    return [
        TrialResult(
            Trial(arm, lr, seed),
            status,
            tuple(Point(step, epoch, metrics, ()) for (step, epoch), metrics in sorted(measured.items())),
        )
        for (arm, lr, seed, status), measured in points.items()
    ]


def against(study: str, arm: str, baseline: str, quality: Quality, target: float | None = None) -> Comparison:
    settings = json.loads((ROOT / "results" / "when" / study / "summary.json").read_text(encoding="utf-8"))["settings"]
    found = compare(results_of(study), quality, baseline, steps=settings["steps"], target=target)
    return next(each for each in found if each.arm == arm)


def speed(found: Comparison) -> str:
    """Write how many times as fast an arm is, as the tables do."""
    assert found.lead is not None
    if found.lead.by_signs:
        return "not reached"
    middle, low, high = (math.exp(value) for value in (found.lead.mean, found.lead.low, found.lead.high))
    return f"{middle:#.3g} ({low:#.3g} to {high:#.3g}){doubt(found.lead_p)}"


def gain(found: Comparison, quality: Quality) -> str:
    """Write how much better an arm ends, as the tables do."""
    assert found.gain is not None
    factor = 100 if quality.percent else quality.factor
    middle, low, high = (factor * value for value in (found.gain.mean, found.gain.low, found.gain.high))
    return f"{middle:#.3g} ({low:#.3g} to {high:#.3g}){doubt(found.gain_p)}"


def doubt(p: float) -> str:
    return f", p = {p:.2g}" if p > 0.05 else ""


def row(study: str, arm: str, baseline: str, *qualities: Quality) -> str:
    found = [(against(study, arm, baseline, quality), quality) for quality in qualities]
    return " | ".join(f"{speed(each)} | {gain(each, quality)}" for each, quality in found)


def test_depth_and_not_length_makes_the_difference() -> None:
    """The medians of both networks after 400 steps are those of the page."""

    def after_400(study: str, arm: str) -> str:
        values = [
            p.metrics["val_loss"] for r in results_of(study) if r.trial.arm == arm for p in r.points if p.step == 400
        ]
        assert len(values) == 5
        return f"{median(values) / math.log(2):.3f}"

    arms = "pre-norm", "rezero embedding-std=0.125"
    assert f"medians {' and '.join(after_400('lm-enwik8-12', arm) for arm in arms)}, in its" in PAGE
    for arm in arms:
        assert f"| {after_400('lm-enwik8-48', arm)} (" in PAGE


@pytest.mark.parametrize("baseline", ["plain", "residual", "post-norm", "pre-norm"])
def test_the_fully_connected_table(baseline: str) -> None:
    """Each row is what the final trials give."""
    assert f"| {baseline} | {row('fc-cifar10-32', 'rezero', baseline, ACCURACY, LOSS)} |" in PAGE


@pytest.mark.parametrize("arm", ["post-norm warmup=200", "rezero", "rezero embedding-std=0.125", "layerscale"])
@pytest.mark.parametrize("study", ["lm-enwik8-12", "lm-enwik8-48"])
def test_the_transformer_tables(study: str, arm: str) -> None:
    """Likewise, against pre-norm."""
    assert f"{row(study, arm, 'pre-norm', BITS)} |\n" in PAGE


def test_the_authors_embeddings_are_as_slow_as_is_said() -> None:
    """The text of the reproduction quotes the study of the page."""
    said = TRANSFORMER.scales["laptop"].about
    assert f"{speed(against('lm-enwik8-12', 'rezero', 'pre-norm', BITS))} times as fast as pre-norm" in said


def test_the_page_on_eyes_is_what_was_reproduced() -> None:
    """Each row of its table, and the claims that are made of it."""
    summary = json.loads((ROOT / "results" / "papers" / "flamingo" / "summary.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "eyes.md").read_text(encoding="utf-8").split())

    def percent(value: dict[str, float], sign: str = "+") -> str:
        middle, low, high = (100 * value[name] for name in ("mean", "low", "high"))
        return f"{middle:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

    for arm, row in summary["found"].items():
        start = "0, bitwise"
        if not row["unchanged at the start"]:
            start = percent(row["change of plain loss at the start"])
        end, accuracy = percent(row["change of plain loss at the end"]), percent(row["accuracy at the end"], "")
        assert f"| {arm} | {start} | {end} | {accuracy} |" in page
    assert f"{100 * summary['eye alone']:.1f}% of unseen ones" in page
    assert f"loss is {summary['base plain loss']:.3f} nats a byte" in page
    late, early = (
        mean(point["accuracy"] for seed in summary["runs"][arm] for point in seed["points"] if point["step"] == 160)
        for arm in ("gates from 1", "gates from 0")
    )
    assert f"after 160 steps they read {late:.0%} of the numbers, gates from 0 {early:.0%}" in page
    assert summary["found"]["gates from 0"]["unchanged at the start"]
    assert summary["found"]["gates from 0"]["accuracy at the end"]["low"] > 0.9


def test_the_page_on_growth_is_what_was_reproduced() -> None:
    """Each row of its table, and how many seeds it has."""
    summary = json.loads((ROOT / "results" / "papers" / "grow" / "summary.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "grow.md").read_text(encoding="utf-8")
    names = {"grown": "6 that grow to 12 half way", "6 layers": "6 to the end"}
    assert summary["seeds"] == 5
    for found in summary["found"]:
        times = " to ".join(f"{math.exp(found['lead'][end]):.2f}" for end in ("low", "high"))
        better = " to ".join(f"{found['gain'][end]:.3f}" for end in ("low", "high"))
        row = f"{math.exp(found['lead']['mean']):.2f} ({times}) | {found['gain']['mean']:.3f} ({better})"
        assert f"| {names[found['arm']]} | {row} |" in page
    halves = [point["val_loss"] for points in summary["arms"]["grown"]["points"].values() for point in points[:5]]
    assert all(min(halves[place : place + 5]) < summary["found"][0]["target"] for place in range(0, 25, 5))


def test_the_page_on_what_a_graft_costs_is_what_was_measured() -> None:
    """Ratios of time to the same by hand, and of time and memory to the base model."""
    tables = json.loads((ROOT / "results" / "bench" / "graft-cpu.json").read_text(encoding="utf-8"))["tables"]["step"]
    page = " ".join((ROOT / "docs" / "forget.md").read_text(encoding="utf-8").split())
    ours = tables["graft_"]
    assert f"`graft_` {ours['ratio']:.3f} (quartiles {ours['q1']:.3f} to {ours['q3']:.3f}) of the time" in page
    assert f"peak of memory, {ours['peak bytes'] / 1e6:.1f} MB" in page
    assert ours["peak bytes"] == tables["by hand"]["peak bytes"]
    memory = {name: row["peak bytes"] / tables["base"]["peak bytes"] for name, row in tables.items()}
    for name, text in (
        ("PEFT AdaptionPrompt", "PEFT's prompts {} and {},"),
        ("torchtune FusionLayer", "fusion layers {} and {},"),
        ("graft_", "ours {} and {};"),
    ):
        assert text.format(f"{tables[name]['over its base']:.2f}", f"{memory[name]:.2f}") in page


def test_the_page_on_alphas_is_what_was_reproduced() -> None:
    """The share of gates that have fallen, of both Transformers, and whether deep ones rise first."""
    summary = json.loads((ROOT / "results" / "papers" / "alphas" / "summary.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "alpha-map.md").read_text(encoding="utf-8").split())
    for name in ("Transformer of 12", "Transformer of 48"):
        [fallen] = alphas._shares(summary["studies"][name], "fallen")
        assert f"{fallen['mean']:.0%} of them end below 0.9 of their largest size" in page
        first = summary["studies"][f"{name}, first steps"]
        [rise] = alphas._over_seeds(first, "rise")
        assert shown(rise, "+.2f") in page
        assert (len(first["alphas"]), first["steps"][:2]) == (10, [2, 4])


def test_the_tables_of_rates_are_what_was_reproduced() -> None:
    """Each rule's row, and what it does in either kind of network."""
    page = (ROOT / "docs" / "alpha-lr.md").read_text(encoding="utf-8").replace("**", "")
    summary = json.loads((ROOT / "results" / "papers" / "depth-recipe" / "summary.json").read_text())
    for rule, each in depth_recipe.tally(summary).items():
        counts = f"{each['steady']} | {each['alike']} | {each['both']}"
        assert f"{counts} | {written(each['mean'])} | {written(each['worst'])} | {each['lost']} |" in page, rule
    kinds = [[cell for cell in summary["cells"] if cell["net"] == net] for net in ("MLP", "Transformer")]
    for rule in (depth_recipe.RECIPE, depth_recipe.DEFAULT, "lr"):
        both = [depth_recipe.tally({"cells": cells})[rule]["both"] for cells in kinds]
        name = rule.replace(", held", "`, held") if "held" in rule else f"{rule}`"
        assert f"| `{name} | {both[0]} | {both[1]} |" in page
    shares = []
    for cells in kinds:
        ends = [(depth_recipe._end(cell, arm), depth_recipe._best(cell)) for cell in cells for arm in cell["fixed"]]
        shares.append(f"{sum(end <= depth_recipe.ALIKE * best for end, best in ends)} of {len(ends)}")
    assert f"| {' | '.join(shares)} |" in page
