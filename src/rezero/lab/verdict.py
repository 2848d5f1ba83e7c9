"""The outcome of a study in plain words."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rezero.lab.cautions import cautions_of
from rezero.lab.comparison import Comparison, compare, fate
from rezero.lab.costs import costs_of
from rezero.lab.own import OwnSettings
from rezero.lab.quality import Quality
from rezero.lab.settings import Settings
from rezero.lab.spreads import by_arm, compared
from rezero.lab.stats import LEVEL, Paired, compare_pairs, detectable, pairs_needed
from rezero.lab.study import Study, TrialResult
from rezero.lab.subject import chosen_by, counted, subject_of
from rezero.lab.trial import settings_of
from rezero.lab.tune import Choice, choose, plan

__all__ = ["compare_arms", "write_verdict"]

_MENDED = {"crashed", "timed out", "logged nothing", "failed"}  # fates that may be another's fault than the arm's


def write_verdict(study: Study, results: Sequence[TrialResult]) -> str:
    """Say what a study found, without saying more than it can.

    Args:
        study: What was run.
        results: The trials that ended, those of the tuning among them.

    Returns:
        Paragraphs separated by empty lines.
    """
    finals = compared(results)
    found = compare_arms(study, results)
    quality = subject_of(study).quality(results)
    paragraphs = [" ".join([_describe(study, results), *cautions_of(finals, quality)])]
    if quality is None:
        return paragraphs[0]
    paragraphs += [_compared(study, each, quality, finals) for each in found]
    if finals and not found:
        paragraphs.append(_alone(finals, quality))
    elif any(not math.isnan(p) for each in found for p in (each.gain_p, each.lead_p)):
        paragraphs.append(_limits(found))
    return "\n\n".join(paragraphs)


def compare_arms(study: Study, results: Sequence[TrialResult]) -> list[Comparison]:
    """Hold every arm of a study against its baseline.

    Args:
        study: What was run, and what is asked of it.
        results: The trials that ended.

    Returns:
        A comparison an arm, the baseline left out.

    Raises:
        UsageError: If the study has no such baseline.
    """
    subject = subject_of(study)
    baseline = study.question.held_against(study.settings, subject.standard)
    finals = compared(results)
    quality = subject.quality(results)
    if quality is None:
        return []
    return compare(finals, quality, baseline, steps=subject.length(finals), target=study.question.target)


def _describe(study: Study, results: Sequence[TrialResult]) -> str:
    settings = study.settings
    text = f"{subject_of(study).described()} {_rates(study, results)}"
    planned = len(plan(settings, costs_of(study, results)))
    ended = len(results)
    return text if ended == planned else f"{text} Only {ended} of {planned} trials have ended so far."


def _rates(study: Study, results: Sequence[TrialResult]) -> str:
    settings = study.settings
    if settings.tune:
        return _tuned(study, choose(settings, costs_of(study, results))) + _chosen_by(study, results)
    arms = plan(settings, {})[: len(settings.arms)]
    if isinstance(settings, OwnSettings):
        times = {trial.arm: trial.lr for trial in arms}
        own = f"the learning rate of {Path(settings.script).name}"
        if {*times.values()} == {1.0}:
            return f"Every arm ran at {own}: not tuned, and what suits one may not suit another."
        return f"Every arm ran at a multiple of {own}, {_listed(times)}: not tuned."
    assert isinstance(settings, Settings)  # noqa: S101 - there are these two
    who = "Every arm" if len(arms) > 1 else "The arm"
    each = {trial.arm: settings_of(settings, trial) for trial in arms}
    lrs = {arm: own.lr for arm, own in each.items()}
    rate = f"{lrs[arms[0].arm]:g}" if len({*lrs.values()}) == 1 else "its own, " + _listed(lrs)
    gates = "" if settings.alpha_lr is None else f" ({settings.alpha_lr:g} for the gates)"
    if settings.schedule == "constant" and not any(own.warmup for own in each.values()):
        return f"{who} ran at one fixed learning rate, {rate}{gates}: not tuned."
    warmup = f"{counted(settings.warmup, 'step')} of warm-up" if settings.warmup else ""
    schedule = "" if settings.schedule == "constant" else settings.schedule
    course = " and ".join(filter(None, (warmup, schedule)))
    return f"{who} ran at the learning rate {rate}{gates}{f' with {course}' if course else ''}: not tuned."


def _tuned(study: Study, choices: Mapping[str, Choice]) -> str:
    settings = study.settings
    what = _and([{"lr": "learning rate"}.get(name, name) for name in settings.tuned])
    searched = len(settings.tuned) > 1
    how = f"by a search of {settings.tune} trials" if searched else "from the same table"
    text = (
        f"Every arm chose its {what} {how} on {counted(settings.tune_seeds, 'seed')} that the comparison does not use"
    )
    if not choices:
        return f"{text}; this has not ended yet."
    if searched:
        found = (f"{arm} {_and([f'{name} {value:g}' for name, value in each.values])}" for arm, each in choices.items())
        return f"{text}: {'; '.join(found).replace('_', '-')}."
    tried = sorted(next(iter(choices.values())).costs)
    best = {arm: choice.values[0][1] for arm, choice in choices.items()}
    edge = [arm for arm, choice in choices.items() if choice.at_edge]
    beyond = f" A better one may lie beyond the table for {_and(edge)}." if edge else ""
    times = f" times that of {Path(settings.script).name}" if isinstance(settings, OwnSettings) else ""
    span = f"{tried[0][0][1]:g} to {tried[-1][0][1]:g}{times}"
    return f"{text}: {len(tried)} values from {span}; {_listed(best)}.{beyond}"


def _chosen_by(study: Study, results: Sequence[TrialResult]) -> str:
    """Name the metric that chose, where another one is asked now."""
    asked = subject_of(study).quality(results)
    chose = chosen_by(study, results)
    return f" They were chosen by {chose.name}." if asked and chose and asked.metric != chose.metric else ""


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {value:g}" for arm, value in values.items())


def _compared(study: Study, found: Comparison, quality: Quality, finals: Sequence[TrialResult]) -> str:
    if not found.seeds:
        return f"{found.arm} against {found.baseline}: no seed that both have finished."
    n = len(found.seeds)
    head = f"{found.arm} against {found.baseline}, {counted(n, 'paired seed')}"
    if n == 1:
        return f"{head}: one seed has no interval, so nothing is decided. {_ends(found, quality, finals)}"
    parts = [_speed(study, found, quality), _end(found, quality), _power(study, found, quality)]
    if found.gain is not None and found.same:
        parts = []
    elif found.gain is not None and len(found.repeated) > 1:
        parts = [_ends(found, quality, finals)]
    return " ".join(filter(None, (f"{head}: {_headline(found)}.", *parts, _cost(found, finals))))


def _headline(found: Comparison) -> str:
    """Put both outcomes into a few words."""
    n = counted(len(found.seeds), "seed")
    ours, theirs = found.diverged
    our_fate, their_fate = found.fates
    if ours == theirs == len(found.seeds) and our_fate == their_fate:
        return f"both {our_fate} on every seed"
    if ours or theirs:
        who, fate_of = (found.arm, our_fate) if ours else (found.baseline, their_fate)
        how = "" if our_fate == their_fate else f" {their_fate}"
        both = f"; {found.baseline}{how} on {theirs}" if ours and theirs else ""
        return f"{who} {fate_of} on {ours or theirs} of {n}{both}"
    if found.same:
        return "the very same numbers on every seed"
    if found.repeated:
        return f"all seeds of {_and(found.repeated)} gave the very same numbers, so nothing is decided"
    unreached = found.censored == (len(found.seeds), len(found.seeds))
    speed = {
        "more": "faster",
        "less": "slower",
        "level": "no difference in speed",
        "unknown": "too few seeds to decide speed" if found.lead and not unreached else "speed can't be told",
    }
    if (found.speed, found.quality) == ("level", "level"):
        return f"no difference that {n} can see"
    end = {
        "more": "better at the end",
        "less": "worse at the end",
        "level": f"no difference at the end that {n} can see",
        "unknown": "too few seeds to decide the end",
    }
    caught_up = found.speed == "more" and found.quality in ("level", "less")
    return f"{'faster early' if caught_up else speed[found.speed]}, {end[found.quality]}"


def _speed(study: Study, found: Comparison, quality: Quality) -> str:
    if found.target is None or max(found.diverged) == len(found.seeds):
        return ""
    n, lead = len(found.seeds), found.lead
    target = _with_unit(quality.show(quality.factor * found.target), quality)
    if found.censored == (n, n):
        return f"Neither reached {quality.name} {target} on any seed, so no speed can be told."
    if lead is None:
        return f"Both were at {quality.name} {target} when they were first measured, so no speed can be told."
    ours, theirs = found.censored
    if ours or theirs:
        missed = f"{found.arm} missed it on {ours} of {n} seeds, {found.baseline} on {theirs}"
        difference = f"{abs(lead.mean):,.0f}"
        who = found.arm if lead.mean > 0 else found.baseline
        differ = "less than 1" if difference == "0" else f"{difference} in favour of {who}"
        decided = f"{n} are too few for a test by signs" if math.isnan(found.lead_p) else f"{_p(found.lead_p)} by signs"
        decided = decided if found.testable else "not tested"
        steps = f"mean steps, cut off at the end of the run, differ by {differ}"
        return f"To {quality.name} {target}: {missed}; {steps}, {decided}."
    early = sum(pair[0].at_first for pair in found.arrivals.values())
    first = f" It was there at its first measurement on {early} of {n}, so it may have been faster." if early else ""
    reach = ", which both reach on every seed" if study.question.target is None else ""
    return f"To {quality.name} {target}{reach}, {_ratio(lead, _seconds(found), _p(found.lead_p))}.{first}"


def _ratio(lead: Paired, seconds: Paired | None, p: str) -> str:
    """Put how much faster or slower an arm is into words, in steps and in seconds."""
    sign = 1 if lead.mean >= 0 else -1
    middle, ends = _times_and_ends(lead, sign)
    how = f"is {middle} times as fast" if sign > 0 else f"takes {middle} times the steps"
    text = f"it {how} ({ends}, {p})"
    if seconds is None:
        return text
    middle, ends = _times_and_ends(seconds, sign)
    return f"{text}, in seconds {middle} times ({ends})"


def _times_and_ends(logs: Paired, sign: int = 1) -> tuple[str, str]:
    """Write a ratio and its interval, in words where that says next to nothing."""
    low, high = sorted((sign * logs.low, sign * logs.high))
    if high - low > 2 * math.log(10):
        return _times(math.exp(sign * logs.mean)), f"uncertain by more than tenfold on {counted(logs.n, 'seed')}"
    return _times(math.exp(sign * logs.mean)), f"{_times(math.exp(low))} to {_times(math.exp(high))}"


def _seconds(found: Comparison) -> Paired | None:
    seconds = [(ours.seconds, theirs.seconds) for ours, theirs in found.arrivals.values()]
    if not all(time > 0 for pair in seconds for time in pair):
        return None
    return compare_pairs([math.log(theirs / ours) for ours, theirs in seconds])


def _end(found: Comparison, quality: Quality) -> str:
    gain = found.gain
    if gain is None:
        if min(found.diverged) == len(found.seeds):
            return ""
        again = ", or `--retry` runs again what failed" if {*found.fates} & _MENDED else ""
        return f"Final values are not compared, as a seed has none{again}."
    word = "better" if gain.mean >= 0 else "worse"
    sign = 1 if gain.mean >= 0 else -1
    low, high = sorted((sign * gain.low, sign * gain.high))
    shown = (_amount(value, quality) for value in (abs(gain.mean), low, high))
    middle, bottom, top = shown
    if not float(middle):
        return f"At the end they are level ({bottom} to {top}{_unit(quality)}, {_p(found.gain_p)})."
    return f"At the end it is {word} by {middle}{_unit(quality)} ({bottom} to {top}, {_p(found.gain_p)})."


def _power(study: Study, found: Comparison, quality: Quality) -> str:
    """Say which difference the seeds could have seen, and how many see the one that was asked for."""
    gain, level = found.gain, LEVEL / (2 * (len(study.settings.arms) - 1))
    if gain is None or not found.testable or not gain.deviation > 1e-9:
        return ""
    text = []
    if found.quality == "level":
        seen = detectable(gain.n, gain.deviation, level=level)
        shown = "hardly any difference" if quality.percent and seen > 1 else f"{_amount(seen, quality)}{_unit(quality)}"
        text.append(f"{counted(gain.n, 'seed')} see {shown} in four of five such studies.")
    if (asked := study.question.resolve) is not None:
        needed = pairs_needed(asked, gain.deviation, level=level)
        many = "more than 100,000 seeds" if needed is None else counted(needed, "seed")
        text.append(f"{_amount(asked, quality)}{_unit(quality)} would take {many}.")
    return " ".join(text)


def _ends(found: Comparison, quality: Quality, finals: Sequence[TrialResult]) -> str:
    values = {r.trial.arm: r.final(quality.metric) for r in finals if r.trial.seed in found.seeds}
    shown = (
        f"{arm} {_with_unit(quality.show(quality.factor * values[arm]), quality)}"
        for arm in (found.arm, found.baseline)
    )
    return f"{quality.name[:1].upper()}{quality.name[1:]} at the end: {' and '.join(shown)}."


def _cost(found: Comparison, finals: Sequence[TrialResult]) -> str:
    """Say what a step costs, and the peak of memory, as ratios over the same seeds."""
    if any(found.diverged):
        return ""
    arms = {arm: {r.trial.seed: r for r in trials} for arm, trials in by_arm(finals).items()}
    pairs = [(arms[found.arm][seed], arms[found.baseline][seed]) for seed in found.seeds]
    paces = [(_pace(one), _pace(other)) for one, other in pairs]
    text = []
    if all(pace > 0 for pair in paces for pace in pair):
        middle, ends = _times_and_ends(compare_pairs([math.log(one / other) for one, other in paces]))
        text.append(f"A step takes {middle} times as long ({ends})")
    memory = [(one.memory, other.memory) for one, other in pairs if one.memory and other.memory]
    if len(memory) == len(pairs):
        ratio = compare_pairs([math.log(one / other) for one, other in memory])
        text.append(f"peak memory is {_times(math.exp(ratio.mean))} times as much")
    return f"{'; '.join(text)}." if text else ""


def _pace(result: TrialResult) -> float:
    """Return the seconds of a step, 0 where that is not known."""
    return result.last.metrics["seconds"] / result.last.step if result.last.step else 0.0


def _alone(finals: Sequence[TrialResult], quality: Quality) -> str:
    values = [quality.factor * result.final(quality.metric) for result in finals]
    known = [value for value in values if not math.isnan(value)]
    lost = [result for result in finals if math.isnan(result.final(quality.metric))]
    gone = f"; {len(lost)} {fate(lost)}" if lost else ""
    if not known:
        return f"{finals[0].trial.arm} {fate(lost)} on every seed."
    mean = compare_pairs(known)
    interval = f" ({quality.show(mean.low)} to {quality.show(mean.high)})" if mean.n > 1 else ""
    middle = _with_unit(quality.show(mean.mean), quality)
    return (
        f"{finals[0].trial.arm} alone: {quality.name} {middle}{interval} at the end, mean of "
        f"{counted(mean.n, 'seed')}{gone}. There is no arm to hold it against."
    )


def _limits(found: Sequence[Comparison]) -> str:
    return (
        f"Intervals are 95%, each for itself; p are of paired t tests or tests by signs, corrected together for the "
        f"{2 * len(found)} of this study (Holm), and decide at {LEVEL:g}, so an interval can leave out what its p does "
        "not. Other sizes, lengths or data may come out otherwise."
    )


def _amount(value: float, quality: Quality) -> str:
    """Write a difference of the metric."""
    if quality.percent:
        return f"{100 * value:.1f}" if abs(value) >= 0.1 else f"{100 * value:.2f}"
    return f"{quality.factor * value:.3g}"


def _unit(quality: Quality) -> str:
    unit = "points" if quality.percent else quality.unit
    return f" {unit}" if unit else ""


def _with_unit(value: str, quality: Quality) -> str:
    return f"{value} {quality.unit}".rstrip()


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _p(value: float) -> str:
    return "not tested" if math.isnan(value) else f"p = {value:.2g}" if value >= 0.0001 else "p < 0.0001"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
