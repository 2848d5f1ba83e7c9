"""One network of a depth check: its start, its steps, and how far each of them goes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rezero.diagnose.blocks import block_names
from rezero.diagnose.example import check_devices
from rezero.diagnose.liveness import scalar
from rezero.diagnose.signal import first_real, root_mean_square
from rezero.diagnose.untouched import check_model, told
from rezero.errors import UsageError
from rezero.gate import gates
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied

__all__ = ["Build", "MakeOptimizer", "Measurement", "Rule", "Trial"]

Build = Callable[[int], nn.Module]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Measurement:
    """One network after one step; what is not finite is so in it.

    Attributes:
        rule: Name of the rule.
        depth: What the network was built with.
        seed: Of its weights.
        step: Number of steps made; 0 is the start.
        loss: The loss.
        activation: Root mean square of an entry of the last block's output.
        change: Root mean square of the change of the model's output since the start, divided by that of the output at
            the start; None where that was zero.
        update: Root mean square of the step of all trainable parameters but the gates; 0 at the start.
        gate_update: Root mean square of the step of the gates; None without gates.
        contrast: Root mean square of the distances of the examples' outputs from their mean, divided by that of the
            output: 0 where all examples have the same; None where their inputs are the same, or there is one.
    """

    rule: str
    depth: int
    seed: int
    step: int
    loss: float
    activation: float
    change: float | None
    update: float
    gate_update: float | None
    contrast: float | None = None

    @property
    def finite(self) -> bool:
        """Whether loss, activation and output are finite."""
        return all(map(math.isfinite, (self.loss, self.activation, self.change or 0.0)))


class Rule(NamedTuple):
    """How networks of any depth are made and trained.

    Attributes:
        build: Function of the depth that returns a model.
        optimizer: Function of the model that returns its optimizer.
    """

    build: Build
    optimizer: MakeOptimizer


class Trial:
    """One network and its steps.

    Args:
        name: Name of the rule.
        rule: The rule.
        depth: Depth of the network.
        seed: Of its weights, and of dropout.
        example: Arguments in order, and by name.
        loss_fn: Function of a model's output that returns the loss.

    Raises:
        TypeError: If the rule returns something else than a model and an optimizer.
        UsageError: If the model can't be run and watched, or the optimizer's step needs a closure.
    """

    def __init__(
        self, name: str, rule: Rule, depth: int, seed: int, example: Any, loss_fn: Callable[[Any], Tensor]
    ) -> None:
        self.name, self.depth, self.seed = name, depth, seed
        self._example, self._loss_fn = example, loss_fn
        torch.manual_seed(seed)
        try:
            model = rule.build(depth)
        except Exception as error:
            error.add_note(f"in build({depth}) of the rule {name!r} of a depth check")
            raise
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: expected build({depth}) to return an nn.Module, got {type(model).__name__}")
        check_model(model)
        check_devices(model, example, "signals to measure")
        optimizer = rule.optimizer(model)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{name}: expected a torch optimizer of the model, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError(f"{name}: expected an optimizer whose step takes no closure, got LBFGS")
        self._model, self._optimizer = model, optimizer
        owned = {id(each.gate_parameter) for each in gates(model).values()}
        trained = [each for each in model.parameters() if each.requires_grad]
        self._gates = [each for each in trained if id(each) in owned]
        self._others = [each for each in trained if id(each) not in owned]
        self._last = _last_block(model)
        self._differ = any(each.ndim > 0 and bool((each != each[:1]).any()) for each in tensors(example))

    def forward(self) -> tuple[Tensor, Tensor, float]:
        """Return loss, output, and the size of the last block's output.

        Returns:
            The loss, 0-d, what the model returned first, and the root mean square behind its last block.

        Raises:
            UsageError: If the model can't be run or returns no real numbers, or the loss is no scalar with a gradient.
        """
        seen: list[Tensor | None] = []
        hook = self._last.register_forward_hook(lambda _module, _args, output: seen.append(first_real(output)))
        try:
            torch.manual_seed(self.seed)
            args, kwargs = copied(self._example)
            with told(self._model):
                output = self._model(*args, **kwargs)
        finally:
            hook.remove()
        returned = first_real(output)
        signal = next((each for each in reversed(seen) if each is not None), returned)
        if returned is None or signal is None:
            raise UsageError(f"{self.name}: the model returns no real numbers")
        return scalar(self._loss_fn(output)), returned.detach(), root_mean_square(signal)

    def run(self, steps: int) -> Iterator[Measurement]:
        """Make the steps, as long as all is finite.

        Args:
            steps: Their number.

        Yields:
            What is there at the start and after each step.
        """
        loss, start, activation = self.forward()
        size = root_mean_square(start)
        change = None if size == 0 else 0.0 if math.isfinite(size) else math.inf
        row = self._row(0, loss, start, activation, change, 0.0, 0.0 if self._gates else None)
        yield row
        for step in range(1, steps + 1):
            if not row.finite:
                return
            others, owned = _numbers(self._others), _numbers(self._gates)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            update, gate_update = _distance(self._others, others), _distance(self._gates, owned)
            loss, output, activation = self.forward()
            change = root_mean_square(output.double() - start.double()) / size if size else None
            row = self._row(step, loss, output, activation, change, update or 0.0, gate_update)
            yield row

    def _row(
        self,
        step: int,
        loss: Tensor,
        output: Tensor,
        activation: float,
        change: float | None,
        update: float,
        gates: float | None,
    ) -> Measurement:
        contrast = _contrast(output) if self._differ else None
        return Measurement(
            self.name, self.depth, self.seed, step, float(loss.detach()), activation, change, update, gates, contrast
        )


def _numbers(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return all entries of parameters, copied."""
    with torch.no_grad():
        return torch.cat([each.reshape(-1) for each in parameters]) if parameters else torch.empty(0)


def _distance(parameters: Sequence[nn.Parameter], before: Tensor) -> float | None:
    return root_mean_square(_numbers(parameters) - before) if parameters else None


def _contrast(output: Tensor) -> float | None:
    if output.ndim == 0 or len(output) < 2:
        return None
    apart = root_mean_square(output.double() - output.double().mean(0))
    return apart / root_mean_square(output) if apart else 0.0


def _last_block(model: nn.Module) -> nn.Module:
    """Return the last block of a model, or itself if it has none."""
    try:
        return model.get_submodule(block_names(model)[-1])
    except UsageError:
        return model
