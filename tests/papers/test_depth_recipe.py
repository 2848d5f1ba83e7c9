"""Rules for alpha's rate over depth: what they come to, what a step obeys, and what is said of them."""

import json
import math
from html import unescape
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero.gate import gates
from rezero.optim import param_groups
from rezero.papers.depth_cells import MUP, Cell, Paced
from rezero.papers.depth_nets import Bytes, Digits
from rezero.papers.depth_recipe import DEFAULT, DEPTH_RECIPE, NETS, run, tally
from rezero.papers.pace import OPTIMIZERS, RECIPE, RULES, Pace, Stepper, fixed
from rezero.papers.reproduction import Work

RESULTS = Path(__file__).parents[2] / "results" / "papers"
TINY = {
    "MLP": Digits({"SGD": (4,), "Muon": (2,)}, width=8, batch=16, rivals=("layerscale",)),
    "Transformer": Bytes({"Adagrad": (2,)}, width=8, context=8, batch=2, rivals=("fixup",)),
}


def test_default_is_that_of_param_groups() -> None:
    """What the page calls the default is what a user gets."""
    for depth in (8, 300):
        model = Digits({}).build(depth, stacked=True)
        groups = {group["name"]: group["lr"] for group in param_groups(model, lr=0.01, weight_decay=0.0)}
        assert groups["gates"] == RULES[DEFAULT](0.01, depth).rate


@pytest.mark.parametrize(("net", "optimizer", "depth"), [("MLP", "SGD", 4), ("Transformer", "Adagrad", 2)])
def test_paces_of_a_cell(net: str, optimizer: str, depth: int) -> None:
    """Branches are counted, a pace is trained once however many rules come to it, and rivals are modules."""
    cell = Cell(TINY[net], optimizer, depth)
    assert cell.branches() == depth * (2 if net == "Transformer" else 1)
    names = {str(pace) for pace in cell.paces().values()}
    assert names < cell.arms().keys()
    assert len(cell.arms()) == len({*cell.paces().values(), *fixed(cell.branches())}) + 2
    assert {str(pace) for pace in cell.constant()} < cell.arms().keys()
    assert {MUP, *TINY[net].rivals} <= cell.arms().keys()


def test_fixed_rates_stay_below_what_diverges() -> None:
    """Two a decade; deep networks are not tried at rates that change their gates by more than 30 in all a step."""
    rates = [pace.rate for pace in fixed(8)]
    assert rates[-1] == pytest.approx(10**-0.5)
    assert [new / old for old, new in pairwise(rates)] == pytest.approx([10**0.5] * 7)
    assert [pace.rate for pace in fixed(10_000)] == rates[:3]


def test_no_rival_is_a_stack() -> None:
    """Where layers are too many to be modules only the gates' own kinds are trained."""
    assert Cell(NETS["MLP"], "SGD", 10_000).arms().keys().isdisjoint(NETS["MLP"].rivals)


def steps_of(pace: Pace, steps: int, kind: str, depth: int, width: int) -> tuple[list[Tensor], Tensor]:
    """Train a fully connected network; return all steps of its gates, and the gates."""
    net = Digits({}, width=width)
    torch.manual_seed(0)
    model = net.build(depth, stacked=True)
    stepper = Stepper(model, OPTIMIZERS[kind], pace, 1.0, net.blocks(model))
    [alpha] = [gate.gate_parameter.detach() for gate in gates(model).values()]
    found = []
    for step in range(steps):
        before = alpha.clone()
        stepper.step(net.loss(model, 0, step))
        found.append(alpha - before)
    return found, alpha


def moved(pace: Pace, steps: int, kind: str = "SGD") -> list[float]:
    """Return the sum over all gates of what each step changed them by."""
    return [float(step.abs().sum()) for step in steps_of(pace, steps, kind, depth=16, width=8)[0]]


def test_steps_are_held() -> None:
    """A step that is too large is shortened to the limit, a smaller one is not touched."""
    free, held = moved(Pace(0.1), 3, "AdamW"), moved(Pace(0.1, most=0.3), 3, "AdamW")
    assert free[0] == pytest.approx(16 * 0.1, rel=1e-4)
    assert held == pytest.approx([0.3] * 3, rel=1e-4)
    assert moved(Pace(0.001, most=0.3), 3, "AdamW") == moved(Pace(0.001), 3, "AdamW")


