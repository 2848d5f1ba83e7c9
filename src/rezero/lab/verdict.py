"""The outcome of a study in plain words."""

import math

from rezero.lab.settings import Settings
from rezero.lab.stats import Spread, by_arm, spread
from rezero.lab.store import Study, TrialResult
from rezero.lab.sweep import plan
from rezero.lab.task import Quality
from rezero.lab.tasks import find_task

__all__ = ["loss_unit", "show_value", "write_verdict"]


def write_verdict(study: Study, results: list[TrialResult]) -> str:
    """Say what a study found, without saying more than it can.

    Args:
        study: What was run.
        results: The trials that ended.

    Returns:
        Paragraphs separated by empty lines.
    """
    shared = set.intersection(*({r.trial.seed for r in results if r.trial.arm == arm} for arm in study.settings.arms))
    paired = [result for result in results if result.trial.seed in shared]
    paragraphs = [_describe(study, results)]
    if paired:
        common = (
            "" if paired == results else f"Compared on the {_count(len(shared), 'seed')} that every arm has finished. "
        )
        quality = find_task(study.task).quality
        paragraphs += [common + _compare(paired, quality), _limits(len(shared), len(study.settings.arms))]
    return "\n\n".join(paragraphs)


def show_value(value: float) -> str:
    """Write a loss with three digits, zeros at the end among them."""
    return f"{value:#.3g}".removesuffix(".") if math.isfinite(value) else "diverged"


def loss_unit(quality: Quality) -> tuple[float, str]:
    """Choose the unit of training losses: that of the validation loss where one is shown, otherwise nats.

    Args:
        quality: What is measured on the validation part.

    Returns:
        What a loss in nats is multiplied by, and the unit.
    """
    return (quality.factor, quality.unit) if quality.metric == "val_loss" else (1.0, "nats")


def _describe(study: Study, results: list[TrialResult]) -> str:
    settings = study.settings
    length = _count(settings.epochs, "epoch") if settings.epochs else _count(settings.steps or 0, "step")
    text = (
        f"{study.task}: depth {settings.depth}, width {settings.width}, {length} of batches of "
        f"{settings.batch_size}, {_count(settings.seeds, 'seed')}. {_rates(settings)}"
    )
    planned = len(plan(settings))
    return text if len(results) == planned else f"{text} Only {len(results)} of {planned} trials have ended so far."


def _rates(settings: Settings) -> str:
    who = "Every arm" if len(settings.arms) > 1 else "The arm"
    gates = "" if settings.alpha_lr is None else f" ({settings.alpha_lr:g} for the gates)"
    if settings.schedule == "constant" and not settings.warmup:
        return f"{who} ran at one fixed learning rate, {settings.lr:g}{gates}: not tuned."
    warmup = f"{_count(settings.warmup, 'step')} of warm-up" if settings.warmup else ""
    schedule = "" if settings.schedule == "constant" else settings.schedule
    course = " and ".join(filter(None, (warmup, schedule)))
    return f"{who} ran at the learning rate {settings.lr:g}{gates} with {course}: not tuned."


def _compare(results: list[TrialResult], quality: Quality) -> str:
    factor, unit = loss_unit(quality)
    losses = {arm: spread(factor * r.final("train_loss") for r in trials) for arm, trials in by_arm(results).items()}
    ranked = sorted(losses, key=lambda arm: losses[arm].median)
    listed = "; ".join(f"{arm} {show_value(losses[arm].median)}{_range(losses[arm])}" for arm in ranked)
    what = ", median over seeds and range" if losses[ranked[0]].n > 1 else ""
    text = f"Training loss at the end ({unit}){what}: {listed}."
    if len(ranked) == 1:
        return text
    return f"{text} {_rank(losses, ranked)} {_validate(results, quality)}".rstrip()


def _rank(losses: dict[str, Spread], ranked: list[str]) -> str:
    best, second = ranked[:2]
    first, other = losses[best], losses[second]
    rest = [losses[arm] for arm in ranked if arm != best]
    half = "left the finite numbers on half of their seeds or more"
    if not math.isfinite(first.median):
        survived = any(math.isfinite(values.low) for values in losses.values())
        return f"All arms {half}." if survived else "Every arm diverged."
    if not math.isfinite(other.median):
        survived = any(math.isfinite(values.low) for values in rest)
        return f"{best} ends lowest; {f'the others {half}' if survived else 'every other arm diverged'}."
    if first.median == other.median:
        return f"{best} and {second} come out lowest, level at {show_value(first.median)}."
    times = show_value(first.median / other.median)
    if first.n == 1:
        return f"{best} ends lowest, at {times} times the loss of the next arm, {second}; one seed shows no spread."
    if first.high >= other.low:
        return f"{best} and {second} come out lowest and their ranges overlap: {first.n} seeds do not part them."
    return f"{best} ends lowest, at {times} times the loss of the next arm, {second}; their ranges do not overlap."


def _validate(results: list[TrialResult], quality: Quality) -> str:
    survivors = {arm: trials for arm, trials in by_arm(results).items() if all(r.status == "finished" for r in trials)}
    scores = {
        arm: spread(quality.factor * r.final(quality.metric) for r in trials) for arm, trials in survivors.items()
    }
    if len(scores) < 2:
        return ""
    sign = 1 if quality.lower_is_better else -1
    ranked = sorted(scores, key=lambda arm: sign * scores[arm].median)
    best, second = (scores[arm] for arm in ranked[:2])
    first = quality.show(best.median) + (f" {quality.unit}" if quality.unit else "")
    if best.median == second.median:
        return f"On {quality.name} {ranked[0]} and {ranked[1]} come first, level at {first}."
    overlap = second.low <= best.high if quality.lower_is_better else best.low <= second.high
    ranges = "" if best.n == 1 else f"; their ranges {'overlap' if overlap else 'do not overlap'}"
    return (
        f"On {quality.name} {ranked[0]} comes first with {first} and {ranked[1]} second with "
        f"{quality.show(second.median)}{ranges}."
    )


def _limits(seeds: int, arms: int) -> str:
    spread_is_no_interval = f"a range over {seeds} seeds is no interval" if seeds > 1 else "one seed has no interval"
    changes, claim = (
        ("change the order of the arms", "which arm is better") if arms > 1 else ("give another loss", "how good it is")
    )
    return (
        f"Another learning rate may {changes}, and {spread_is_no_interval}: this says what happened at this setting, "
        f"not {claim} in general."
    )


def _range(values: Spread) -> str:
    return f" ({show_value(values.low)} to {show_value(values.high)})" if values.n > 1 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
