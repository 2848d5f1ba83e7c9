"""What is logged of the gates: the same names in every tracker."""

import math
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from rezero.diagnose import AlphaRecorder
from rezero.errors import UsageError

__all__ = ["HEAT_MAP", "HISTOGRAM", "alpha_scalars", "alphas_of", "check_max_gates", "finite_alphas", "heat_map_png"]

# Trackers draw what precedes the first slash as one section: the summary in one, the gates in another.
_SUMMARY, _GATES = "rezero", "rezero_alpha"
HISTOGRAM = f"{_SUMMARY}/alpha"
HEAT_MAP = f"{_SUMMARY}/alpha_over_depth"


def alphas_of(source: AlphaRecorder | nn.Module) -> dict[str, float]:
    """Return the last record of a recorder, or what the gates of a model are now.

    Args:
        source: The recorder or the model.

    Returns:
        Every gate's alpha (dimensionless) by the gate's name, in the order of the depth.

    Raises:
        UsageError: If there is no record yet, or the model has no gates.
    """
    if isinstance(source, nn.Module):
        with AlphaRecorder(source, every=1) as recorder:
            recorder.step()
            return recorder.latest
    alphas = source.latest
    if not alphas:
        raise UsageError("the recorder has no record yet: log at the steps that it records, or log the model")
    return alphas


def alpha_scalars(alphas: Mapping[str, float], *, max_gates: int) -> dict[str, float]:
    """Name the scalars that are logged.

    ``rezero/min_abs_alpha``, ``rezero/mean_abs_alpha`` and ``rezero/max_abs_alpha`` sum up the sizes of all gates, and
    are nan if one is. ``rezero_alpha/<gate>`` are the gates themselves.

    Args:
        alphas: Every gate's alpha (dimensionless) by the gate's name, in the order of the depth.
        max_gates: How many gates are logged one by one. Of more, so many are taken at even distances over the depth,
            the first and the last among them; 0 leaves the summary alone.

    Returns:
        The scalars by their names.

    Raises:
        ValueError: If ``max_gates`` is negative.

    Example:
        >>> scalars = alpha_scalars({"0.gate": -0.5, "1.gate": 0.0, "2.gate": 0.25}, max_gates=2)
        >>> [name for name in scalars if name.startswith("rezero_alpha")]
        ['rezero_alpha/0.gate', 'rezero_alpha/2.gate']
        >>> scalars["rezero/mean_abs_alpha"], scalars["rezero/max_abs_alpha"]
        (0.25, 0.5)
    """
    check_max_gates(max_gates)
    sizes = torch.tensor(list(alphas.values()), dtype=torch.float64).abs()
    summary = {"min": sizes.min().item(), "mean": sizes.mean().item(), "max": sizes.max().item()}
    names, last = list(alphas), max(max_gates - 1, 1)
    if len(names) > max_gates:
        names = [names[place * (len(names) - 1) // last] for place in range(max_gates)]
    return {
        **{f"{_SUMMARY}/{which}_abs_alpha": size for which, size in summary.items()},
        **{f"{_GATES}/{name}": alphas[name] for name in names},
    }


def finite_alphas(alphas: Mapping[str, float]) -> list[float]:
    """Return what a histogram can show: trackers refuse nan and infinity there."""
    return [alpha for alpha in alphas.values() if math.isfinite(alpha)]


def check_max_gates(max_gates: int) -> None:
    """Refuse a negative number of gates.

    Args:
        max_gates: How many gates are logged one by one.

    Raises:
        ValueError: If it is negative.
    """
    if max_gates < 0:
        raise ValueError(f"max_gates must not be negative: got {max_gates}; 0 logs the summary alone")


def heat_map_png(source: AlphaRecorder | nn.Module) -> BytesIO:
    """Draw every gate over depth and time, as a PNG.

    Args:
        source: A recorder.

    Returns:
        The picture.

    Raises:
        UsageError: If it is a model, which knows no past.
    """
    if isinstance(source, nn.Module):
        raise UsageError("a heat map shows the records of an AlphaRecorder, got a model: log the recorder")
    chart = source.history.heat_map()
    from rezero.charts import save  # only now: drawing says what to install where Altair is missing

    with tempfile.TemporaryDirectory() as folder:
        (file,) = save(chart, Path(folder, "alphas"), ("png",))
        return BytesIO(file.read_bytes())
