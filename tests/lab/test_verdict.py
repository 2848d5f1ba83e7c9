"""The outcome of a study in plain words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rezero.lab import Point, Study, Trial, TrialResult, find_task, write_verdict
from rezero.lab.task import ACCURACY
from rezero.lab.verdict import show_value

TASK = find_task("fc-digits")
NAN = math.nan
CAVEAT = "this says what happened at this setting, not which arm is better in general"
ONE_ARM_CAVEAT = "this says what happened at this setting, not how good it is in general"

# Losses by arm, one a seed; nan is a seed that diverged. The accuracies follow from them.
LOSSES: dict[str, Mapping[str, Sequence[float]]] = {
    "apart": {"plain": (2.0, 2.2, 2.1), "rezero": (0.2, 0.1, 0.3), "pre-norm": (0.6, 0.5, 0.4)},
    "overlap": {"plain": (2.0, 2.2, 2.1), "rezero": (0.2, 0.1, 0.5), "pre-norm": (0.6, 0.5, 0.4)},
    "touching": {"rezero": (0.2, 0.1, 0.4), "pre-norm": (0.6, 0.5, 0.4)},
    "all-diverged": {"plain": (NAN, NAN, NAN), "rezero": (NAN, NAN, NAN)},
    "others-diverged": {"plain": (NAN, NAN, NAN), "rezero": (0.2, 0.1, 0.3), "residual": (NAN, NAN, NAN)},
    "one-seed-diverged": {"plain": (2.0, NAN, 2.1), "rezero": (0.2, 0.1, 0.3)},
    "half-diverged": {"plain": (2.0, NAN), "rezero": (0.1, 0.2)},
    "each-half-diverged": {"plain": (2.0, NAN), "rezero": (NAN, 0.2)},
    "one-arm": {"rezero": (0.2, 0.1, 0.3)},
    "one-arm-diverged": {"rezero": (NAN, NAN, NAN)},
    "one-seed": {"plain": (2.0,), "rezero": (0.2,)},
    "one-seed-equal": {"rezero": (0.2,), "skipinit": (0.2,)},
    "one-seed-all-diverged": {"plain": (NAN,), "rezero": (NAN,)},
    "same-network": {"rezero": (0.2, 0.1, 0.3), "skipinit": (0.2, 0.1, 0.3)},
}


def results(losses: Mapping[str, Sequence[float]]) -> list[TrialResult]:
    found = []
    for arm, values in losses.items():
        for seed, loss in enumerate(values):
            accuracy = 0.1 if math.isnan(loss) else 1 / (1 + loss)
            metrics = {"seconds": 1.0, "train_loss": loss, "val_accuracy": accuracy, "val_loss": loss}
            status = "diverged" if math.isnan(loss) else "finished"
            found.append(TrialResult(Trial(arm, 0.01, seed), status, (Point(24, 2.0, metrics, ()),)))
    return found


def study(arms: tuple[str, ...], seeds: int) -> Study:
    return Study("fc-digits", TASK.settings({"arms": arms, "seeds": seeds, "depth": 2, "width": 8, "epochs": 2}), {})


def verdict(name: str) -> str:
    losses = LOSSES[name]
    return write_verdict(study((*losses,), len(next(iter(losses.values())))), results(losses))


def test_verdict_is_golden() -> None:
    """The whole verdict of a study whose best arms are apart, as it was written and read over on 2026-11-23."""
    assert verdict("apart") == (
        "fc-digits: depth 2, width 8, 2 epochs of batches of 128, 3 seeds. Every arm ran at one fixed learning "
        "rate, 0.01: not tuned.\n\n"
        "Training loss at the end (nats), median over seeds and range: rezero 0.200 (0.100 to 0.300); pre-norm 0.500 "
        "(0.400 to 0.600); plain 2.10 (2.00 to 2.20). rezero ends lowest, at 0.400 times the loss of the next arm, "
        "pre-norm; their ranges do not overlap. On validation accuracy rezero comes first with 83.3 % and pre-norm "
        "second with 66.7 %; their ranges do not overlap.\n\n"
        "Another learning rate may change the order of the arms, and a range over 3 seeds is no interval: this says "
        "what happened at this setting, not which arm is better in general."
    )


SENTENCES = [
    ("overlap", "rezero and pre-norm come out lowest and their ranges overlap: 3 seeds do not part them."),
    ("touching", "rezero and pre-norm come out lowest and their ranges overlap: 3 seeds do not part them."),
    ("same-network", "rezero and skipinit come out lowest, level at 0.200."),
    ("apart", "rezero ends lowest, at 0.400 times the loss of the next arm, pre-norm; their ranges do not overlap."),
    ("all-diverged", "Every arm diverged."),
    ("one-seed-all-diverged", "Every arm diverged."),
    ("others-diverged", "rezero ends lowest; every other arm diverged."),
    (
        "one-seed-diverged",
        "rezero ends lowest, at 0.0952 times the loss of the next arm, plain; their ranges do not",
    ),
    ("one-arm", "range: rezero 0.200 (0.100 to 0.300)."),
    ("one-arm-diverged", "range: rezero diverged (diverged to diverged)."),
    ("one-seed", "at the end (nats): rezero 0.200; plain 2.00. rezero ends lowest, at 0.100 times the loss of"),
]


@pytest.mark.parametrize(("name", "expected"), SENTENCES, ids=[name for name, _ in SENTENCES])
def test_verdict_says_what_came_out(name: str, expected: str) -> None:
    """Each kind of outcome has its own sentence."""
    assert expected in verdict(name)


CLAIMS = [
    "ends lowest",
    "come out lowest",
    "Every arm diverged",
    "every other arm diverged",
]


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("apart", "ends lowest"),
        ("overlap", "come out lowest"),
        ("touching", "come out lowest"),
        ("all-diverged", "Every arm diverged"),
        ("one-arm", None),
        ("one-arm-diverged", None),
    ],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_verdict_claims_one_thing(name: str, claim: str | None) -> None:
    """A verdict that claims one outcome claims no other, and one arm alone is compared with nothing."""
    assert [other for other in CLAIMS if other in verdict(name)] == ([] if claim is None else [claim])


@pytest.mark.parametrize("name", LOSSES)
def test_verdict_never_says_better_without_its_caveat(name: str) -> None:
    """No outcome is called better, best, winning or significant outside the sentence that says it is not shown."""
    text = verdict(name)
    caveat = CAVEAT if len(LOSSES[name]) > 1 else ONE_ARM_CAVEAT
    assert text.count(caveat) == 1
    assert "not tuned" in text
    assert not re.search(
        r"\b(better|best|wins?|winner|significant\w*|superior|outperforms?)\b", text.replace(caveat, "")
    )


@pytest.mark.parametrize("name", LOSSES)
def test_verdict_ranks_every_arm_by_its_median(name: str) -> None:
    """Every arm is listed once, lowest median first, those that diverged last."""
    (listed,) = re.findall(
        r"at the end \(nats\)(?:, median over seeds and range)?: (.*?)\. ?(?=[A-Za-z]|$)",
        verdict(name).split("\n\n")[1],
    )
    entries = [entry.split(" ")[:2] for entry in listed.split("; ")]
    assert {arm for arm, _ in entries} == {*LOSSES[name]}
    assert len(entries) == len(LOSSES[name])
    medians = [math.inf if text == "diverged" else float(text) for _, text in entries]
    assert medians == sorted(medians)


def test_overlap_of_accuracies_is_their_own() -> None:
    """Losses that are apart and accuracies that overlap are told apart, each by its own arms."""
    found = results({"plain": (2.0, 2.2), "rezero": (0.2, 0.3)})
    scores = {"plain": (0.9, 0.7), "rezero": (0.75, 0.65)}
    for result in found:
        result.last.metrics["val_accuracy"] = scores[result.trial.arm][result.trial.seed]
    text = write_verdict(study(("plain", "rezero"), 2), found)
    assert "the next arm, plain; their ranges do not overlap." in text
    assert (
        "On validation accuracy plain comes first with 80.0 % and rezero second with 70.0 %; their ranges overlap."
        in text
    )


UNFINISHED = {"plain": (2.0, 2.2, 2.1), "rezero": (0.2, 0.1, 0.3)}


@pytest.mark.parametrize("ended", [0, 1, 3, 4, 5], ids=str)
def test_unfinished_study_says_so(ended: int) -> None:
    """A study with trials missing says how many have ended, and claims nothing while no seed has all its arms."""
    asked = study((*UNFINISHED,), 3)
    paragraphs = write_verdict(asked, results(UNFINISHED)[:ended]).split("\n\n")
    assert paragraphs[0].endswith(f"Only {ended} of 6 trials have ended so far.")
    assert len(paragraphs) == (3 if ended > 3 else 1)
    assert "have ended so far" not in write_verdict(asked, results(UNFINISHED))


@pytest.mark.parametrize("seeds", [1, 2], ids=str)
def test_unfinished_study_compares_paired_seeds(seeds: int) -> None:
    """Arms are compared on the seeds that all of them have, as a study of those seeds alone would be."""
    text = write_verdict(study((*UNFINISHED,), 3), results(UNFINISHED)[: 3 + seeds])
    fewer = {arm: losses[:seeds] for arm, losses in UNFINISHED.items()}
    alone = write_verdict(study((*UNFINISHED,), seeds), results(fewer))
    noun = "seed" if seeds == 1 else "seeds"
    prefix = f"Compared on the {seeds} {noun} that every arm has finished. "
    assert text.split("\n\n")[1] == prefix + alone.split("\n\n")[1]
    assert text.split("\n\n")[2] == alone.split("\n\n")[2]


def test_an_arm_without_results_is_not_passed_over() -> None:
    """Where one of three arms has not begun there is no comparison of the other two."""
    found = results({"plain": (2.0,), "rezero": (0.2,)})
    text = write_verdict(study(("plain", "rezero", "pre-norm"), 1), found)
    assert text.endswith("Only 2 of 3 trials have ended so far.")


@pytest.mark.parametrize("name", ["others-diverged", "all-diverged", "half-diverged", "one-seed-diverged"])
def test_accuracies_are_compared_where_all_seeds_converged(name: str) -> None:
    """An arm with a seed that diverged has no part in the comparison of accuracies, and one arm alone has none."""
    assert "validation accuracy" not in verdict(name)


def test_equal_accuracies_are_level() -> None:
    """Two arms with the same median accuracy share the first place."""
    assert "On validation accuracy rezero and skipinit come first, level at 83.3 %." in verdict("same-network")


@pytest.mark.parametrize("name", ["one-seed", "one-seed-equal"])
def test_one_seed_has_no_range(name: str) -> None:
    """With one seed there is no range, so the verdict does not say that ranges overlap or do not."""
    text = verdict(name)
    assert "one seed has no interval" in text
    assert not re.search(r"ranges? (do not )?overlap|median|range:|\(one seed\)", text)
    assert "1 seeds" not in text
    (listed,) = re.findall(r"at the end \(nats\): (.*?)\. ", text)
    assert not re.search(r"[()]", listed)


@pytest.mark.parametrize("name", ["one-arm", "one-arm-diverged"])
def test_one_arm_is_not_called_arms(name: str) -> None:
    """The verdict of one arm speaks of no other and of no order."""
    text = verdict(name)
    assert not re.search(r"\b(arms|order|Every arm|every arm)\b", text)
    assert "The arm ran at one fixed learning rate, 0.01: not tuned." in text
    assert "Another learning rate may give another loss, and a range over 3 seeds is no interval" in text


@pytest.mark.parametrize("name", ["half-diverged", "each-half-diverged"])
def test_an_arm_with_a_seed_that_converged_is_not_called_diverged(name: str) -> None:
    """Where half of an arm's seeds diverged the verdict does not say that the arm diverged without a word more."""
    text = verdict(name)
    assert "every other arm diverged" not in text
    assert "Every arm diverged" not in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 1}, "depth 2, width 8, 1 step of batches of 128, 1 seed."),
        ({"steps": 30}, "depth 2, width 8, 30 steps of batches of 128, 1 seed."),
        ({"epochs": 1, "depth": 1, "seeds": 2}, "depth 1, width 8, 1 epoch of batches of 128, 2 seeds."),
        ({"lr": 1e-5}, "at one fixed learning rate, 1e-05: not tuned."),
    ],
    ids=["step", "steps", "singular", "lr"],
)
def test_verdict_describes_the_study(given: dict[str, int], text: str) -> None:
    """The first paragraph says how large and how long the study is, in the right number."""
    settings = TASK.settings({"depth": 2, "width": 8, "seeds": 1, **given})
    assert text in write_verdict(Study("fc-digits", settings, {}), [])


