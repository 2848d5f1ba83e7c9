"""Reproductions that are studies of the lab and nothing else: small ones of the same arms give lines and claims."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rezero.papers.deep_transformer import DEEP_TRANSFORMER
from rezero.papers.deep_transformer import LAPTOP as DEEP
from rezero.papers.generalization import GENERALIZATION
from rezero.papers.generalization import LAPTOP as SMALL_SETS
from rezero.papers.reproduction import Work
from rezero.papers.resnet import LAPTOP as RESNETS
from rezero.papers.resnet import RESNET
from rezero.papers.studies import Recipe, run_all
from rezero.papers.transformer import LAPTOP as TWELVE
from rezero.papers.transformer import TRANSFORMER

pytestmark = pytest.mark.slow


def point(step: int, **metrics: float | None) -> dict[str, Any]:
    return {"step": step, **metrics}


def resnet(depth: int, epochs: int, accuracies: dict[str, list[float]]) -> dict[str, Any]:
    """Return a study that was made up: one accuracy a seed after the first epoch, and 0.9 at the end."""
    found = {"arm": "rezero", "baseline": "residual", "gain": None, "lead": None, "censored": [0, 0]}
    found |= {"diverged": [1, 0], "speed": "unknown", "quality": "unknown"}
    return {
        "settings": {"depth": depth, "epochs": epochs, "seeds": len(accuracies["rezero"])},
        "arms": {
            arm: {
                "status": {str(seed): "finished" for seed in range(len(values))},
                "points": {
                    str(seed): [point(1, val_accuracy=value), *[point(2, val_accuracy=0.9)] * (epochs > 1)]
                    for seed, value in enumerate(values)
                },
            }
            for arm, values in accuracies.items()
        },
        "asked": [
            {"baseline": "residual", "metric": "val_accuracy", "target": target, "found": [found]}
            for target in (None, 0.80, 0.85)
        ],
    }


def test_the_first_epoch_is_judged_by_its_interval() -> None:
    """And by the study that has the most seeds; what a scale does not ask is not judged."""
    far = resnet(20, 1, {"rezero": [0.50, 0.52, 0.51], "residual": [0.40, 0.43, 0.41]})
    near = resnet(56, 1, {"rezero": [0.50, 0.42], "residual": [0.40, 0.43]})
    summary = {
        "studies": {"a": far, "b": near, "ResNet-20, 8 epochs": resnet(20, 8, {"rezero": [0.1], "residual": [0.2]})}
    }
    first, second, third, sooner, final = (claim.find(summary) for claim in RESNET.claims)
    assert first is not None
    assert (first.verdict, first.ours.endswith("; 3 seeds")) == ("holds", True)
    assert second is not None
    assert second.verdict == "cannot be told"
    assert third is None
    assert sooner is not None
    assert sooner.ours.startswith("ResNet-20, 1 seed: to 80% as fast as residual or not cannot be told")
    assert sooner.verdict == "cannot be told"
    assert final is None
    said = RESNET.lines(summary)
    first_epoch = "51.0% (48.5% to 53.5%) after the first (single seeds from 50.0% to 52.0%)"
    assert said[0] == f"a: rezero {first_epoch}, published 49.52%"
    assert sum("ends at 90.0%" in line for line in said) == 2
    assert "b: rezero 50.0% and 42.0% after the first, published 53.5%" in said  # two seeds make no interval
    assert "ResNet-20, 8 epochs: at 70%: rezero after 8 epochs, residual after 8 epochs" in said
    late = resnet(20, 8, {"rezero": [0.1, 0.6, 0.7], "residual": [0.2, 0.1, 0.3]})
    late["arms"]["residual"]["points"]["0"].pop()
    late["arms"]["residual"]["points"]["1"].pop()
    said = RESNET.lines({"studies": {"late": late}})
    assert "late: at 60%: rezero after 4 epochs, residual not yet" in said


def test_a_study_that_takes_long_has_fewer_seeds(tmp_path: Path) -> None:
    """At the most as many as it says; its command and folder say so."""
    long = next(each for each in RESNETS if each.most_seeds == 2)
    assert [long.seeds(asked) for asked in (1, 2, 5)] == [1, 2, 2]
    assert "--seeds 2" in long.command(5)
    assert long.folder(Work(tmp_path, tmp_path, 5)).name == "ResNet-56, 1 epoch-2"


@pytest.mark.parametrize("recipe", RESNETS, ids=lambda each: each.name)
def test_the_authors_rates_are_used(recipe: Recipe) -> None:
    """0.2 for 20 layers, 0.1 for more."""
    from rezero.lab.tasks import find_task

    settings = find_task(recipe.task).settings({**recipe.settings, "arms": ("residual", "rezero")})
    assert settings.lr == (0.2 if settings.depth == 20 else 0.1)
    assert (settings.batch_size, settings.optimizer) == (128, "SGD momentum=0.9 weight_decay=1e-4")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings of a language model that takes no time."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("so many words that are few, " * 400)
    return {"width": 8, "heads": 2, "context": 8, "batch_size": 2, "depth": 1, "data": str(file), "tune": 2}


@pytest.mark.parametrize("seeds", [2, 1])
def test_twelve_layers_are_compared_with_each_other_arm(text: dict[str, Any], tmp_path: Path, seeds: int) -> None:
    """Lines, the picture and claims of a small study of the same arms, also of one seed."""
    tiny = {**text, "steps": 210, "measure_every": 70}
    small = [replace(each, task="lm-text", settings={**each.settings, **tiny}, jobs=1) for each in TWELVE]
    summary = {"seeds": seeds, **run_all(small, Work(tmp_path, tmp_path, seeds))}
    said = TRANSFORMER.lines(summary)
    assert len(said) == 6 + 5
    assert said[6].startswith("rezero embedding-std=0.125 is ")
    ours = [finding.ours for claim in TRANSFORMER.claims if (finding := claim.find(summary))]
    assert "times as fast as post-norm warmup=200" in ours[0]
    assert ours[4].startswith("from 0: ")
    assert list(TRANSFORMER.write(summary, tmp_path)) == ["loss"]


def test_deep_transformers_learn_more_than_single_bytes_or_not(text: dict[str, Any], tmp_path: Path) -> None:
    """Lines, pictures and claims of small studies of the same arms."""
    tiny = {**text, "steps": 110, "measure_every": 55}
    small = [replace(each, task="lm-text", settings={**each.settings, **tiny}, jobs=1) for each in DEEP[:1]]
    summary = {"seeds": 1, **run_all(small, Work(tmp_path, tmp_path, 1))}
    assert len(DEEP_TRANSFORMER.lines(summary)) == 5
    learns, others = (claim.find(summary) for claim in DEEP_TRANSFORMER.claims)
    assert learns is not None
    assert others is not None
    assert learns.ours.startswith("rezero, bits a byte: 64 layers: ")
    assert "post-norm warmup=100, bits a byte: 64 layers: " in others.ours
    for study in summary["studies"].values():
        for arm in study["arms"].values():
            arm["points"]["0"][-1]["val_loss"] = 5 * math.log(2)
    verdicts = []
    for steps in (110, 5000):
        summary["studies"]["64 layers"]["settings"]["steps"] = steps
        verdicts.append([claim.find(summary).verdict for claim in DEEP_TRANSFORMER.claims])  # type: ignore[union-attr]
    assert verdicts == [["does not hold", "cannot be told"], ["does not hold", "holds"]]
    assert list(DEEP_TRANSFORMER.write(summary, tmp_path)) == ["64-layers"]


def test_two_points_are_asked_of_every_interval(tmp_path: Path) -> None:
    """Lines, the picture and claims of small studies; above zero and reaching two points is what holds."""
    tiny = {"depth": 2, "width": 8, "steps": 4, "measure_every": 2, "tune": 2, "tune_seeds": 1}
    small = [replace(each, settings={**each.settings, **tiny}, jobs=1) for each in SMALL_SETS[:2]]
    summary = {"seeds": 2, **run_all(small, Work(tmp_path, tmp_path, 2))}
    assert list(summary["studies"]) == ["breast_cancer", "wine"]
    assert len(GENERALIZATION.lines(summary)) == 5
    assert all(claim.find(summary) for claim in GENERALIZATION.claims)
    assert list(GENERALIZATION.write(summary, tmp_path)) == ["points"]
    for study, (low, high) in zip(summary["studies"].values(), ((0.01, 0.03), (-0.01, 0.03)), strict=True):
        for asked in study["asked"]:
            for found in asked["found"]:
                found["gain"] = {"mean": 0.01, "low": low, "high": high}
    assert [claim.find(summary).verdict for claim in GENERALIZATION.claims] == ["holds in part"] * 2  # type: ignore[union-attr]
