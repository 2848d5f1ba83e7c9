"""The page that puts every claim beside what was measured, made of the results.

python -m rezero.papers.evidence    # writes docs/evidence.md
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rezero.papers import REPRODUCTIONS
from rezero.papers.claims import Claim
from rezero.papers.reproduction import Reproduction

__all__ = ["page"]

BEGIN = """# The evidence

Every claim of the paper, and of those that build on it, beside what `rezero reproduce NAME` measured. *Holds in part*
means that some of its parts do: the numbers tell which. Intervals are of 95% over paired seeds. Small networks on two
cores say little about large ones: where the scale is *laptop*, read "in small".

This page is made by `python -m rezero.papers.evidence` from the files that it names.
"""
TITLES = ("claim", "source", "published", "measured here", "verdict")


def page(results: Path) -> str:
    """Make the page.

    Args:
        results: Folder that holds a folder of results for each reproduction.

    Returns:
        Markdown.
    """
    return "\n".join([BEGIN, *(line for each in REPRODUCTIONS.values() for line in _of(each, results))])


def _of(each: Reproduction, results: Path) -> Iterator[str]:
    yield f"## {each.name}\n"
    yield f"{each.shows[0].upper()}{each.shows[1:]} ({each.source}).\n"
    found = {name: _read(each.results(name, results) / "summary.json") for name in each.scales}
    yield f"| {' | '.join(TITLES)} |\n| {' | '.join('---' for _ in TITLES)} |"
    for claim in each.claims:
        cells = [_cells(claim, f"{name} scale", summary) for name, summary in found.items()]
        ours, verdicts = ("; ".join(text for text in column if text) for column in zip(*cells, strict=True))
        yield f"| {claim.says} | {claim.source} | {claim.published or 'no number'} | {ours} | {verdicts} |"
    yield ""
    for name, summary in found.items():
        if summary is not None:
            own = ", the paper's own" if each.scales[name].whole else ""
            where = each.results(name, Path("results/papers"))
            how = f"`{summary['command']}`, {summary['machine']}, {summary['date'][:10]}; `{where}`"
            yield f"{name.capitalize()} scale{own}, {summary['seeds']} seeds: {how}.\n"


def _read(file: Path) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _cells(claim: Claim, scale: str, summary: Mapping[str, Any] | None) -> tuple[str, str]:
    if summary is None:
        return "", f"not yet run at {scale}"
    found = claim.find(summary)
    return found.ours, f"**{found.verdict}** ({scale})"


if __name__ == "__main__":
    root = Path(__file__).parents[3]
    (root / "docs" / "evidence.md").write_text(page(root / "results" / "papers"), encoding="utf-8")
