"""What does the lab cost a training loop? Steps with it beside the same steps without, and what it does between steps.

    python benchmarks/lab.py [--rounds 40]

One's own loop: 12 residual blocks 256 wide, batch 128, with the lines of `rezero.lab.script` around it, written to a
file as in a trial; and what a call of `log` takes by itself. The lab's runner: `run_one` beside a loop by hand. The two
take turns step by step on one model and one optimizer, so that a machine's drift and the place of things in memory fall
on both; that alone they reach the same loss is checked before. First steps of epochs, which wait for the evaluation,
are left out. What falls between steps is timed alone: storing a point, as a share of an epoch, and a checkpoint, as a
share of the 30 seconds between two.

Ratios are of the time on the clock, and of the CPU time of this process, which others on the machine disturb less;
intervals are 95%, of the median ratio. The overhead in all takes steps by CPU time, and what is stored by the clock.
"""

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from timing import read_arguments, write_result
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from rezero.data.batches import Data
from rezero.lab import (
    Checkpoints,
    Settings,
    Store,
    Study,
    Task,
    Trial,
    build_optimizer,
    find_task,
    open_processes,
    run_trial,
)
from rezero.lab.one import Silent, run_one
from rezero.lab.script import arm, log, running
from rezero.lab.sweep import CHECKPOINT_SECONDS
from rezero.surgery.convert import convert_

BLOCK = 10  # steps of one's own loop that are timed together
EPOCHS = 20
RUNS = {
    "fc-digits as it is, 64 x 64": {},
    "12 x 256": {"depth": 12, "width": 256},
    "2 x 16": {"depth": 2, "width": 16},
}