def test_a_trial_that_diverged_is_not_ranked_by_the_loss_before() -> None:
    """An arm whose last step left the finite numbers, so that only its validation shows it, does not end lowest."""
    found = results({"plain": (0.1,), "rezero": (0.2,)})
    last = found[0].last
    broken = Point(last.step, last.epoch, {**last.metrics, "val_loss": NAN, "val_accuracy": NAN}, ())
    found[0] = TrialResult(found[0].trial, "diverged", (broken,))
    text = write_verdict(study(("plain", "rezero"), 1), found)
    assert "plain ends lowest" not in text
    assert "rezero ends lowest; every other arm diverged." in text


@pytest.mark.parametrize(
    ("value", "loss", "percent"),
    [
        (0.12345, "0.123", "12.3 %"),
        (1.0, "1.00", "100.0 %"),
        (0.0064, "0.00640", "0.6 %"),
        (18.2, "18.2", "1820.0 %"),
        (100.4, "100", "10040.0 %"),
        (0.0, "0.00", "0.0 %"),
        (17984.25, "1.80e+04", "1798425.0 %"),
        (math.nan, "diverged", "none"),
        (math.inf, "diverged", "none"),
    ],
    ids=str,
)
def test_numbers_have_three_digits(value: float, loss: str, percent: str) -> None:
    """Losses have three digits, fractions one decimal of percent; what is not finite is a word."""
    assert show_value(value) == loss
    assert ACCURACY.show(value) == percent


