"""Which default for alpha's learning rate? Jump after the first steps and loss at the end, by depth and optimizer.

    python benchmarks/alpha_lr.py            # goes on where it was stopped; about half an hour on two cores

Trains the ReZero MLP (width 32) on scikit-learn's digits for 150 steps of 128 examples, everything but alpha at the
optimizer's rate, and writes one row a run to results/alpha_lr/runs.csv, then summary.json and last_loss.svg beside it.
"""

import argparse
import csv
import itertools
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import geometric_mean, median

import altair as alt
import torch
import torch.nn.functional as F
from timing import write_result

from rezero.data.digits import load_digits
from rezero.layers import MLP
from rezero.optim import param_groups

FOLDER = Path(__file__).parents[1] / "results" / "alpha_lr"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "alpha-lr.svg"
STEPS, WIDTH, BATCH, SEEDS = 150, 32, 128, (0, 1, 2)
DEPTHS = (8, 64, 512, 2048)
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "Adagrad 0.01": (torch.optim.Adagrad, 0.01),
    "AdamW 0.001": (torch.optim.AdamW, 0.001),
    "AdamW 0.01": (torch.optim.AdamW, 0.01),
    "SGD 0.1": (torch.optim.SGD, 0.1),
}
RULES: dict[str, Callable[[float, int], float]] = {
    "lr": lambda lr, depth: lr,
    "lr / 10": lambda lr, depth: lr / 10,
    "min(lr, 3 / L)": lambda lr, depth: min(lr, 3 / depth),
    "min(lr, 1 / L)": lambda lr, depth: min(lr, 1 / depth),
    "lr / L": lambda lr, depth: lr / depth,
}
FIELDS = ["depth", "optimizer", "rule", "seed", "first_loss", "worst_loss", "last_loss"]


def train(depth: int, optimizer: str, rule: str, seed: int) -> dict[str, float | int | str]:
    """Train one network; ``worst_loss`` is the largest of all steps, ``last_loss`` the mean of the last twenty."""
    torch.set_num_threads(1)
    data = load_digits()
    kind, lr = OPTIMIZERS[optimizer]
    torch.manual_seed(seed)
    model = MLP(64, WIDTH, depth, 10, residual="rezero")
    groups = param_groups(model, lr=lr, weight_decay=0.0, alpha_lr=RULES[rule](lr, depth))
    stepper = kind(groups)
    losses: list[float] = []
    for step in range(STEPS):
        inputs, targets = data.batch(seed, step, BATCH)
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    finished = len(losses) == STEPS and math.isfinite(losses[-1])
    last = sum(losses[-20:]) / 20 if finished else math.inf
    worst = max(value if math.isfinite(value) else math.inf for value in losses)
    values = (depth, optimizer, rule, seed, losses[0], worst, last)
    return dict(zip(FIELDS, values, strict=True))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the runs that are done."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_missing(path: Path, jobs: int) -> None:
    """Run what is not in the table yet, appending each row as it ends."""
    done = {(row["depth"], row["optimizer"], row["rule"], row["seed"]) for row in read_rows(path)}
    grid = itertools.product(DEPTHS, OPTIMIZERS, RULES, SEEDS)
    missing = [run for run in grid if tuple(map(str, run)) not in done]
    with ProcessPoolExecutor(jobs) as pool, path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        futures = [pool.submit(train, *run) for run in missing]
        for count, future in enumerate(as_completed(futures), 1):
            row = future.result()
            writer.writerow(row)
            file.flush()
            print(f"{count}/{len(missing)}", *row.values(), flush=True)


def summarise(rows: list[dict[str, str]]) -> list[dict[str, float | int | str | None]]:
    """Reduce the seeds of complete cells to medians: jump, the worst loss over the first; None is a divergence."""
    table: list[dict[str, float | int | str | None]] = []
    grouped: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        grouped.setdefault((row["depth"], row["optimizer"]), []).append(row)
    complete = {cell for cell, runs in grouped.items() if len(runs) == len(RULES) * len(SEEDS)}
    for depth, optimizer, rule in itertools.product(DEPTHS, OPTIMIZERS, RULES):
        if (str(depth), optimizer) not in complete:
            continue
        runs = [run for run in grouped[str(depth), optimizer] if run["rule"] == rule]
        jump = median(float(run["worst_loss"]) / float(run["first_loss"]) for run in runs)
        last = median(float(run["last_loss"]) for run in runs)
        cell: dict[str, float | int | str | None] = {"depth": depth, "optimizer": optimizer, "rule": rule}
        cell["jump"], cell["last_loss"] = (value if math.isfinite(value) else None for value in (jump, last))
        table.append(cell)
    return table


def judge(table: list[dict[str, float | int | str | None]]) -> dict[str, dict[str, float | int]]:
    """Count for each rule where it rose above its start or diverged, and by how much it misses the cell's best loss."""
    verdicts = {}
    for rule in RULES:
        cells = [row for row in table if row["rule"] == rule]
        jumps = sum(row["jump"] is None or float(row["jump"]) > 1.05 for row in cells)
        misses = [
            float(row["last_loss"])
            / min(float(other["last_loss"] or math.inf) for other in table if _same_cell(row, other))
            for row in cells
            if row["last_loss"] is not None
        ]
        verdicts[rule] = {
            "jumped": jumps,
            "cells": len(cells),
            "mean_miss": geometric_mean(misses),
            "worst": max(misses),
        }
    return verdicts


def _same_cell(row: dict[str, float | int | str | None], other: dict[str, float | int | str | None]) -> bool:
    return (row["depth"], row["optimizer"]) == (other["depth"], other["optimizer"])


def draw(table: list[dict[str, float | int | str | None]]) -> alt.FacetChart:
    """Draw the loss at the end against depth, a panel an optimizer; a cell that diverged is left out."""
    rows = [row for row in table if row["last_loss"] is not None]
    line = (
        alt.Chart()
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("depth:Q", title="gated blocks", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("last_loss:Q", title="training loss, steps 131 to 150 (nats)", scale=alt.Scale(type="log")),
            color=alt.Color(
                "rule:N",
                title="rate of alpha",
                scale=alt.Scale(domain=list(RULES), range=["#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#7F7F7F"]),
            ),
            strokeDash=alt.StrokeDash("rule:N", title="rate of alpha", scale=alt.Scale(domain=list(RULES))),
        )
        .properties(width=220, height=260)
    )
    chart: alt.FacetChart = line.facet(
        facet=alt.Facet("optimizer:N", title=None), columns=2, data=alt.InlineData(values=rows)
    )
    return chart


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--summary", action="store_true", help="only summarise the runs that are there")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not arguments.summary:
        run_missing(FOLDER / "runs.csv", arguments.jobs)
    table = summarise(read_rows(FOLDER / "runs.csv"))
    draw(table).save(FOLDER / "last_loss.svg")
    shutil.copy(FOLDER / "last_loss.svg", PICTURE)  # a page's pictures must lie beside it
    verdicts = judge(table)
    write_result("summary", {"cells": table, "rules": verdicts}, folder=FOLDER)
    for cell in table:
        print(*(f"{value:.4g}" if isinstance(value, float) else value for value in cell.values()), sep="\t")
    for rule, verdict in verdicts.items():
        print(f"{rule:16}", *(f"{name} {value:.3g}" for name, value in verdict.items()))
