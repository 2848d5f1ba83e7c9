"""The pages that put every claim beside what was measured, made of the results.

python -m rezero.papers.evidence    # writes docs/evidence.md and docs/evidence/
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rezero.lab.subject import counted
from rezero.papers import REPRODUCTIONS
from rezero.papers.claims import VERDICTS, Claim
from rezero.papers.reproduction import MACHINES, Reproduction, ScaleName

__all__ = ["pages"]

Found = Mapping[ScaleName, Mapping[str, Any]]

BEGIN = """# The evidence

Claims of the paper, and of those that build on it, beside what `rezero reproduce NAME` measured. {state} *Holds in
part* means that some of its parts do: the numbers tell which. *Cannot be told* means that the seeds leave it open, or
that there is one of them. Intervals are of 95% over paired seeds, if nothing else is said. *Times as fast* counts steps
to the worst loss or accuracy that any seed of the two arms ends with, unless a target is named. Whether an arm is
better or faster a test decides, at 5%, corrected by Holm's method for all that is asked against one baseline; p is
given where it says less than the interval. Small networks on two cores say little about large ones: where the scale is
*laptop*, read "in small".

This page and those that it leads to are made by `python -m rezero.papers.evidence` from the results that they name.
"""
COLUMNS = ("claim", "source", "published", "measured here", "verdict")
HEAD = f"| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |"


def pages(results: Path) -> dict[str, str]:
    """Make the pages.

    Args:
        results: Folder that holds a folder of results for each reproduction.

    Returns:
        Path in ``docs`` to Markdown, and to the SVG of each picture.
    """
    made = {"evidence.md": ""}
    missing, told = [], 0
    for each in REPRODUCTIONS.values():
        found = {name: _read(file) for name in each.scales if (file := _file(each, name, results)).exists()}
        told += sum(any(claim.find(summary) is not None for summary in found.values()) for claim in each.claims)
        if not found:
            missing.append(each)
            continue
        title = f"[{each.name}](evidence/{each.name}.md)"
        made["evidence.md"] += f"\n## {title}\n\n{_about(each)}\n\n{_claims(each, found)}\n"
        made[f"evidence/{each.name}.md"] = _page(each, found)
        for name, summary in found.items():
            for stem in summary["pictures"]:
                picture = _file(each, name, results).with_name(f"{stem}.svg")
                made[f"evidence/{_picture(each, name, stem)}"] = picture.read_text(encoding="utf-8")
    if missing:
        made["evidence.md"] += f"\n## Not yet run\n\n{_missing(missing)}\n"
    made["evidence.md"] = BEGIN.replace("{state}", _state(missing, told)) + made["evidence.md"]
    return made


def _state(missing: Sequence[Reproduction], told: int) -> str:
    """Say how many of the claims something was measured of."""
    all_claims = sum(len(each.claims) for each in REPRODUCTIONS.values())
    said = f"All {all_claims} were measured." if told == all_claims else f"Of {all_claims} claims {told} were measured."
    names = ", ".join(each.name for each in missing)
    return f"{said} Those of {names} are at the end, not yet run." if missing else said


def _missing(reproductions: Sequence[Reproduction]) -> str:
    """Make the table of the claims that nothing was measured of."""
    columns = ("`rezero reproduce`", "claim", "source", "published", "verdict")
    rows = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for each in reproductions:
        for claim in each.claims:
            _, (says, source, published, _, verdict) = _row(each, claim, {})
            rows.append(f"| {' | '.join((each.name, says, source, published, verdict))} |")
    return "\n".join(rows)


def _file(each: Reproduction, scale: ScaleName, results: Path) -> Path:
    return each.results(scale, results) / "summary.json"


def _read(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _about(each: Reproduction) -> str:
    return f"{each.shows[0].upper()}{each.shows[1:]} ({each.source})."


def _claims(each: Reproduction, found: Found) -> str:
    """Make the table of the claims; those that do not hold come first."""
    rows = sorted((_row(each, claim, found) for claim in each.claims), key=lambda row: row[0])
    return "\n".join([HEAD, *(f"| {' | '.join(cells)} |" for _, cells in rows)])


def _row(each: Reproduction, claim: Claim, found: Found) -> tuple[int, tuple[str, ...]]:
    judged = {name: finding for name, summary in found.items() if (finding := claim.find(summary)) is not None}
    verdicts = [
        f"**{judged[name].verdict}** ({name} scale)" if name in judged else f"not yet run at {name} scale"
        for name in each.scales
    ]
    place = min((VERDICTS.index(finding.verdict) for finding in judged.values()), default=len(VERDICTS))
    several = len(judged) > 1
    ours = "; ".join((f"{name} scale: " if several else "") + finding.ours for name, finding in judged.items())
    return place, (claim.says, claim.source, claim.published or "no number", ours, "; ".join(verdicts))


def _page(each: Reproduction, found: Found) -> str:
    return "\n\n".join([f"# {each.name}", _about(each), _claims(each, found), *_scales(each, found)]) + "\n"


def _scales(each: Reproduction, found: Found) -> Iterator[str]:
    for name, summary in found.items():
        yield f"## {name.capitalize()} scale" + (", the paper's own" if each.scales[name].whole else "")
        yield "\n".join(f"- {' '.join(line.split())}" for line in each.lines(summary))
        for stem, said in summary["pictures"].items():
            yield f"![{said}]({_picture(each, name, stem)})\n\n*{said}*"
        where = each.results(name, Path("results/papers"))
        time = f"in about {counted(each.scales[name].minutes, 'minute')} on {MACHINES[name]}"
        yield (
            f"Made by `{summary['command']}`, {_repeats(each, summary)}, {time} ({summary['versions']}; "
            f"{summary['machine']}; {summary['date']}; commit {summary['commit']}). All numbers are in `{where}`."
        )
        commands = [study["command"] for study in summary.get("studies", {}).values()]
        if commands:
            yield "Its studies, each by itself:\n\n```text\n" + "\n".join(commands) + "\n```"


def _repeats(each: Reproduction, summary: Mapping[str, Any]) -> str:
    """Say on how many seeds it was done, and which studies had fewer."""
    asked = summary["seeds"]
    fewer = {
        name: seeds
        for name, study in summary.get("studies", {}).items()
        if (seeds := study["settings"].get("seeds", asked)) < asked
    }
    less = f", fewer in {', '.join(f'{name} ({seeds})' for name, seeds in fewer.items())}" if fewer else ""
    return f"{counted(asked, each.repeats.removesuffix('s'))}{less}"


def _picture(each: Reproduction, scale: ScaleName, stem: str) -> str:
    return f"{each.results(scale, Path()).name}-{stem}.svg"


if __name__ == "__main__":
    root = Path(__file__).parents[3]
    for path, text in pages(root / "results" / "papers").items():
        file = root / "docs" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