def text_verdict(losses: Mapping[str, Sequence[float]]) -> str:
    """The verdict of a study of text, whose validation losses in nats are these."""
    task = find_task("lm-text")
    seeds = len(next(iter(losses.values())))
    settings = replace(task.defaults, arms=(*losses,), seeds=seeds, depth=2, width=16, steps=40)
    return write_verdict(Study("lm-text", settings, {}), results(losses))


def test_text_is_compared_in_bits_a_byte() -> None:
    """On text the lowest validation loss comes first, in bits a byte: ln 2 nats are one bit."""
    ln2 = math.log(2)
    text = text_verdict({"pre-norm": (3 * ln2, 4 * ln2), "rezero": (2 * ln2, 2.5 * ln2)})
    assert text.startswith("lm-text: depth 2, width 16, 40 steps of batches of 16, 2 seeds.")
    assert (
        "On validation loss rezero comes first with 2.250 bits a byte and pre-norm second with 3.500; their ranges do "
        "not overlap." in text
    )
    assert "Training loss at the end (bits a byte), median over seeds and range: rezero 2.25 (2.00 to 2.50); " in text
    assert "nats" not in text
    assert "accuracy" not in text
    assert "%" not in text


@pytest.mark.parametrize(("high", "overlap"), [(2.5, False), (3.0, True), (3.5, True)], ids=["apart", "touch", "over"])
def test_ranges_of_losses_overlap_at_their_near_ends(high: float, overlap: bool) -> None:
    """Where low is good the ranges overlap if the best arm's highest seed reaches the second's lowest."""
    text = text_verdict({"pre-norm": (3.0, 4.0), "rezero": (2.0, high)})
    said = text.split("On validation loss ")[1]
    assert said.startswith("rezero comes first")
    assert ("their ranges overlap." in said) == overlap
    assert ("their ranges do not overlap." in said) != overlap