def test_rates_rise() -> None:
    """From the start's over so many steps; Adagrad's first step is the rate for each gate."""
    pace = Pace(0.1, start=0.01, rise=3)
    assert [pace.at(step) for step in (0, 1, 3, 9)] == pytest.approx([0.01, 0.04, 0.1, 0.1])
    assert moved(pace, 1, "Adagrad") == pytest.approx([16 * 0.01], rel=1e-4)


def recipe_steps(kind: str, depth: int) -> tuple[list[Tensor], Tensor]:
    """Train one of the recipe's fully connected networks by it; return all steps of the gates, and the gates."""
    return steps_of(RULES[RECIPE](OPTIMIZERS[kind].lr, depth), 300, kind, depth, width=16)


def held_steps(steps: list[Tensor]) -> list[int]:
    return [place for place, step in enumerate(steps) if step.abs().sum().item() > 0.999]


@pytest.mark.parametrize("depth", [64, 512])
def test_gates_move_together_at_first_and_end_at_one_over_the_root_of_the_depth(depth: int) -> None:
    """What the page on alpha's rate says of the recipe's fully connected networks under Adagrad."""
    steps, alpha = recipe_steps("Adagrad", depth)
    agree = [(step.sum().abs() / step.abs().sum()).item() for step in steps]
    assert fmean(agree[:10]) > 0.6
    assert fmean(agree[-100:]) < 0.5
    assert 0.5 < alpha.norm().item() < 2
    assert held_steps(steps)[:2] == [0, 1]
    assert len(held_steps(steps)) < 30


