"""One rule for alpha's learning rate, from 8 to 10,000 layers: loss after 300 steps against depth, for each rule.

Fully connected networks on scikit-learn's digits and Transformers on English text, with SGD, Adagrad, AdamW and Muon,
everything but alpha at a rate that stays as it is. At each depth the rules are held against the best of all fixed
rates of alpha, and against other ways to go deep.

    rezero reproduce depth-recipe
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from scipy.stats import binomtest

from rezero.charts import save
from rezero.charts.depth import Panel, depth_panels
from rezero.lab.stats import LEVEL
from rezero.papers.claims import Claim, Finding, judge, written
from rezero.papers.depth_cells import EARLY, MUP, STEPS, Cell
from rezero.papers.depth_nets import Bytes, Digits, Net
from rezero.papers.pace import RECIPE, RULES, Pace
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import compare_own

__all__ = ["DEFAULT", "DEPTH_RECIPE", "NETS", "run"]

DEFAULT = "min(3 lr, 3 / L)"
"""The rule of `rezero.param_groups`."""
STEADY = 1.05
"""Largest loss of the first 100 steps, over that of the untrained model on the same batch."""
ALIKE = 1.1
"""Final loss over that of the best fixed rate."""
MOST = 10.0
"""Nats: more, where chance is 2.3 or 5.5, would flatten the picture."""


_DEEP, _LAYERED, _TALL = (8, 64, 512, 10_000), (8, 64), (6, 24, 128)
NETS: Mapping[str, Net] = {
    "MLP": Digits({"SGD": _DEEP, "Adagrad": _DEEP, "AdamW": _DEEP, "Muon": _LAYERED}),
    "Transformer": Bytes({"SGD": _TALL, "Adagrad": _TALL, "AdamW": _TALL, "Muon": _TALL[:2]}),
}


def run(nets: Mapping[str, Net], work: Work, steps: int = STEPS) -> dict[str, Any]:
    """Let the lab train every network at every depth with every optimizer and rule.

    Args:
        nets: What is trained, by name.
        work: Where.
        steps: Of each training.

    Returns:
        ``cells``: network, optimizer, depth, and by arm the seeds' ``ends`` and ``jumps``, None where not finite.
    """
    cells = []
    for name, net in nets.items():
        for optimizer, depths in net.depths.items():
            for depth in depths:
                cell = Cell(net, optimizer, depth, steps)
                here = {"net": name, "optimizer": optimizer, "depth": depth, "branches": cell.branches()}
                print(f"{name}, {optimizer}, {depth:,} layers", flush=True)
                folder = work.of(steps, name, asdict(net), net.digest(), here).folder
                cells.append({**here, "rules": _named(cell), **_told(cell, folder, work.seeds)})
    return {"steps": steps, "cells": cells}


def _named(cell: Cell) -> dict[str, str]:
    return {name: str(pace) for name, pace in cell.paces().items()}


def _told(cell: Cell, folder: Path, seeds: int) -> dict[str, Any]:
    arms = cell.arms()
    study = compare_own(
        folder,
        build=cell.build,
        train=cell.train,
        arms=arms,
        baseline=_named(cell)[DEFAULT],
        seeds=seeds,
        metric="train_loss",
    )
    last = {
        name: [points[-1] for points in found["points"].values() if points] for name, found in study["arms"].items()
    }
    return {
        "fixed": [str(pace) for pace in cell.constant()],
        "arms": {
            name: {"ends": [each["train_loss"] for each in points], "jumps": [each["jump"] for each in points]}
            for name, points in last.items()
        },
    }


def _end(cell: Mapping[str, Any], arm: str) -> float:
    """Return the median over the seeds of the loss at the end; infinite where most diverged."""
    return median(math.inf if end is None else end for end in cell["arms"][arm]["ends"])


def _jump(cell: Mapping[str, Any], arm: str) -> float:
    """Return the largest over the seeds."""
    return max(math.inf if jump is None else jump for jump in cell["arms"][arm]["jumps"])


def _steady(cell: Mapping[str, Any], arm: str) -> bool:
    """Tell whether no seed rises above the start at first, or diverges later."""
    return _jump(cell, arm) <= STEADY and None not in cell["arms"][arm]["ends"]


def _best(cell: Mapping[str, Any]) -> float:
    return min(_end(cell, arm) for arm in cell["fixed"])


def tally(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Count where each rule does what it should.

    Args:
        summary: What `run` returned.

    Returns:
        Rule to ``cells``; those that are ``steady``, those ``alike`` the best fixed rate, and ``both``; the geometric
        mean of the final loss over that of the best fixed rate where it is finite, the ``worst`` of them, and how many
        are ``lost``: most seeds diverge.
    """
    found = {}
    for rule in RULES:
        ends = [(cell, cell["rules"][rule]) for cell in summary["cells"]]
        steady = [_steady(cell, arm) for cell, arm in ends]
        misses = [_end(cell, arm) / _best(cell) for cell, arm in ends]
        known = [miss for miss in misses if math.isfinite(miss)]
        found[rule] = {
            "cells": len(ends),
            "steady": sum(steady),
            "alike": sum(miss <= ALIKE for miss in misses),
            "both": sum(calm and miss <= ALIKE for calm, miss in zip(steady, misses, strict=True)),
            "mean": geometric_mean(known),
            "worst": max(known),
            "lost": len(misses) - len(known),
        }
    return found


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the loss at the end against depth: of every rule, and of two of them beside other ways to go deep.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    about = (
        f"Training loss after {summary['steps']} steps against depth, a panel each network and optimizer, median and "
        f"range of the seeds (▲: one of them is above {MOST:g} nats or diverges; rules that come to the same rate hide "
        f"each other): "
    )
    best = "best fixed rate"
    others = list(dict.fromkeys(arm for cell in summary["cells"] for arm in cell["arms"] if arm in _OTHERS))
    lines: dict[str, tuple[list[str], str]] = {
        "rules": (
            [best, DEFAULT, *(rule for rule in _RATES if rule != DEFAULT)],
            "rates of alpha that stay as they are, and the best of the fixed ones.",
        ),
        "limits": (
            [best, DEFAULT, *(rule for rule in RULES if rule not in _RATES)],
            "rates of alpha with a warm-up or with a limit to each step, beside the default, and the best of the fixed "
            "ones.",
        ),
        "rivals": ([RECIPE, DEFAULT, *others], "two of the rules, and other ways to go deep at the same rates."),
    }
    for name, (drawn, said) in lines.items():
        panels = list(_panels(summary, drawn, best))
        chart = depth_panels(panels, x="layers", lines=drawn, log=True, description=about + said)
        save(chart, folder / name)
    return {name: about + said for name, (_, said) in lines.items()}


