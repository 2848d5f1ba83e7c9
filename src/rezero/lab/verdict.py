"""The outcome of a study in plain words."""

import math

from rezero.lab.stats import Spread, by_arm, spread
from rezero.lab.store import Study, TrialResult
from rezero.lab.sweep import plan

__all__ = ["show_percent", "show_value", "write_verdict"]


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
        paragraphs += [common + _compare(paired), _limits(len(shared))]
    return "\n\n".join(paragraphs)


def show_value(value: float) -> str:
    """Write a loss with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def show_percent(value: float) -> str:
    """Write a fraction in percent with one decimal."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "none"


def _describe(study: Study, results: list[TrialResult]) -> str:
    settings = study.settings
    length = _count(settings.epochs, "epoch") if settings.epochs else _count(settings.steps or 0, "step")
    text = (
        f"{study.task}: {_count(settings.depth, 'block')} of width {settings.width}, {length} of batches of "
        f"{settings.batch_size}, {_count(settings.seeds, 'seed')}. Every arm ran at one fixed learning rate, "
        f"{settings.lr:g}: not tuned."
    )
    planned = len(plan(settings))
    return text if len(results) == planned else f"{text} Only {len(results)} of {planned} trials have ended so far."


def _compare(results: list[TrialResult]) -> str:
    losses = {arm: spread(r.final("train_loss") for r in trials) for arm, trials in by_arm(results).items()}
    ranked = sorted(losses, key=lambda arm: losses[arm].median)
    listed = "; ".join(f"{arm} {show_value(losses[arm].median)} ({_range(losses[arm])})" for arm in ranked)
    text = f"Training loss at the end, median over seeds and range: {listed}."
    if len(ranked) == 1:
        return text
    return f"{text} {_rank(losses, ranked)} {_validate(results)}".rstrip()


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


def _validate(results: list[TrialResult]) -> str:
    survivors = {arm: trials for arm, trials in by_arm(results).items() if all(r.status == "finished" for r in trials)}
    scores = {arm: spread(r.final("val_accuracy") for r in trials) for arm, trials in survivors.items()}
    if len(scores) < 2:
        return ""
    ranked = sorted(scores, key=lambda arm: -scores[arm].median)
    best, second = (scores[arm] for arm in ranked[:2])
    if best.median == second.median:
        return f"On validation accuracy {ranked[0]} and {ranked[1]} come first, level at {show_percent(best.median)}."
    ranges = "" if best.n == 1 else f"; their ranges {'overlap' if best.low <= second.high else 'do not overlap'}"
    return (
        f"On validation accuracy {ranked[0]} comes first with {show_percent(best.median)} and {ranked[1]} second with "
        f"{show_percent(second.median)}{ranges}."
    )


def _limits(seeds: int) -> str:
    spread_is_no_interval = f"a range over {seeds} seeds is no interval" if seeds > 1 else "one seed has no interval"
    return (
        f"Another learning rate may change the order of the arms, and {spread_is_no_interval}: this says what happened "
        "at this setting, not which arm is better in general."
    )


def _range(values: Spread) -> str:
    return f"{show_value(values.low)} to {show_value(values.high)}" if values.n > 1 else "one seed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