def test_diverged_arms_have_no_rank_in_accuracy() -> None:
    """An accuracy is compared only between arms that never left the finite numbers."""
    asked = study(("plain", "rezero"), 1)
    point = Point(3, 1.0, {"train_loss": math.nan, "val_loss": math.nan, "val_accuracy": 0.1, "seconds": 1.0}, ())
    ended = [TrialResult(Trial(arm, 0.01, 0), "diverged", (point,)) for arm in ("plain", "rezero")]
    text = write_verdict(asked, ended)
    assert "Every arm diverged." in text
    assert "accuracy" not in text


def test_equal_accuracies_have_no_winner() -> None:
    """Two arms with the same median accuracy are level."""
    asked = study(("plain", "rezero"), 1)
    ended = [
        TrialResult(
            Trial(arm, 0.01, 0),
            "finished",
            (Point(3, 1.0, {"train_loss": loss, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 1.0}, ()),),
        )
        for arm, loss in (("plain", 2.0), ("rezero", 1.0))
    ]
    assert "rezero come first, level at 50.0 %" in write_verdict(asked, ended)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "Every arm ran at one fixed learning rate, 0.01: not tuned."),
        ({"alpha_lr": 0.5}, "Every arm ran at one fixed learning rate, 0.01 (0.5 for the gates): not tuned."),
        ({"warmup": 1}, "Every arm ran at the learning rate 0.01 with 1 step of warm-up: not tuned."),
        (
            {"warmup": 5, "schedule": "CosineAnnealingLR"},
            "Every arm ran at the learning rate 0.01 with 5 steps of warm-up and CosineAnnealingLR: not tuned.",
        ),
    ],
    ids=["fixed", "alpha", "warmup", "schedule"],
)
def test_verdict_says_how_the_rate_went(given: dict[str, Any], text: str) -> None:
    """Schedule, warm-up and the gates' own rate are said; "fixed" is said only of a rate that is."""
    assert text in write_verdict(Study("fc-digits", TASK.settings(given), {}), [])