_RATES = tuple(name for name, rule in RULES.items() if (pace := rule(0.1, 64)) == Pace(pace.rate))
_OTHERS = (MUP, *dict.fromkeys(name for net in NETS.values() for name in net.rivals))


def _panels(summary: Mapping[str, Any], drawn: list[str], best: str) -> Iterator[Panel]:
    kinds = dict.fromkeys((cell["net"], cell["optimizer"]) for cell in summary["cells"])
    for net, optimizer in kinds:
        rows = []
        for cell in summary["cells"]:
            if (cell["net"], cell["optimizer"]) != (net, optimizer):
                continue
            for line in drawn:
                arm = min(cell["fixed"], key=partial(_end, cell)) if line == best else cell["rules"].get(line, line)
                if arm in cell["arms"]:
                    ends = [math.inf if end is None else end for end in cell["arms"][arm]["ends"]]
                    spread = {"median": median(ends), "low": min(ends), "high": max(ends)}
                    rows.append({"line": line, "theory": False, "x": cell["depth"], **spread})
        yield Panel(f"{net}, {optimizer}: loss, nats", rows, log=True, most=MOST)


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say how often each rule does what it should, and where the recipe and the default do not.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    said = [
        f"{rule}: both in {each['both']} of {each['cells']} (never above {each['steady']}, as good {each['alike']}); "
        f"final loss {written(each['mean'])} times that of the best fixed rate, at worst {written(each['worst'])} "
        f"times, diverged in {each['lost']}"
        for rule, each in tally(summary).items()
    ]
    meaning = (
        f"never above: no loss of the first {EARLY} steps exceeds {STEADY:g} times the untrained network's, on any "
        f"seed, and none diverges; as good: the median final loss is within {ALIKE:g} times that of the best fixed rate"
    )
    return [meaning, *said, *(line for rule in (RECIPE, DEFAULT) for line in _failures(summary, rule))]


