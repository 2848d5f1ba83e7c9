"""Which rules hold over depth: a depth check of the fully connected network, from 8 to 8,192 layers.

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1, and the authors' notebook: ReLU layers, Adagrad at 0.01. Here
they are 32 wide and see one batch of scikit-learn's digits.

    python -m rezero.papers.depth    # nine minutes on a free core, 24 on a busy one; writes results/depth-check
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rezero.charts import save
from rezero.data.digits import load_digits
from rezero.diagnose.depth_check import DepthCheck, depth_check
from rezero.layers import MLP
from rezero.optim import param_groups
from rezero.provenance import provenance

__all__ = ["DEPTHS", "RULES", "measure", "write"]

DEPTHS = tuple(2**power for power in range(3, 14))
WIDTH, BATCH, LR = 32, 128, 0.01


def _one_rate(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=LR)


def _own_rate(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(param_groups(model, lr=LR, weight_decay=0.0))


RULES: Mapping[str, tuple[str, Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "plain": ("plain", _one_rate),
    "pre-norm": ("pre-norm", _one_rate),
    "rezero, alpha at lr": ("rezero", _one_rate),
    "rezero": ("rezero", _own_rate),
}
"""Name to residual formula and optimizer: the authors' ReZero has one rate for all, ours that of `param_groups`."""


def measure(
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    steps: int = 5,
    tell: Callable[[float, str], None] | None = None,
) -> DepthCheck:
    """Measure the rules.

    Args:
        depths: Numbers of layers, rising.
        seeds: Of the weights.
        steps: Steps on the same batch.
        tell: Is told the share that is done and what comes next; by default a bar on the terminal.

    Returns:
        What was measured.
    """
    inputs, targets = load_digits().batch(0, 0, BATCH)

    def loss(output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets)

    rules = {name: (partial(_build, formula), optimizer) for name, (formula, optimizer) in RULES.items()}
    return depth_check(rules, inputs, loss, depths=depths, steps=steps, seeds=seeds, tell=tell)


def _build(formula: str, depth: int) -> nn.Module:
    return MLP(64, WIDTH, depth, 10, residual=formula)


def write(found: DepthCheck, folder: Path, facts: Mapping[str, str]) -> None:
    """Write the numbers as ``summary.json`` and the picture as ``depth_check.svg``.

    Args:
        found: What was measured.
        folder: Where to; it is made if it is not there.
        facts: How it came about, title to text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    setting = {"width": WIDTH, "batch": BATCH, "optimizer": "Adagrad", "lr": LR, "data": "digits"}
    summary = json.dumps({**facts, **setting, **found.to_json()}, indent=1)
    (folder / "summary.json").write_text(summary + "\n", encoding="utf-8")
    save(found.chart(), folder / "depth_check", ("svg",))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    about = {**provenance(), "command": "python -m rezero.papers.depth"}
    result = measure()
    print(result)
    write(result, Path("results/depth-check"), about)
