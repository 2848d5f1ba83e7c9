"""What decides between the trials of a study."""

import math
from collections.abc import Sequence

from rezero.lab.study import Study, TrialResult
from rezero.lab.subject import chosen_by
from rezero.lab.trial import Trial

__all__ = ["costs_of"]


def costs_of(study: Study, results: Sequence[TrialResult]) -> dict[Trial, float]:
    """Return what decides between trials, whatever is asked of them later: low values are good, infinite ones diverged.

    Args:
        study: The study.
        results: Its trials that ended.

    Returns:
        Trial to cost, in the unit of the metric that decides.
    """
    quality = chosen_by(study, results)
    if quality is None:
        return {result.trial: math.inf for result in results}
    sign = 1 if quality.lower_is_better else -1
    found = {result.trial: sign * result.final(quality.metric) for result in results}
    return {trial: math.inf if math.isnan(cost) else cost for trial, cost in found.items()}