def _failures(summary: Mapping[str, Any], rule: str) -> Iterator[str]:
    for cell in summary["cells"]:
        arm = cell["rules"][rule]
        miss, jump = _end(cell, arm) / _best(cell), _jump(cell, arm)
        if miss > ALIKE or not _steady(cell, arm):
            where = f"{cell['net']}, {cell['optimizer']}, {cell['depth']:,} layers"
            said = "diverged" if math.isinf(miss) else f"final loss {written(miss)} times the best fixed rate's"
            rose = f", highest loss {written(jump)} times the start's" if jump > STEADY else ""
            yield f"{rule} falls short at {where}: {said}{rose}"


def _one_rule(rule: str, summary: Mapping[str, Any]) -> Finding:
    found = tally(summary)
    best = max(found, key=lambda rule: (found[rule]["both"], -found[rule]["mean"]))
    ours = found[rule]
    said = f"{rule}: both in {ours['both']} of {ours['cells']} networks, never above in {ours['steady']}, as good in "
    said += f"{ours['alike']}; final loss {written(ours['mean'])} times the best's, at worst {written(ours['worst'])}"
    if found[best]["both"] > ours["both"]:
        said += f"; most in {best}: {found[best]['both']}"
    return Finding(said, judge(ours["both"] == ours["cells"], ours["steady"] == ours["cells"]))


def _one_rate(summary: Mapping[str, Any]) -> Finding:
    """Ask whether alpha at the rate of everything else is steady."""
    jumps = {}
    for cell in summary["cells"]:
        arm = cell["rules"]["lr"]
        if not _steady(cell, arm):
            lost = cell["arms"][arm]["ends"].count(None)
            where = f"{cell['net']}, {cell['optimizer']}, {cell['depth']:,}"
            jumps[where] = (
                f"{lost} of {len(cell['arms'][arm]['ends'])} seeds diverge" if lost else written(_jump(cell, arm))
            )
    said = "; ".join(f"{where}: {jump}" for where, jump in jumps.items())
    return Finding(
        f"of {len(summary['cells'])} networks {len(jumps)} rise above their start in the first {EARLY} steps (largest "
        f"loss over that of the start) or diverge: {said or 'none'}",
        judge(not jumps, len(jumps) < len(summary["cells"])),
    )


def _deeper(summary: Mapping[str, Any]) -> Finding:
    """Hold the recipe against other ways to go deep, by the signs over the networks of a kind."""
    said, better = [], []
    for rival in _OTHERS:
        for net in dict.fromkeys(cell["net"] for cell in summary["cells"]):
            cells = [cell for cell in summary["cells"] if rival in cell["arms"] and cell["net"] == net]
            if cells:
                won = sum(_end(cell, cell["rules"][RECIPE]) < _end(cell, rival) for cell in cells)
                p = float(binomtest(won, len(cells)).pvalue)
                said.append(f"{rival} in {won} of {len(cells)} {net}s (p = {p:.2g})")
                better.append(None if p > LEVEL else 2 * won > len(cells))
    asked = "a test by signs at 5%; the others as they are, the recipe chosen on these networks"
    return Finding(f"{RECIPE} ends lower than {'; than '.join(said)} ({asked})", judge(*better))


DEPTH_RECIPE = Reproduction(
    name="depth-recipe",
    shows="one rule for alpha's learning rate from 8 to 10,000 layers, against tuned ones and other ways to go deep",
    source="Bachlechner et al. (2020), arXiv:2003.04887, and the authors' notebook of 10,000 layers",
    version=1,
    scales={
        "laptop": Scale(
            minutes=140,
            seeds=3,
            run=partial(run, NETS),
            about=(
                "Fully connected layers of width 16 on handwritten digits, Transformer layers of width 32 on "
                "Tiny Shakespeare, 300 steps. A rule says how fast alpha learns where everything else learns at lr and "
                "L branches have a gate; *held* means that no step changes all gates together by more than 1. "
                "[The learning rate of alpha](../alpha-lr.md) says more."
            ),
        )
    },
    write=write,
    lines=lines,
    claims=(
        Claim(
            "One rule needs no tuning at any depth: never above the loss of the start, as good as the best fixed rate",
            "ours",
            "no number",
            partial(_one_rule, RECIPE),
        ),
        Claim(
            "The default of param_groups, a rate without a limit, needs none either",
            "ours",
            "no number",
            partial(_one_rule, DEFAULT),
        ),
        Claim("Alpha can learn at the rate of everything else", "authors' code", "no number", _one_rate),
        Claim(
            "At one rate for all depths it trains better than other ways to go deep",
            "ours; Yang et al. (2023), arXiv:2310.02244 (depth-muP, here without its centred nonlinearities), and the "
            "papers of the arms",
            "no number",
            _deeper,
        ),
    ),
)
