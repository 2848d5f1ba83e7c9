"""The outcome of a study in plain words."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rezero.lab import Point, Question, Study, Trial, TrialResult, find_task, plan, write_verdict
from rezero.lab.quality import ACCURACY, show_value
from rezero.lab.trial import TUNING_SEEDS

TASK = find_task("fc-digits")
NAN = math.nan


def ended(
    arm: str,
    seed: int,
    end: float,
    *,
    part: float = 1.0,
    power: float = 1.0,
    second: float = 1.0,
    memory: float | None = None,
) -> TrialResult:
    """A trial of ten measurements, ten steps apart, that has its last accuracy after a part of the run."""
    points = []
    for n in range(1, 11):
        accuracy = end * min(1.0, n / 10 / part) ** power
        value = {"val_accuracy": accuracy, "val_loss": 1 - accuracy, "train_loss": 1 - accuracy, "seconds": n * second}
        points.append(Point(10 * n, n / 10, {k: NAN if math.isnan(end) else v for k, v in value.items()}, ()))
    points = [replace(p, metrics={**p.metrics, "seconds": p.step / 10 * second}) for p in points]
    diverged = math.isnan(end)
    return TrialResult(
        Trial(arm, 0.01, seed), "diverged" if diverged else "finished", (*(points[:1] if diverged else points),), memory
    )


def results(ends: Mapping[str, Sequence[float]], **shapes: float) -> list[TrialResult]:
    return [
        ended(arm, seed, end, part=min(1.0, shapes.get(arm, 1.0)), power=max(1.0, shapes.get(arm, 1.0)))
        for arm, values in ends.items()
        for seed, end in enumerate(values)
    ]


def study(arms: Sequence[str], seeds: int, *, question: Question | None = None, **given: Any) -> Study:
    small = {"arms": (*arms,), "seeds": seeds, "depth": 2, "width": 8, "epochs": None, "steps": 100}
    return Study("fc-digits", replace(TASK.defaults, **{**small, **given}), {}, "", question or Question())


def verdict(ends: Mapping[str, Sequence[float]], **shapes: float) -> str:
    return write_verdict(study((*ends,), len(next(iter(ends.values())))), results(ends, **shapes))


BASE = (0.80, 0.81, 0.79, 0.80, 0.82)
BETTER = (0.90, 0.92, 0.90, 0.91, 0.91)
SAME = (0.80, 0.80, 0.80, 0.79, 0.83)


@pytest.mark.parametrize(
    ("slow", "said"),
    [((0.1, 0.11), True), ((0.1, 0.4), False), ((0.69, 0.7), False), ((math.nan, math.nan), False)],
    ids=["flat", "learns", "done-at-first", "diverged"],
)
def test_an_arm_that_hardly_learns_is_named(slow: tuple[float, float], said: bool) -> None:
    """One that stays behind where the best is first measured; the rest may have learned before."""
    arms = {"post-norm": slow, "rezero": (0.5, 0.8)}
    found = []
    for arm, (first, last) in arms.items():
        for seed in range(3):
            points = [
                Point(step, step / 100, {"val_accuracy": value, "val_loss": 1.0, "train_loss": 1.0, "seconds": 1.0}, ())
                for step, value in ((50, first), (100, last))
            ]
            lost = math.isnan(last)
            found.append(TrialResult(Trial(arm, 0.01, seed), "diverged" if lost else "finished", tuple(points)))
    text = write_verdict(study((*arms,), 3), found)
    sentence = (
        "post-norm hardly learned: its validation accuracy goes from 10.0 % to 11.0 %, that of rezero from 50.0 % to"
    )
    assert (sentence in text, "hardly learned" in text) == (said, said)


def test_verdict_is_golden() -> None:
    """The whole verdict of a study of two arms, as it was written and read over on 2026-11-28."""
    asked = study(("pre-norm", "rezero"), 5, question=Question(resolve=0.005))
    found = [
        ended(arm, seed, end, part=part, second=second, memory=memory)
        for arm, ends, part, second, memory in (
            ("pre-norm", BASE, 1.0, 1.0, 2e8),
            ("rezero", SAME, 0.5, 0.9, 1.9e8),
        )
        for seed, end in enumerate(ends)
    ]
    assert write_verdict(asked, found) == (
        "fc-digits: depth 2, width 8, 100 steps of batches of 128, 5 seeds. Every arm ran at one fixed learning "
        "rate, 0.01: not tuned.\n\n"
        "rezero against pre-norm, 5 paired seeds: faster early, no difference at the end that 5 seeds can see. To "
        "validation accuracy 79.0 %, which both reach on every seed, it is 2.00 times as fast (1.97 to 2.03, p < "
        "0.0001), in seconds 2.22 times (2.19 to 2.26). At the end they are level (-1.24 to 1.24 points, p = 1). "
        "5 seeds see 2.05 points in four of five such studies. 0.50 points would take 41 seeds. A step takes 0.90 "
        "times as long (0.90 to 0.90); peak memory is 0.95 times as much.\n\n"
        "Intervals are 95%, each for itself; p are of paired t tests or tests by signs, corrected together for "
        "the 2 of this study (Holm), and decide at 0.05, so an interval can leave out what its p does not. Other "
        "sizes, lengths or data may come out otherwise."
    )


HEADLINES = [
    (BETTER, 0.5, "faster, better at the end"),
    (BETTER, 20.0, "no difference in speed, better at the end"),
    (SAME, 0.5, "faster early, no difference at the end that 5 seeds can see"),
    (SAME, 1.0, "no difference that 5 seeds can see"),
    ([0.7 + 0.1 * (v - 0.8) for v in SAME], 0.4, "faster early, worse at the end"),
    ([0.7 + 0.1 * (v - 0.8) for v in SAME], 3.0, "slower, worse at the end"),
    ([v + 0.1 for v in BASE], 1.0, "faster, too few seeds to decide the end"),
    ((NAN, *BETTER[1:]), 1.0, "rezero diverged on 1 of 5 seeds"),
    ((NAN,) * 5, 1.0, "rezero diverged on 5 of 5 seeds"),
]


@pytest.mark.parametrize(("ends", "shape", "expected"), HEADLINES, ids=[text for *_, text in HEADLINES])
def test_verdict_says_what_came_out(ends: Sequence[float], shape: float, expected: str) -> None:
    """Each kind of outcome has words of its own, right behind the names of the arms."""
    paragraph = verdict({"pre-norm": BASE, "rezero": ends}, rezero=shape).split("\n\n")[1]
    assert paragraph.startswith(f"rezero against pre-norm, 5 paired seeds: {expected}.")


def paragraph_of(ends: Mapping[str, Sequence[float]], **shapes: float) -> str:
    return verdict(ends, **shapes).split("\n\n")[1]


def test_copies_of_one_run_prove_nothing() -> None:
    """An arm whose seeds gave the very same numbers is named, with what was measured, and no p comes from it."""
    assert paragraph_of({"pre-norm": [0.8] * 8, "rezero": [0.81] * 8}) == (
        "rezero against pre-norm, 8 paired seeds: all seeds of rezero and pre-norm gave the very same numbers, so "
        "nothing is decided. Validation accuracy at the end: rezero 81.0 % and pre-norm 80.0 %. A step takes 1.00 "
        "times as long (1.00 to 1.00)."
    )
    assert paragraph_of({"pre-norm": BASE, "rezero": [0.9] * 5}) == (
        "rezero against pre-norm, 5 paired seeds: all seeds of rezero gave the very same numbers, so nothing is "
        "decided. To validation accuracy 79.0 %, which both reach on every seed, it is 1.12 times as fast (1.10 to "
        "1.14, not tested), in seconds 1.12 times (1.10 to 1.14). At the end it is better by 9.60 points (8.18 to "
        "11.0, not tested). A step takes 1.00 times as long (1.00 to 1.00)."
    )
    arms = {"pre-norm": [0.8] * 5, "rezero": BETTER}
    asked = study((*arms,), 5, question=Question(target=0.9, resolve=0.01))
    text = write_verdict(asked, results(arms))
    assert "in favour of rezero, not tested." in text
    assert not re.search("p [=<]|would take|too few", text)


def test_the_very_same_numbers_are_called_that() -> None:
    """Of arms that gave the same on every seed nothing else is said but what they cost."""
    assert verdict({"pre-norm": BASE, "rezero": BASE}).split("\n\n")[1:] == [
        "rezero against pre-norm, 5 paired seeds: the very same numbers on every seed. A step takes 1.00 times as long "
        "(1.00 to 1.00)."
    ]
    copies = paragraph_of({"pre-norm": [0.8] * 5, "rezero": [0.8] * 5})
    assert copies.startswith("rezero against pre-norm, 5 paired seeds: the very same numbers on every seed. A step")
    gone = paragraph_of({"pre-norm": (*BASE, NAN), "rezero": (*BASE, NAN)})
    assert gone.startswith("rezero against pre-norm, 6 paired seeds: rezero diverged on 1 of 6 seeds; pre-norm on 1.")
    assert "p =" not in gone


def test_a_difference_that_rounds_to_nothing_favours_nobody() -> None:
    """Where nobody or both reach a target at the same steps no arm is said to be ahead."""
    arms = {"plain": (0.9, 0.7, 0.7), "rezero": (0.9 + 1e-9, 0.69, 0.71)}
    text = write_verdict(study((*arms,), 3, question=Question(target=0.8)), results(arms))
    assert (
        "mean steps, cut off at the end of the run, differ by less than 1, 3 are too few for a test by signs." in text
    )


def test_an_interval_that_says_nothing_is_said_to() -> None:
    """Where two seeds leave a ratio open over more than a hundredfold its ends are not shown."""
    found = [
        ended(arm, seed, end, second=second)
        for arm, seed, end, second in (
            ("pre-norm", 0, 0.8, 1.0),
            ("pre-norm", 1, 0.81, 1.0),
            ("rezero", 0, 0.9, 0.17),
            ("rezero", 1, 0.92, 1.0),
        )
    ]
    text = write_verdict(study(("pre-norm", "rezero"), 2), found)
    assert "A step takes 0.41 times as long (uncertain by more than tenfold on 2 seeds)." in text
    assert "in seconds 2.74 times (uncertain by more than tenfold on 2 seeds)." in text


def test_a_trial_that_did_not_log_the_metric_did_not_fail() -> None:
    """It is said to have finished without it, and --retry, which would not run it again, is not advised."""
    (*most, last) = results({"pre-norm": BASE, "rezero": BETTER})
    last = replace(last, points=tuple(replace(p, metrics={"train_loss": 1.0, "seconds": 1.0}) for p in last.points))
    text = write_verdict(study(("pre-norm", "rezero"), 5), [*most, last])
    assert "rezero against pre-norm, 5 paired seeds: rezero did not log it on 1 of 5 seeds." in text
    assert "Final values are not compared, as a seed has none." in text
    alone = write_verdict(study(("rezero",), 2), [replace(last, trial=Trial("rezero", 0.01, 0)), most[-1]])
    assert "mean of 1 seed; 1 did not log it." in alone


def test_a_slower_arm_takes_more_steps_and_more_seconds() -> None:
    """Both ratios are above one, and as large where a step costs the same."""
    text = verdict({"pre-norm": BASE, "rezero": [0.7 + 0.1 * (v - 0.8) for v in SAME]}, rezero=3.0)
    (steps, seconds) = re.findall(r"it takes ([\d.]+) times the steps .*?, in seconds ([\d.]+) times", text)[0]
    assert float(steps) == float(seconds) > 1


def test_a_baseline_that_diverged_is_named() -> None:
    """So is one where both did, and then no final values are spoken of."""
    text = verdict({"plain": (NAN, NAN), "rezero": (0.9, 0.8)})
    assert "rezero against plain, 2 paired seeds: plain diverged on 2 of 2 seeds." in text
    text = verdict({"plain": (NAN, NAN), "rezero": (NAN, NAN)})
    assert "both diverged on every seed." in text
    assert "accuracy" not in text.split("\n\n")[1]
    assert "rezero diverged on 1 of 2 seeds; plain on 1." in verdict({"plain": (NAN, 0.5), "rezero": (0.6, NAN)})


def test_no_arm_wins_without_an_interval() -> None:
    """One seed shows its numbers, and the verdict says that nothing is decided."""
    text = verdict({"plain": (0.5,), "rezero": (0.9,)})
    assert (
        "rezero against plain, 1 paired seed: one seed has no interval, so nothing is decided. Validation accuracy at "
        "the end: rezero 90.0 % and plain 50.0 %." in text
    )
    assert not re.search(r"better|worse|faster|slower|best|lowest", text)


@pytest.mark.parametrize("name", ["plain", "rezero"])
def test_the_question_names_the_baseline(name: str) -> None:
    """Any arm of the study can be the one that the others are held against."""
    arms = {"plain": BASE, "rezero": BETTER}
    asked = study((*arms,), 5, question=Question(baseline=name))
    (other,) = {*arms} - {name}
    assert f"{other} against {name}, 5 paired seeds" in write_verdict(asked, results(arms))


def test_a_given_target_is_not_called_reached() -> None:
    """Speed is measured by the value that was asked for, and who misses it is said."""
    arms = {"plain": BASE, "rezero": BETTER}
    asked = study((*arms,), 5, question=Question(target=0.85))
    text = write_verdict(asked, results(arms))
    assert "To validation accuracy 85.0 %: rezero missed it on 0 of 5 seeds, plain on 5;" in text
    assert "5 are too few for a test by signs." in text
    asked = study((*arms,), 5, question=Question(target=0.4))
    text = write_verdict(asked, results(arms))
    assert "To validation accuracy 40.0 %, it is" in text
    assert "which both reach" not in text


def test_the_standard_is_the_baseline_unless_told() -> None:
    """An arm that most people would use is what the others are held against, wherever it stands."""
    arms = {"plain": BASE, "rezero": BETTER, "pre-norm": SAME}
    text = write_verdict(study((*arms,), 5), results(arms))
    assert "plain against pre-norm, 5 paired seeds" in text
    assert "rezero against pre-norm, 5 paired seeds" in text


def test_no_speed_is_told_of_what_nobody_saw() -> None:
    """Where both had arrived when they were first measured, that is said, and no ratio."""
    arms = {"plain": BASE, "rezero": BETTER}
    text = write_verdict(study((*arms,), 5, question=Question(target=0.05)), results(arms))
    assert "speed can't be told, better at the end. Both were at validation accuracy 5.0 % when they were first" in text
    assert "times as fast" not in text
    text = write_verdict(study((*arms,), 5, question=Question(target=0.99)), results(arms))
    assert "speed can't be told, better at the end. Neither reached validation accuracy 99.0 % on any seed" in text


def test_speed_below_the_first_measurement_is_a_bound() -> None:
    """Where an arm had arrived when it was first measured, it is said that it may have been faster."""
    arms = {"plain": BASE, "rezero": BETTER}
    asked = study((*arms,), 5, question=Question(target=0.085))
    text = write_verdict(asked, results(arms))
    assert "It was there at its first measurement on 5 of 5, so it may have been faster." in text


UNFINISHED = {"plain": BASE, "rezero": BETTER}


@pytest.mark.parametrize("count", [0, 1, 5, 7, 9], ids=str)
def test_unfinished_study_says_so(count: int) -> None:
    """A study with trials missing says how many have ended, and compares the seeds that both arms have."""
    asked = study((*UNFINISHED,), 5)
    paragraphs = write_verdict(asked, results(UNFINISHED)[:count]).split("\n\n")
    assert paragraphs[0].endswith(f"Only {count} of 10 trials have ended so far.")
    assert "have ended so far" not in write_verdict(asked, results(UNFINISHED))
    if count > 6:
        assert paragraphs[1].startswith(f"rezero against plain, {count - 5} paired seeds:")


def test_one_arm_is_held_against_nothing() -> None:
    """The verdict of one arm has its mean and interval and speaks of no other."""
    text = verdict({"rezero": (0.9, 0.92, 0.91)})
    assert "The arm ran at one fixed learning rate, 0.01: not tuned." in text
    assert text.endswith(
        "rezero alone: validation accuracy 91.0 % (88.5 % to 93.5 %) at the end, mean of 3 seeds. There is no arm to "
        "hold it against."
    )
    assert verdict({"rezero": (NAN, NAN)}).endswith("rezero diverged on every seed.")
    assert "1 diverged" in verdict({"rezero": (NAN, 0.5)})


def test_a_tuned_study_says_how_rates_were_chosen() -> None:
    """The table, the seeds, each arm's choice, and where a better one may lie beyond."""
    asked = study(("plain", "rezero"), 2, tune=3)
    best = {"plain": 1e-9, "rezero": 0.03}
    found: list[TrialResult] = []
    costs: dict[Trial, float] = {}
    while missing := [trial for trial in plan(asked.settings, costs) if trial not in costs]:
        for trial in missing:
            accuracy = 1 / (1 + abs(math.log(trial.lr / best[trial.arm]))) + 1e-3 * (trial.seed % TUNING_SEEDS)
            found.append(replace(ended(trial.arm, trial.seed, accuracy), trial=trial))
            costs[trial] = -accuracy
    text = write_verdict(asked, found)
    assert (
        "Every arm chose its learning rate from the same table on 1 seed that the comparison does not use: 7 values "
        "from 0.0001 to 0.1; plain 0.0001, rezero 0.03. A better one may lie beyond the table for plain." in text
    )
    assert "not tuned" not in text
    begun = write_verdict(asked, found[:2])
    assert "the comparison does not use; this has not ended yet. Only 2 of 6 trials have ended so far." in begun


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 1, "epochs": None}, "depth 2, width 8, 1 step of batches of 128, 1 seed."),
        ({"steps": 30, "epochs": None}, "depth 2, width 8, 30 steps of batches of 128, 1 seed."),
        ({"epochs": 1, "depth": 1, "seeds": 2}, "depth 1, width 8, 1 epoch of batches of 128, 2 seeds."),
        ({"lr": 1e-5}, "at one fixed learning rate, 1e-05: not tuned."),
    ],
    ids=["step", "steps", "singular", "lr"],
)
def test_verdict_describes_the_study(given: dict[str, int], text: str) -> None:
    """The first paragraph says how large and how long the study is, in the right number."""
    settings = replace(TASK.defaults, **{"depth": 2, "width": 8, "seeds": 1, **given})
    assert text in write_verdict(Study("fc-digits", settings, {}), [])


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


