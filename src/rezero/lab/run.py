"""One training run: an arm, a learning rate, a seed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from rezero.data.batches import Data
from rezero.errors import UsageError
from rezero.gate import gates
from rezero.lab.checkpoint import Checkpoints
from rezero.lab.optimize import build_optimizer, build_schedule
from rezero.lab.processes import add_gradients_, share_
from rezero.lab.settings import Settings, check_parts, total_steps
from rezero.lab.task import Task
from rezero.lab.trial import Point, Trial, settings_of

__all__ = ["owner", "run_trial"]

_PLANS = (
    "arms",
    "seeds",
    "tune",
    "tune_seeds",
    "tune_over",
    "metric",
)  # which trials there are, and none of what they do


def owner(task: Task, settings: Settings, trial: Trial, data: Data) -> dict[str, Any]:
    """Return what tells a trial's checkpoints from every other trial's."""
    decides = {name: value for name, value in asdict(settings).items() if name not in _PLANS}
    return {"task": task.name, "data": data.name, **asdict(trial), **decides}


def run_trial(
    task: Task,
    settings: Settings,
    trial: Trial,
    data: Data,
    on_step: Callable[[int], object],
    *,
    accelerator: Accelerator,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: float = math.inf,
    start: int = 0,
) -> Iterator[Point]:
    """Train one arm, measuring it on the way and at the end.

    Weights, data order, augmentation and dropout depend on the seed and the step alone, so every arm of a seed sees the
    same batches and starts from the same weights wherever shapes and initialisation agree, and a trial that goes on
    from a checkpoint ends as one that was never stopped, bit for bit. A trial whose loss is no longer finite ends at
    that point. Every process of a group runs this; the points are the same in all.

    Args:
        task: What is trained on what.
        settings: How long and how large.
        trial: Which arm, rate and seed.
        data: The task's data, on the accelerator's device.
        on_step: Called with the number of steps done, after each.
        accelerator: The processes and their device.
        checkpoints: Where the state is kept; None keeps none.
        checkpoint_every: Seconds between two checkpoints.
        start: Step of the checkpoint to go on from; 0 starts anew.

    Returns:
        The points as they come: after each epoch, or each ``settings.measure_every`` steps, and after the last step.
        The model is built and the checkpoint read before the first is asked for.

    Raises:
        UsageError: If a checkpoint cannot be written or read, or a batch is too small to be shared.
    """
    run = _Run(task, settings, trial, data, accelerator)
    if start and checkpoints is not None:
        run.restore(start, checkpoints.load(start))
    run.prepare()
    return _train(run, on_step, checkpoints, checkpoint_every)


def _train(
    run: "_Run", on_step: Callable[[int], object], checkpoints: Checkpoints | None, checkpoint_every: float
) -> Iterator[Point]:
    saved, run.clock = time.monotonic(), time.perf_counter()
    every = run.settings.measure_every or run.per_epoch
    while run.step < run.total:
        run.advance()
        on_step(run.step)
        if not (run.step % every and run.step < run.total):
            point = run.measure()
            yield point
            if point.diverged:
                return
        if checkpoints is not None and run.step < run.total and time.monotonic() - saved >= checkpoint_every:
            with run.off_the_clock():
                checkpoints.save(run.step, run.state())
            saved = time.monotonic()


class _Run:
    """A model in training: what changes from step to step, and nothing else."""

    def __init__(self, task: Task, settings: Settings, trial: Trial, data: Data, accelerator: Accelerator) -> None:
        self.task, self.trial, self.data, self.accelerator = task, trial, data, accelerator
        self.settings = settings = settings_of(settings, trial)
        self.per_epoch, self.total = data.steps_per_epoch(settings.batch_size), total_steps(settings, data)
        self.parts = accelerator.num_processes * settings.accumulate
        check_parts(settings, data)
        torch.manual_seed(trial.seed)
        self.model = task.model(data, trial.arm, settings).to(accelerator.device)
        self.optimizer = build_optimizer(
            settings.optimizer,
            self.model,
            lr=settings.lr,
            alpha_lr=settings.alpha_lr,
            weight_decay=settings.weight_decay,
        )
        self.schedule = build_schedule(
            settings.schedule, self.optimizer, warmup=settings.warmup, steps=self.total, per_epoch=self.per_epoch
        )
        self.step = 0
        self.first_seed = _first_seed(trial.seed, accelerator.process_index)
        self.losses: list[Tensor] = []
        self.seconds, self.clock = 0.0, time.perf_counter()

    def prepare(self) -> None:
        """Start from the first process's state everywhere, under autocast."""
        share_(self.model.state_dict().values(), self.accelerator)
        self.accelerator.wait_for_everyone()  # all have read a checkpoint before the first writes the next
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # without DistributedDataParallel

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Keep what is not training out of the seconds."""
        self.seconds += time.perf_counter() - self.clock
        yield
        self.clock = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "losses": torch.stack(self.losses) if self.losses else None,
            "seconds": self.seconds,
        }

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Go on from the state of a step."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            self.losses = [] if state["losses"] is None else list(state["losses"].to(self.accelerator.device))
            self.seconds, self.step = float(state["seconds"]), step
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = " ".join(str(error).split())
            raise UsageError(f"the checkpoint of {self.trial} does not fit the model: {detail}") from error

    def advance(self) -> None:
        """Take one optimizer step on the batch of this step."""
        accelerator, size = self.accelerator, self.data.batch_len(self.step, self.settings.batch_size)
        _seed(self.first_seed + self.step, accelerator.device)
        self.optimizer.zero_grad()
        first = accelerator.process_index * self.settings.accumulate
        losses = []
        for index in range(first, first + self.settings.accumulate):
            part = slice(size * index // self.parts, size * (index + 1) // self.parts)
            inputs, targets = self.data.batch(self.trial.seed, self.step, self.settings.batch_size, part)
            loss = _loss(self.model(inputs), targets)
            if self.parts > 1:
                loss = len(targets) / size * loss
            loss.backward()  # Accelerate's would divide, and scale for float16
            losses.append(loss.detach())
        add_gradients_(self.model, accelerator)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        self.losses.append(loss if accelerator.num_processes == 1 else accelerator.reduce(loss, "sum"))
        self.step += 1

    def measure(self) -> Point:
        """Measure the model, outside the clock."""
        train_loss = torch.stack(self.losses).mean().item()  # waits for the device
        with self.off_the_clock():
            metrics = {"train_loss": train_loss, **self.evaluate(), "seconds": self.seconds}
            alphas = tuple(gate.gate_scale.mean().item() for gate in gates(self.model).values())
            sample = None
            if self.step == self.total and self.task.sample is not None and math.isfinite(metrics["val_loss"]):
                sample = self.task.sample(self.model, self.data, self.trial.seed)
        self.losses = []
        return Point(self.step, self.step / self.per_epoch, metrics, alphas, sample)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measure the model on the validation part, each process on its share."""
        world, size = self.accelerator.num_processes, self.settings.batch_size
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)  # loss, right answers, answers
        share_(self.model.buffers(), self.accelerator)  # batch norms have seen their own process's examples
        self.model.eval()
        for index in range(self.accelerator.process_index, self.data.val_steps(size), world):
            inputs, targets = self.data.val_batch(index, size)
            output = self.model(inputs)
            right = (output.argmax(-1) == targets).sum()
            answers = sums.new_tensor(targets.numel())
            sums += torch.stack([_loss(output, targets).double() * answers, right, answers])
        self.model.train()
        if world > 1:
            sums = self.accelerator.reduce(sums, "sum")
        loss, accuracy = (sums[:2] / sums[2]).tolist()
        return {"val_loss": loss, "val_accuracy": accuracy if math.isfinite(loss) else math.nan}


def _loss(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def _seed(number: int, device: torch.device) -> None:
    # torch.manual_seed seeds every kind of device there may be, which takes half a millisecond.
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def _first_seed(seed: int, process: int) -> int:
    # The CPU's generator keeps the low 32 bits of a seed, so they have to depend on everything.
    return int.from_bytes(sha256(f"{seed} {process}".encode()).digest()[:7])
