"""Which gates get a gradient, and which branches, as they are and with every gate a little open."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.diagnose.example import check_not_empty, read_input
from rezero.diagnose.untouched import is_scripted, told, untouched
from rezero.errors import UsageError
from rezero.surgery.backward import Along, Objective, differentiate, projection
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied

__all__ = ["Pass", "is_finite", "is_loss", "objective_of", "run", "scalar"]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        loss: Its loss, or the projection of its outputs.
        gradients: Parameter name to gradient; None for what the loss does not depend on.
        broken: The first module whose output was not finite while its inputs were; None if there is none.
        inputs: What the model was called with first; None if it was not called itself.
    """

    loss: float
    gradients: Mapping[str, Tensor | None]
    broken: str | None
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None

    def moves(self, name: str) -> bool:
        """Return whether a parameter has a gradient that is not zero."""
        gradient = self.gradients.get(name)
        return gradient is not None and bool(gradient.any())


def is_loss(batch_or_loss_fn: Any) -> bool:
    """Return whether a user gives a loss function, and not a batch."""
    return callable(batch_or_loss_fn) and not isinstance(batch_or_loss_fn, Tensor)


def objective_of(batch_or_loss_fn: Any) -> Objective:
    """Make what is differentiated of what a user gives.

    Args:
        batch_or_loss_fn: A function of the model that returns a loss; or the model's input, several as a tuple, or by
            name as a dictionary: a random projection of all outputs is differentiated then.

    Returns:
        The objective.

    Raises:
        UsageError: If the input is an empty batch.
    """
    if is_loss(batch_or_loss_fn):
        return partial(_loss, batch_or_loss_fn)
    example = read_input(batch_or_loss_fn)
    check_not_empty(example)
    return partial(_projection, projection(*example))


def _loss(loss_fn: Callable[[nn.Module], Any], model: nn.Module) -> Along:
    value = scalar(loss_fn(model))
    return [value], [torch.ones_like(value)]


def _projection(project: Objective, model: nn.Module) -> Along:
    with told(model):
        outputs, directions = project(model)
    if not outputs:
        raise UsageError("no output of the model has a gradient: is it run under no_grad, or frozen as a whole?")
    return outputs, directions


def run(model: nn.Module, objective: Objective) -> Pass:
    """Run a model in training, forward and backward, from a fixed seed; it is left as it was.

    Args:
        model: The model.
        objective: What is differentiated.

    Returns:
        The loss and the gradients.

    Raises:
        UsageError: If the loss is no scalar that can be differentiated.
        RuntimeError: If a backward pass fails otherwise.
    """
    broken: list[str] = []
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def watched(model: nn.Module) -> Along:
        first = model.register_forward_pre_hook(lambda _, *given: inputs.append(copied(given)), with_kwargs=True)
        with ExitStack() as stack:
            stack.callback(first.remove)
            stack.enter_context(_watched(model, broken))
            return objective(model)

    with untouched(model, model.parameters()):
        try:
            along, gradients = differentiate(model, watched, training=True)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise UsageError(
                "the loss function calls backward itself: expected one that only returns the loss"
            ) from error
    loss = sum(float((value.detach() * direction).sum().real) for value, direction in zip(*along, strict=True))
    return Pass(loss, gradients, next(iter(broken), None), next(iter(inputs), None))


def scalar(value: Any) -> Tensor:
    """Return what a loss function returned, if it can be differentiated.

    Args:
        value: What it returned.

    Returns:
        The loss, 0-d.

    Raises:
        UsageError: If it is no tensor of one number with a gradient.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad and not value.is_complex():
        return value.reshape(())
    got = type(value).__name__
    if isinstance(value, Tensor):
        kind = "complex tensor" if value.is_complex() else "tensor"
        got = f"a {kind} of shape {tuple(value.shape)} {'with' if value.requires_grad else 'without'} a gradient"
    raise UsageError(f"expected a loss function that returns one number with a gradient, got {got}")


@contextmanager
def _watched(model: nn.Module, broken: list[str]) -> Iterator[None]:
    """Note the first module whose output is not finite while its inputs are, the innermost."""

    def look(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not broken and not is_finite(output) and is_finite((args, kwargs)):
            broken.append(name)

    with ExitStack() as stack:
        watchable = ((name, each) for name, each in model.named_modules() if not is_scripted(each))
        for name, module in watchable:
            stack.callback(module.register_forward_hook(partial(look, name), with_kwargs=True).remove)
        yield


def is_finite(values: Any) -> bool:
    """Return whether all real tensors in something are finite; autograd, and a checkpoint that counts, see nothing."""
    return all(bool(each.detach().isfinite().all()) for each in tensors(values) if each.is_floating_point())
