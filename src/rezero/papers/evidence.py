"""The pages that put every claim beside what was measured, made of the results.

python -m rezero.papers.evidence    # writes docs/evidence.md and docs/evidence/
"""

import json
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rezero.errors import UsageError
from rezero.lab.subject import counted
from rezero.papers import REPRODUCTIONS
from rezero.papers.claims import VERDICTS, Claim, Verdict
from rezero.papers.reading import rates_tried
from rezero.papers.reproduction import MACHINES, Reproduction, ScaleName
from rezero.surgery.beside import replacing

__all__ = ["main", "pages"]

Found = Mapping[ScaleName, Mapping[str, Any]]

BEGIN = """# The evidence

Claims of the paper, and of those that build on it, beside what `rezero reproduce NAME` measured. {state}

*Holds in part* means that some of its parts do: the numbers tell which. *Cannot be told* means that the seeds leave it
open, or that a difference is asked of one seed. Intervals are of 95% over paired seeds, if nothing else is said. *Times
as fast* counts steps to the worst loss or accuracy that any seed of the two arms ends with, unless a target is named; a
training loss is the mean over the steps since the last measurement. Arms with rates of their own have chosen them on
one or two seeds that the comparison does not use{tried}.
Whether an arm is better or faster a test decides, at 5%, corrected by Holm's method for all that is asked against one
baseline; p is given where it says less than the interval. Where an interval includes zero, "better" has the sign that
was measured. Where the source has no number, what is *asked* was set here. Small networks on two cores say little about
large ones: where the scale is *laptop*, read "in small".

To make one again: `rezero reproduce fc`. `rezero reproduce --list` names all of them with the time that they take;
`--seeds 1` makes it less. Most need `rezero download cifar10` or `rezero download enwik8`, or the folder that has them
in the variable `REZERO_DATA` ([data sets](datasets.md)). What is done is kept in `rezero-studies`: after Ctrl-C the
same command goes on, and what is done is not measured again until its folder is removed. Numbers and pictures go to
`results/papers/NAME`, in place of those that are there, and the claims are judged at the end.

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

    Raises:
        UsageError: If the folder is missing, or a record or a picture is missing, damaged or of another version.
    """
    if not results.is_dir():
        raise UsageError(f"{results} is no folder of results: run this in a clone of the project")
    made = {"evidence.md": ""}
    missing, verdicts, whole, paper, tried = [], [], list[str](), False, set[int]()
    for each in REPRODUCTIONS.values():
        found = {name: _read(each, name, results) for name in each.scales if _is_there(_file(each, name, results))}
        try:
            verdicts += [_row(each, claim, found)[0] for claim in each.claims]
            whole += [f"`{each.name}`" for name in found if each.scales[name].whole]
            paper |= "paper" in found
            tried |= {count for summary in found.values() for count in _choices(summary)}
            if not found:
                missing.append(each)
                continue
            title = f"[{each.name}](evidence/{each.name}.md)"
            made["evidence.md"] += f"\n## {title}\n\n{_about(each)}\n\n{_claims(each, found)}\n"
            made[f"evidence/{each.name}.md"] = _page(each, found)
            made |= dict(_pictures(each, found, results))
        except UsageError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            files = " or ".join(str(_file(each, name, results)) for name in found)
            raise UsageError(f"{files} lacks what the pages need ({error!r}): {_again(each)}") from error
    if missing:
        made["evidence.md"] += f"\n## Not yet run\n\n{_missing(missing)}\n"
    several = (
        f", among {min(tried)} to {max(tried)}, as the table grows where the best lies at its edge" if tried else ""
    )
    begin = BEGIN.replace("{state}", _state(verdicts, whole, paper=paper)).replace("{tried}", several)
    made["evidence.md"] = begin + made["evidence.md"]
    return made


def _choices(summary: Mapping[str, Any]) -> Iterator[int]:
    """Tell among how many rates arms have chosen: as recorded of each study, or as a plan has it."""
    for study in summary.get("studies", {}).values():
        yield from rates_tried(study).values()
    if rates := summary.get("plan", {}).get("tune"):
        yield rates


def _state(verdicts: Sequence[Verdict | None], whole: Sequence[str], *, paper: bool) -> str:
    """Say how many of the claims something was measured of, and what came out."""
    found = Counter(verdict for verdict in verdicts if verdict is not None)
    told = found.total()
    most = f"All {told} were" if told == len(verdicts) else f"Of {len(verdicts)} claims {told} were"
    counts = (
        f"{found['holds']} hold, {found['holds in part']} hold in part, {found['cannot be told']} cannot be told, "
        f"{found['does not hold']} do not hold"
    )
    full = f", though the laptop's {' and '.join(whole)} is of the paper's size" if whole else ""
    return f"{most} measured: {counts}." + ("" if paper else f" At the scale *paper* nothing was run yet{full}.")


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


