"""Searches over several settings at once, by Optuna: what an arm tries next, as far as its results so far tell."""

from collections.abc import Mapping
from functools import lru_cache

from rezero.integrations.extras import needs

__all__ = ["ROUND", "propose"]

ROUND = 4  # proposals that do not wait for one another's results
_SPAN = 30.0  # proposals lie between a 30th and 30 times the middle
_RANDOM = 8  # proposals before the sampler follows results


@lru_cache(maxsize=4096)
def propose(
    middles: tuple[tuple[str, float], ...], tried: tuple[tuple[tuple[float, ...], float], ...], count: int
) -> tuple[tuple[float, ...], ...]:
    """Propose settings to try next: the middle, random ones, then those of a tree-structured Parzen estimator.

    The same results give the same proposals, whichever arm they are of, so a study that was stopped goes on as it would
    have, and all arms begin with the same ones.

    Args:
        middles: Name of each setting and the middle of its range, which is logarithmic.
        tried: What was tried before and what it came to, low values good and infinite ones diverged.
        count: How many.

    Returns:
        The proposals, each a value a setting, with three significant digits, or whole steps of warm-up.

    Raises:
        ImportError: If Optuna is not installed.

    References:
        Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization; Optuna's ``TPESampler``.
    """
    with needs("Optuna", extra="optuna"):
        import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(middle / _SPAN, middle * _SPAN, log=True)
        for name, middle in middles
    }
    sampler = optuna.samplers.TPESampler(seed=len(tried), n_startup_trials=_RANDOM, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    ranks = _ranks(dict(tried))
    for values, _ in tried:
        parameters = dict(zip(ranges, values, strict=True))
        study.add_trial(optuna.create_trial(params=parameters, distributions=ranges, value=ranks[values]))
    asked = [study.ask(ranges).params for _ in range(count)]
    proposals = [tuple(_rounded(name, each[name]) for name in ranges) for each in asked]
    if not tried:
        proposals[0] = tuple(float(middle) for _, middle in middles)
    return tuple(proposals)


def _rounded(name: str, value: float) -> float:
    return float(max(1, round(value))) if name == "warmup" else float(f"{value:.3g}")


def _ranks(costs: Mapping[tuple[float, ...], float]) -> dict[tuple[float, ...], float]:
    """Replace costs by their ranks, for a trial that diverged has a place and no number."""
    order = sorted(set(costs.values()))
    return {values: float(order.index(cost)) for values, cost in costs.items()}
