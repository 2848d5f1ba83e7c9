"""What ``rezero reproduce`` does."""

from pathlib import Path

from rezero.errors import UsageError
from rezero.papers import REPRODUCTIONS, check_name
from rezero.papers.reproduction import MACHINES, Reproduction, ScaleName, Work

__all__ = ["list_all", "reproduce_named"]

STUDIES = Path("rezero-studies")
MOST_SEEDS = 1000


def list_all(name: str, scale: ScaleName, results: Path) -> None:
    """Print what there is: name, time, state and what it shows.

    Args:
        name: Which, or all.
        scale: Which size.
        results: Where results are.

    Raises:
        UsageError: If it has no such size.
    """
    if name != "all":
        REPRODUCTIONS[name].at(scale)
    print(f"{'name':16} {'time on ' + MACHINES[scale]:18}  {'state':29}  what it shows")
    for each in REPRODUCTIONS.values():
        if scale in each.scales and name in ("all", each.name):
            state = each.state(scale, STUDIES, results)
            print(f"{each.name:16} {each.scales[scale].minutes:5} min {'':8}  {state:29}  {each.shows}")


def reproduce_named(name: str, scale: ScaleName, seeds: int | None, results: Path, output: Path | None) -> None:
    """Reproduce one, or all that have a size, and print what came out.

    Args:
        name: Which, or all.
        scale: Which size.
        seeds: Paired seeds; None for those of the published results.
        results: Where results go, each into a folder of its own.
        output: Where those of one go, or of all in the place of ``results``; None for the usual place.

    Raises:
        UsageError: If there is none of that name, data are missing, or a folder can't be used.
    """
    check_name(name)
    if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"seeds must be a whole number, 1 to {MOST_SEEDS:,}: got {seeds:,}")
    if name == "all":
        asked = [each for each in REPRODUCTIONS.values() if scale in each.scales]
        folders = [each.results(scale, output or results) for each in asked]
    else:
        asked = [REPRODUCTIONS[name]]
        folders = [output or asked[0].results(scale, results)]
    planned = [
        (each, Work(each.kept(scale, STUDIES), folder, seeds or each.at(scale).seeds))
        for each, folder in zip(asked, folders, strict=True)
    ]
    for each, work in planned:
        each.check(scale, work)
    for each, work in planned:
        _reproduce(each, scale, work)


def _reproduce(each: Reproduction, scale: ScaleName, work: Work) -> None:
    found = each.reproduce(scale, work)
    print(f"{each.name}: {each.source}", *(f"  {line}" for line in each.lines(found)), sep="\n")
    for claim in each.claims:
        if finding := claim.find(found):
            print(f"{claim.says}: {finding.verdict}\n  published: {claim.published}\n  here: {finding.ours}")
    print(f"results in {work.output}")
