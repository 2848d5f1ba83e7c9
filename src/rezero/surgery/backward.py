"""One backward pass of a model, which leaves no trace in it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from rezero.errors import UsageError
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["Along", "Gradients", "Objective", "differentiate", "kept", "projection", "started"]

Gradients = dict[str, Tensor | None]
Along = tuple[Sequence[Tensor], Sequence[Tensor]]  # tensors, and the direction in which each is differentiated
Objective = Callable[[nn.Module], Along]


def differentiate(model: nn.Module, objective: Objective, *, training: bool) -> tuple[Along, Gradients]:
    """Run a model forward and backward from a fixed seed.

    Args:
        model: The model.
        objective: Runs it, and says what is differentiated.
        training: Its mode.

    Returns:
        What was differentiated, and the gradients by the parameters' names; None for what it does not depend on at all.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with undisturbed(model), switched(model, training=training), torch.enable_grad(), kept(model):
        torch.manual_seed(0)
        values, directions = objective(model)
        if not values or not parameters:
            return (values, directions), dict.fromkeys(parameters)
        found = torch.autograd.grad(values, list(parameters.values()), directions, allow_unused=True)
    return (values, directions), dict(zip(parameters, found, strict=True))


def projection(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Objective:
    """Make an objective of an example: a random projection of all outputs that have a gradient.

    Args:
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        The objective.
    """

    def project(model: nn.Module) -> Along:
        args_copy, kwargs_copy = copied((args, kwargs))
        outputs = [tensor for tensor in tensors(model(*args_copy, **kwargs_copy)) if tensor.requires_grad]
        return outputs, [torch.randn_like(output) for output in outputs]

    return project


@contextmanager
def started(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let parameters that are zero be something else, as they are after a first step; put them back.

    Args:
        parameters: Any; the others stay as they are.

    Yields:
        Nothing.
    """
    zeros = [each for each in parameters if each.is_floating_point() and not bool(each.any())]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in zeros:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.data.zero_()


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Keep activations that a model would recompute: torch.autograd.grad can't see through a reentrant checkpoint.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    recomputing: Any = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Kept(model)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = recomputing  # type: ignore[misc]


@dataclass(frozen=True)
class _Kept:
    model: nn.Module

    def apply(self, function: Any, _: bool, *args: Any) -> Any:
        for name, module in self.model.named_modules():
            if getattr(module, "rezero_reading", False):
                raise UsageError(
                    f"{name!r} is gated through its weights while the layer that reads them runs, and a checkpoint "
                    "inside that layer would recompute it without its gate: checkpoint the layer as a whole, or leave "
                    "it out with filter_fn"
                )
        return function(*args)