def _is_there(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def _read(each: Reproduction, scale: ScaleName, results: Path) -> Mapping[str, Any]:
    file = _file(each, scale, results)
    expected = {"reproduces": each.source, "scale": scale, "version": each.version}
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        got = {name: found[name] for name in expected}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read ({error!r}): {_again(each)}") from error
    if got != expected:
        raise UsageError(f"{file} is another's: expected {expected}, got {got}: {_again(each)}")
    return found


def _again(each: Reproduction) -> str:
    return f"restore it, or make it again with `rezero reproduce {each.name}`"


def _pictures(each: Reproduction, found: Found, results: Path) -> Iterator[tuple[str, str]]:
    for name, summary in found.items():
        for stem in summary["pictures"]:
            picture = _file(each, name, results).with_name(f"{stem}.svg")
            try:
                yield f"evidence/{_picture(each, name, stem)}", picture.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise UsageError(f"{picture} cannot be read ({error}): {_again(each)}") from error


def _about(each: Reproduction) -> str:
    return f"{each.shows[0].upper()}{each.shows[1:]} ({each.source})."


def _claims(each: Reproduction, found: Found) -> str:
    """Make the table of the claims; those that do not hold come first."""
    rows = [_row(each, claim, found) for claim in each.claims]
    rows.sort(key=lambda row: len(VERDICTS) if row[0] is None else VERDICTS.index(row[0]))
    return "\n".join([HEAD, *(f"| {' | '.join(cells)} |" for _, cells in rows)])


def _row(each: Reproduction, claim: Claim, found: Found) -> tuple[Verdict | None, tuple[str, ...]]:
    """Make a row of the table, and tell its verdict, of several the one that says less for the claim."""
    judged = {name: finding for name, summary in found.items() if (finding := claim.find(summary)) is not None}
    verdicts = [
        f"**{finding.verdict}**" + ("" if each.scales[name].whole else f" ({name} scale)")
        for name, finding in judged.items()
    ]
    worst = min((finding.verdict for finding in judged.values()), key=VERDICTS.index, default=None)
    several = len(judged) > 1
    ours = "; ".join((f"{name} scale: " if several else "") + finding.ours for name, finding in judged.items())
    said = "; ".join(verdicts) or "not yet run"
    return worst, (claim.says, claim.source, claim.published, ours, said)


def _page(each: Reproduction, found: Found) -> str:
    return "\n\n".join([f"# {each.name}", _about(each), _claims(each, found), *_scales(each, found)]) + "\n"


def _scales(each: Reproduction, found: Found) -> Iterator[str]:
    for name, summary in found.items():
        scale = each.scales[name]
        yield "## The paper's own scale" if scale.whole else f"## {name.capitalize()} scale"
        if scale.about:
            yield scale.about
        yield "\n".join(f"- {' '.join(line.split())}" for line in each.lines(summary))
        for stem, said in summary["pictures"].items():
            yield f"![{said}]({_picture(each, name, stem)})\n\n*{said}*"
        where = each.results(name, Path("results/papers"))
        yield (
            f"Made by `{summary['command']}`, {_repeats(each, summary)}, in about {_time(each, name)} "
            f"({summary['versions']}; {summary['machine']}; {summary['date']}; commit {_commits(summary)}). "
            f"All numbers are in `{where}`."
        )
        commands = [study["command"] for study in summary.get("studies", {}).values()]
        if commands:
            yield "Its studies, each by itself:\n\n```text\n" + "\n".join(commands) + "\n```"
    for name in each.scales.keys() - found.keys():
        yield f"Not yet run: `rezero reproduce {each.name} --scale {name}`, an estimated {_time(each, name)}."


def _commits(summary: Mapping[str, Any]) -> str:
    return " and ".join(summary.get("commits") or [summary["commit"]])


def _time(each: Reproduction, scale: ScaleName) -> str:
    return f"{counted(each.scales[scale].minutes, 'minute')} on {MACHINES[scale]}"


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


def main(root: Path) -> int:
    """Write the pages.

    Args:
        root: Folder that has ``results/papers`` and ``docs``.

    Returns:
        Exit code: 2, with nothing written, if the results are not there or are not right.
    """
    results, docs = root / "results" / "papers", root / "docs"
    try:
        _replace(docs, {path: text.encode() for path, text in _some_pages(results).items()})
    except (UsageError, OSError, UnicodeError) as error:
        print(f"rezero.papers.evidence: {error}", file=sys.stderr)
        return 2
    print(f"the pages of evidence are in {docs}")
    return 0


def _some_pages(results: Path) -> dict[str, str]:
    made = pages(results)
    if len(made) == 1:
        raise UsageError(f"{results} has no results: make some with `rezero reproduce NAME`")
    return made


def _replace(docs: Path, made: Mapping[str, bytes]) -> None:
    """Write what was made, and take away what is no longer."""
    for folder in (docs, docs / "evidence"):
        own = [name for name in made if (docs / name).parent == folder]
        with replacing(folder, [Path(name).name for name in own], what="the pages of evidence") as beside:
            for name in own:
                (beside / Path(name).name).write_bytes(made[name])
    for file in (docs / "evidence").iterdir():
        if f"evidence/{file.name}" not in made and file.suffix in {".md", ".svg"}:
            file.unlink()


if __name__ == "__main__":
    ArgumentParser(prog="python -m rezero.papers.evidence", description=__doc__.partition("\n")[0]).parse_args()
    sys.exit(main(Path(__file__).parents[3]))
