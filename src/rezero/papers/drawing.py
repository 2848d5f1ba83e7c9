"""Pictures of a study's arms over the steps."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rezero.charts import curves, save

__all__ = ["draw_arms", "file_stem"]


def file_stem(name: str) -> str:
    """Return what the pictures of a study are called by: words and numbers, joined by hyphens.

    Args:
        name: Of the study.

    Returns:
        The name of a file, without what tells its kind.
    """
    return "-".join(re.findall(r"[\w.]+", name.replace("'", "")))


def draw_arms(
    study: Mapping[str, Any],
    file: Path,
    *,
    metric: str,
    title: str,
    description: str,
    factor: float = 1.0,
    log: bool = False,
    percent: bool = False,
    x: str = "step",
) -> None:
    """Draw a metric over the steps, median and range over the seeds of each arm, as SVG and PNG.

    Args:
        study: What `Recipe.run` returned, or anything with ``arms`` as `arms_of` makes them.
        file: Path without an ending.
        metric: Which.
        title: Of the vertical axis, with its unit.
        description: What the chart shows, for readers who do not see it.
        factor: What values are multiplied by to be shown.
        log: Whether the vertical axis is logarithmic.
        percent: Whether values are fractions that are shown in percent.
        x: Title of the horizontal axis.
    """
    rows = list(_rows(study["arms"], metric, factor))
    arms = tuple(study["arms"])
    save(curves(rows, x=x, y=title, arms=arms, log=log, percent=percent, description=description), file)


def _rows(arms: Mapping[str, Any], metric: str, factor: float) -> Iterator[dict[str, Any]]:
    for arm, each in arms.items():
        for place in range(max(map(len, each["points"].values()))):
            points = [points[place] for points in each["points"].values() if place < len(points)]
            values = [factor * point[metric] for point in points if point[metric] is not None]
            if values:
                ends = {"median": median(values), "low": min(values), "high": max(values)}
                yield {"arm": arm, "x": points[0]["step"], **ends}
