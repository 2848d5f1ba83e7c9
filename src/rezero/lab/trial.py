"""One training run: an arm, a learning rate, a seed."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.data.batches import TensorData
from rezero.gate import gates
from rezero.lab.task import Settings, Task
from rezero.optim import param_groups

__all__ = ["Point", "Trial", "run_trial"]


@dataclass(frozen=True, order=True)
class Trial:
    """What tells one run of a study from another.

    Attributes:
        arm: Residual formula.
        lr: Learning rate.
        seed: Seed of the initial weights and of the order of the data, shared by all arms.
    """

    arm: str
    lr: float
    seed: int


@dataclass(frozen=True)
class Point:
    """What was measured at one moment of a trial.

    Attributes:
        step: Optimizer steps done.
        epoch: The same in passes over the training set.
        metrics: ``train_loss`` (nats, mean over the steps since the last point), ``val_loss`` (nats), ``val_accuracy``
            (fraction) and ``seconds`` (spent in training steps since the start).
        alphas: Mean scale of every gate, in the order of depth; empty for an arm without gates.
    """

    step: int
    epoch: float
    metrics: dict[str, float]
    alphas: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether a loss has left the finite numbers."""
        return not (math.isfinite(self.metrics["train_loss"]) and math.isfinite(self.metrics["val_loss"]))


def run_trial(
    task: Task, settings: Settings, trial: Trial, data: TensorData, on_step: Callable[[int], object]
) -> Iterator[Point]:
    """Train one arm, yielding a point an epoch and one at the end.

    Weights and data order depend on the seed alone, so every arm of a seed sees the same batches and starts from the
    same weights wherever shapes and initialisation agree. A trial whose loss is no longer finite ends at that point.

    Args:
        task: What is trained on what.
        settings: How long and how large.
        trial: Which arm, rate and seed.
        data: The task's data, on the settings' device.
        on_step: Called with the number of steps done, after each.

    Yields:
        A point after each epoch and after the last step.
    """
    torch.manual_seed(trial.seed)
    model = task.build(data, trial.arm, settings).to(settings.device)
    # The authors train alpha at the rate of everything else.
    optimizer = task.optimizer(param_groups(model, lr=trial.lr, weight_decay=0.0, alpha_lr=trial.lr))
    per_epoch, total = data.steps_per_epoch(settings.batch_size), settings.total_steps(data)
    losses: list[Tensor] = []
    seconds, start = 0.0, time.perf_counter()
    for step in range(1, total + 1):
        inputs, targets = data.batch(trial.seed, step - 1, settings.batch_size)
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        on_step(step)
        if step % per_epoch and step < total:
            continue
        train_loss = torch.stack(losses).mean().item()
        seconds += time.perf_counter() - start
        metrics = {"train_loss": train_loss, **evaluate(model, data), "seconds": seconds}
        alphas = tuple(gate.scale.mean().item() for gate in gates(model).values())
        point = Point(step, step / per_epoch, metrics, alphas)
        yield point
        if point.diverged:
            return
        losses, start = [], time.perf_counter()


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorData) -> dict[str, float]:
    """Measure a model on the validation part.

    Args:
        model: Classifier.
        data: Data with a validation part.

    Returns:
        ``val_loss`` (nats) and ``val_accuracy`` (fraction; nan where the loss is not finite).
    """
    model.eval()
    output = model(data.val_inputs)
    model.train()
    loss = F.cross_entropy(output, data.val_targets).item()
    right = (output.argmax(-1) == data.val_targets).double().mean().item()
    return {"val_loss": loss, "val_accuracy": right if math.isfinite(loss) else math.nan}
