"""One look for every chart: colours that colour-blind readers tell apart, fonts, sizes, and the files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import altair as alt
import vl_convert

__all__ = ["COLOURS", "DASHES", "OTHER_COLOURS", "SHAPES", "Ending", "colours", "dress", "dress_panels", "save"]

# Okabe and Ito's colours, which colour-blind readers tell apart; an arm has the same one in every chart.
COLOURS = {
    "plain": "#7F7F7F",
    "plain-norm": "#333333",
    "residual": "#E69F00",
    "post-norm": "#009E73",
    "pre-norm": "#0072B2",
    "rezero": "#D55E00",
    "skipinit": "#CC79A7",
    "layerscale": "#56B4E9",
    "fixup": "#8C6D00",
    "deepnorm": "#882255",
}
OTHER_COLOURS = ("#332288", "#117733", "#AA4499", "#44AA99", "#999933", "#CC6677", "#88CCEE", "#DDCC77")
DASHES = ([1, 0], [6, 3], [2, 2], [9, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond")
_PADDING = {"left": 16, "top": 5, "right": 5, "bottom": 5}  # a reader's font may be wider than the renderer's
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"


def colours(arms: Sequence[str]) -> list[str]:
    """Give each arm the colour of its formula, and others their own, in the order in which they are named."""
    others, taken = iter(OTHER_COLOURS * len(arms)), set[str]()
    found = []
    for arm in arms:
        own = COLOURS.get(arm.partition(" ")[0], "")
        found.append(own if own and own not in taken else next(others))
        taken.add(own)
    return found


def dress(chart: Any, description: str) -> Any:
    """Give a chart the look of all.

    Args:
        chart: Any Altair chart.
        description: What it shows, for readers who do not see it.

    Returns:
        The chart, as wide as where it is shown.
    """
    sized = chart.properties(
        width="container", height=360, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    return dress_panels(sized, description)


def dress_panels(chart: Any, description: str) -> Any:
    """Give charts side by side, which have widths of their own, the look of all.

    Args:
        chart: A concatenation of Altair charts.
        description: What it shows, for readers who do not see it.

    Returns:
        The chart.
    """
    return (
        chart.properties(description=description, background="white", padding=_PADDING)
        .configure(font=_FONT)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=13, titleFontSize=13, titleFontWeight="normal", gridColor="#e6e6e6", domain=False)
        .configure_legend(
            labelFontSize=13, titleFontSize=13, titleFontWeight="normal", labelLimit=200, columnPadding=28
        )
    )


Ending = Literal["svg", "png", "pdf", "html"]


def save(
    chart: alt.TopLevelMixin, stem: str | os.PathLike[str], endings: Sequence[Ending] = ("svg", "png")
) -> tuple[Path, ...]:
    """Write a chart in one or more formats, the same chart always as the same bytes but for PDF.

    Args:
        chart: Any Altair chart.
        stem: Path without an ending; its folder is made if it is not there.
        endings: Formats; a page in HTML needs no network.

    Returns:
        The files, in the order of ``endings``.

    Raises:
        ValueError: If a format is unknown.
    """
    if unknown := {*endings} - {*get_args(Ending)}:
        raise ValueError(f"endings must be of {', '.join(get_args(Ending))}: got {', '.join(sorted(unknown))}")
    stem = Path(stem)
    spec = _writable(chart.to_dict())
    width = {"width": 720} if spec.get("width") == "container" else {}
    svg = _renumber(vl_convert.vegalite_to_svg({**spec, **width}))
    made = {
        "svg": lambda: svg.encode(),
        "png": lambda: vl_convert.svg_to_png(svg, scale=2.0),
        "pdf": lambda: vl_convert.svg_to_pdf(svg),
        "html": lambda: str(chart.to_html(inline=True)).encode(),
    }
    files = tuple(stem.with_name(f"{stem.name}.{ending}") for ending in endings)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for file, ending in zip(files, endings, strict=True):
        file.write_bytes(made[ending]())
    return files


def _writable(spec: Any) -> Any:
    """Put pictures in the place of characters that no SVG holds, over which the renderer ends the process, or fails."""
    match spec:
        case dict():
            return {key: _writable(value) for key, value in spec.items()}
        case list():
            return [_writable(value) for value in spec]
        case str():
            return re.sub(r"[\u2028\u2029\ud800-\udfff\ufffe\uffff]", "\ufffd", spec.translate(_PICTURES))
    return spec


def _renumber(svg: str) -> str:
    """Give the ids of an SVG numbers of its own: the renderer counts on through all charts of a process."""
    ids = {found: f"id{number}" for number, found in enumerate(dict.fromkeys(re.findall(r'id="([^"]+)"', svg)))}
    for old, new in sorted(ids.items(), key=lambda pair: -len(pair[0])):
        svg = (
            svg.replace(f'id="{old}"', f'id="{new}"').replace(f"#{old})", f"#{new})").replace(f'"#{old}"', f'"#{new}"')
        )
    return svg