def test_the_limit_binds_as_the_page_says() -> None:
    """Under SGD in most steps, under AdamW in none of a network that is not very deep."""
    assert len(held_steps(recipe_steps("SGD", 64)[0])) > 200
    assert not held_steps(recipe_steps("AdamW", 512)[0])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_is_trained_once(kind: str) -> None:
    """Also those that Muon takes; the blocks' rate is that of everything else times ``hidden``."""
    net = Bytes({}, width=8, context=8)
    model = net.build(2, stacked=False)
    stepper = Stepper(model, OPTIMIZERS[kind], Pace(0.5), 0.5, net.blocks(model))
    owned = [each for one in stepper.optimizers for group in one.param_groups for each in group["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))
    rates = {id(each): group["lr"] for group in stepper.optimizers[0].param_groups for each in group["params"]}
    own = OPTIMIZERS[kind].lr
    assert rates[id(model.get_submodule("embedding").weight)] == own
    layers = [each for each in model.get_submodule("layers").parameters() if id(each) in rates]
    inside = {rates[id(each)] for each in layers}
    assert inside == {0.5, own / 2}
    assert len(stepper.optimizers) == (2 if kind == "Muon" else 1)


def test_divided_branches_stay_as_they_are() -> None:
    """At one over the root of the branches; sign-like optimizers take as much less of a rate."""
    cell = Cell(TINY["Transformer"], "Adagrad", 2)
    paced = cell.divided(cell.build())
    assert isinstance(paced, Paced)
    assert (paced.pace, paced.hidden) == (None, 0.5)
    for gate in gates(paced).values():
        assert gate.gate_parameter.item() == 0.5
        assert not gate.gate_parameter.requires_grad
    assert Cell(TINY["MLP"], "SGD", 4).divided(nn.Identity()).hidden == 1.0


@pytest.mark.slow
def test_small(tmp_path: Path) -> None:
    """All networks and optimizers, through the lab: numbers, pictures, lines and claims; a second run does nothing."""
    work = Work(tmp_path / "parts", tmp_path / "out", 1)
    work.output.mkdir()
    found = run(TINY, work, steps=20)
    assert [(cell["net"], cell["optimizer"], cell["depth"]) for cell in found["cells"]] == [
        ("MLP", "SGD", 4),
        ("MLP", "Muon", 2),
        ("Transformer", "Adagrad", 2),
    ]
    for cell in found["cells"]:
        assert all(math.isfinite(arm["ends"][0]) and arm["jumps"][0] >= 1 for arm in cell["arms"].values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert run(TINY, work, steps=20) == found
    pictures = DEPTH_RECIPE.write(found, work.output)
    assert {path.stem for path in work.output.iterdir()} == pictures.keys() == {"rules", "limits", "rivals"}
    assert len(DEPTH_RECIPE.lines(found)) >= len(RULES)
    assert all(claim.find(found) is not None for claim in DEPTH_RECIPE.claims)


def cell_of(ends: dict[str, float | None], jumps: dict[str, float | None]) -> dict[str, Any]:
    """Make up a cell in which every rule is the fixed rate ``a``, but for ``lr``, which is ``b``."""
    arms = {name: {"ends": [ends[name]] * 3, "jumps": [1.0, 1.0, jumps[name]]} for name in ends}
    rules = dict.fromkeys(RULES, "a") | {"lr": "b"}
    return {"net": "N", "optimizer": "O", "depth": 8, "rules": rules, "fixed": ["a", "b"], "arms": arms}


def test_verdicts() -> None:
    """A rule is steady by its worst seed, good by its median against the best fixed rate, and may diverge."""
    good = cell_of({"a": 1.0, "b": 1.05, MUP: 2.0}, {"a": 1.0, "b": 1.2, MUP: 1.0})
    lost = cell_of({"a": 1.0, "b": None, MUP: 2.0}, {"a": 1.0, "b": None, MUP: 1.0}) | {"depth": 64}
    found = tally({"cells": [good, lost]})
    assert found[DEFAULT] | {"mean": 1} == {
        "cells": 2,
        "steady": 2,
        "alike": 2,
        "both": 2,
        "mean": 1,
        "worst": 1.0,
        "lost": 0,
    }
    rate = {name: found["lr"][name] for name in ("steady", "alike", "both", "worst", "lost")}
    assert rate == {"steady": 0, "alike": 1, "both": 0, "worst": 1.05, "lost": 1}
    one, default, same, deeper = (claim.find({"cells": [good, lost]}) for claim in DEPTH_RECIPE.claims)
    assert one is not None
    assert default is not None
    assert same is not None
    assert deeper is not None
    assert (one.verdict, default.verdict, same.verdict) == ("holds", "holds", "does not hold")
    assert (RECIPE in one.ours, DEFAULT in default.ours) == (True, True)
    assert "N, O, 8: 1.20; N, O, 64: 3 of 3 seeds diverge" in same.ours
    assert deeper.verdict == "cannot be told"
    assert f"than {MUP} in 2 of 2 Ns (p = 0.5)" in deeper.ours
    of_many = [[good] * 6, [good] * 5 + [lost | {"arms": lost["arms"] | {MUP: lost["arms"]["b"]}}]]
    assert [DEPTH_RECIPE.claims[3].find({"cells": cells}).verdict for cells in of_many] == ["holds", "holds"]  # type: ignore[union-attr]
    worse = cell_of({"a": 1.0, "b": 0.5, MUP: 0.9}, {"a": 1.0, "b": 1.0, MUP: 1.0})
    one, _, _, deeper = (claim.find({"cells": [worse]}) for claim in DEPTH_RECIPE.claims)
    assert one is not None
    assert deeper is not None
    assert (one.verdict, deeper.verdict) == ("holds in part", "cannot be told")
    losing = DEPTH_RECIPE.claims[3].find({"cells": [worse] * 6})
    assert losing is not None
    assert losing.verdict == "does not hold"
    assert any(
        f"{RECIPE} falls short at N, O, 8 layers: final loss 2.00 times the best fixed rate's" == line
        for line in DEPTH_RECIPE.lines({"cells": [worse]})
    )


def test_every_rule_is_drawn(tmp_path: Path) -> None:
    """The pictures of rules show each of them, the second beside the default."""
    summary = json.loads((RESULTS / "depth-recipe" / "summary.json").read_text(encoding="utf-8"))
    assert DEPTH_RECIPE.write(summary, tmp_path).keys() == {"rules", "limits", "rivals"}
    drawn = {}
    for name in ("rules", "limits"):
        picture = unescape((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))
        drawn[name] = {rule for rule in RULES if f">{rule}</text>" in picture}
    assert drawn["rules"] | drawn["limits"] == RULES.keys()
    assert drawn["rules"] & drawn["limits"] == {DEFAULT}