def test_text_is_compared_in_bits_a_byte() -> None:
    """On text low is good, and differences are in bits a byte: ln 2 nats are one bit."""
    ln2 = math.log(2)
    task = find_task("lm-text")
    settings = replace(task.defaults, arms=("pre-norm", "rezero"), seeds=3, depth=2, width=16, steps=40)
    found = [
        TrialResult(
            Trial(arm, 0.01, seed),
            "finished",
            (
                Point(20, 0.5, {"val_loss": 3 * ln2, "train_loss": 3, "val_accuracy": 0.1, "seconds": 1.0}, ()),
                Point(40, 1.0, {"val_loss": loss * ln2, "train_loss": 3, "val_accuracy": 0.1, "seconds": 2.0}, ()),
            ),
        )
        for arm, losses in (("pre-norm", (2.5, 2.6, 2.4)), ("rezero", (2.0, 2.11, 1.91)))
        for seed, loss in enumerate(losses)
    ]
    text = write_verdict(Study("lm-text", settings, {}), found)
    assert text.startswith("lm-text: depth 2, width 16, 40 steps of batches of 16, 3 seeds.")
    assert "To validation loss 2.600 bits a byte, which both reach on every seed" in text
    assert "At the end it is better by 0.493 bits a byte (0.479 to 0.508, p < 0.0001)" in text
    assert not re.search(r"nats|accuracy|%(?!,)", text.replace("95%", ""))


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
        (
            {"arms": ("plain lr=0.1", "rezero")},
            "Every arm ran at one fixed learning rate, its own, plain lr=0.1 0.1, rezero 0.01: not tuned.",
        ),
    ],
    ids=["fixed", "alpha", "warmup", "schedule", "own"],
)
def test_verdict_says_how_the_rate_went(given: dict[str, Any], text: str) -> None:
    """Schedule, warm-up and the gates' own rate are said; "fixed" is said only of a rate that is."""
    assert text in write_verdict(Study("fc-digits", TASK.settings(given), {}), [])