class Block(nn.Module):
    """A residual block as people write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        y: Tensor = x + self.second(torch.relu(self.first(x)))
        return y


class Times:
    """Seconds of each turn, on the clock and of the CPU."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.cpu: list[float] = []

    def add(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Note a turn."""
        self.clock.append(end[0] - start[0])
        self.cpu.append(end[1] - start[1])


def now() -> tuple[float, float]:
    """Return the time on the clock and that of the CPU."""
    return time.perf_counter(), time.process_time()


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95% interval, by order statistics."""
    ranked, half = sorted(values), int(stats.binom.ppf(0.025, len(values), 0.5))
    return statistics.median(ranked), ranked[max(half - 1, 0)], ranked[min(len(ranked) - half, len(ranked) - 1)]


def row(ours: Times, bare: Times, steps: int = 1) -> dict[str, float]:
    """Reduce turns to milliseconds a step and ratios."""
    table: dict[str, float] = {"n": len(bare.cpu)}
    for name, mine, other in (("clock", ours.clock, bare.clock), ("CPU", ours.cpu, bare.cpu)):
        ratio, low, high = middle([a / b for a, b in zip(mine, other, strict=True)])
        ms = 1000 * statistics.median(mine) / steps
        table |= {f"{name} ms a step": ms, f"{name} ratio": ratio, f"{name} low": low, f"{name} high": high}
    return table


def own_loop(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Measure the lines in a loop of one's own, for an arm."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 128, 64), torch.randint(10, (64, 128))
    model: nn.Module = nn.Sequential(nn.Linear(64, 256), *(Block(256) for _ in range(12)), nn.Linear(256, 10))
    if name == "rezero":
        convert_(model, (inputs[0],))
    handle = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(line: dict[str, Any]) -> None:
        os.write(handle, json.dumps(line).encode() + b"\n")

    def loop(every: int) -> Callable[[], None]:
        own = copy.deepcopy(model)
        optimizer, steps = torch.optim.AdamW(own.parameters(), lr=1e-4, foreach=True), count(1)

        def train() -> None:
            for _ in range(BLOCK):
                step = next(steps)
                loss = F.cross_entropy(own(inputs[step % 64]), targets[step % 64])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if every and step % every == 0:
                    log(step, train_loss=loss)

        def watched() -> None:
            with running(name, 1.0, 0, write):
                arm(own, arms={name: lambda converted: converted})
                train()

        return watched if every else train

    calls = {"bare": loop(0), "log each 10": loop(10), "log each": loop(1)}
    times = take_turns(calls, rounds)
    table: dict[str, Any] = {title: row(times[title], times["bare"], BLOCK) for title in calls}
    with running(name, 1.0, 0, write):
        arm(model, arms={name: lambda converted: converted})
        alone = timed(lambda step: log(step, train_loss=1.0), 300)
    os.close(handle)
    step_ms = table["bare"]["clock ms a step"]
    table["log alone"] = {"ms": alone, "of a step": alone / step_ms, "of 10 steps": alone / step_ms / 10}
    return table


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Time each once a round, in an order that turns, after two rounds that do not count."""
    times = {name: Times() for name in calls}
    for turn in range(rounds + 2):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = now()
            calls[name]()
            if turn >= 2:
                times[name].add(start, now())
        print(f"\r  round {turn + 1}/{rounds + 2}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def timed(call: Callable[[int], object], times: int) -> float:
    """Return the median milliseconds of a call."""
    seconds = []
    for turn in range(times):
        start = time.perf_counter()
        call(turn)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


class Hand(Silent):
    """A loop by hand, which takes a step after each of the lab's, on the lab's model, and times both."""

    def __init__(self, task: Task, settings: Settings, data: Data) -> None:
        self.task, self.settings, self.data = task, settings, data
        self.ours, self.theirs = Times(), Times()
        self.left = now()

    def build(self, data: Data, arm: str, settings: Settings) -> nn.Module:
        """Build the task's model, and keep it."""
        self.model = self.task.build(data, arm, settings)
        self.seen = register_optimizer_step_post_hook(self.keep)
        return self.model

    def keep(self, optimizer: Optimizer, *_: object) -> None:
        """Keep the optimizer that has taken the first step."""
        self.optimizer = optimizer
        self.seen.remove()

    def train(self, seed: int, step: int) -> Tensor:
        """Take a step; what it leaves to be freed is freed when it is over."""
        inputs, targets = self.data.batch(seed, step, self.settings.batch_size)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def alone(self, trial: Trial) -> float:
        """Train for an epoch without the lab, and return the mean loss."""
        torch.manual_seed(trial.seed)
        self.model = self.task.build(self.data, trial.arm, self.settings)
        self.optimizer = build_optimizer(self.settings.optimizer, self.model, lr=trial.lr)
        steps = range(self.data.steps_per_epoch(self.settings.batch_size))
        return torch.stack([self.train(trial.seed, step) for step in steps]).mean().item()

    def step(self, step: int) -> None:
        """Time the lab's step that is over, and one by hand, on a batch that the caches do not hold."""
        entered = now()
        self.train(1, step - 1)
        done = now()
        if (step - 1) % self.data.steps_per_epoch(self.settings.batch_size):
            self.ours.add(self.left, entered)
            self.theirs.add(entered, done)
        self.left = now()


def runner(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure the lab's runner on a study of one trial."""
    task = find_task("fc-digits")
    settings = task.settings({"arms": ("rezero",), "seeds": 1, "epochs": EPOCHS, "threads": 1, **given})
    data, trial = task.load(settings), Trial("rezero", settings.lr, 0)
    hand = Hand(task, settings, data)
    with (
        Store.open(folder, Study(task.name, settings, {}, data.name)) as store,
        open_processes(settings) as accelerator,
    ):
        start = next(run_trial(task, settings, trial, data, lambda _: None, accelerator=accelerator))
        theirs, ours = hand.alone(trial), start.metrics["train_loss"]
        if abs(ours - theirs) > 1e-6 * theirs:
            raise RuntimeError(f"expected the lab's loss, {ours}: got {theirs}")
        run_one(store, replace(task, build=hand.build), trial, data, hand, accelerator, CHECKPOINT_SECONDS)
        other = Trial("rezero", settings.lr, 1)
        store.begin(other)
        stored = timed(lambda step: store.add(other, replace(start, step=step + 1)), 50)
    state = {
        "model": dict(hand.model.state_dict()),
        "optimizer": hand.optimizer.state_dict(),
        "losses": torch.zeros(data.steps_per_epoch(settings.batch_size)),
    }
    saved = timed(lambda step: Checkpoints(folder / "checkpoints", {}).save(step + 1, state), 20)
    bare = row(hand.theirs, hand.theirs)
    lab = row(hand.ours, hand.theirs)
    epoch = bare["clock ms a step"] * data.steps_per_epoch(settings.batch_size)
    return {
        "bare": bare,
        "lab": lab,
        "point stored": {"ms": stored, "of an epoch": stored / epoch},
        "checkpoint": {"ms": saved, "of 30 s": saved / 1000 / CHECKPOINT_SECONDS},
        "overhead in all": lab["CPU ratio"] - 1 + stored / epoch + saved / 1000 / CHECKPOINT_SECONDS,
    }


def show(title: str, table: dict[str, Any]) -> None:
    """Print a table."""
    print(title)
    for name, each in table.items():
        if isinstance(each, float):
            print(f"  {name:16} {each:9.2%}")
        elif "n" in each:
            for of in ("clock", "CPU"):
                spread = f"{each[f'{of} ratio']:.4f} ({each[f'{of} low']:.4f} to {each[f'{of} high']:.4f})"
                print(f"  {name:16} {each[f'{of} ms a step']:9.3f} ms a step   {spread} of bare, {of}, n = {each['n']}")
        else:
            shares = ", ".join(f"{share:.3%} {of}" for of, share in each.items() if of != "ms")
            print(f"  {name:16} {each['ms']:9.3f} ms   {shares}")


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=40)
    torch.set_num_threads(1)
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("original", "rezero"):
            title = f"own loop, 12 blocks x 256, {name}"
            tables[title] = own_loop(name, arguments.rounds, Path(place))
            show(title, tables[title])
        for index, (title, given) in enumerate(RUNS.items()):
            title = f"run_one, {title}"
            tables[title] = runner(given, Path(place, str(index)))
            show(title, tables[title])
    print("written:", write_result("lab-cpu", tables, arguments.output))
