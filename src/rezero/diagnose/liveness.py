"""Which gates get a gradient, and which branches, as they are and with every gate a little open."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.diagnose.example import read_input
from rezero.errors import UsageError
from rezero.gate import AnyGate
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["Loss", "Pass", "differentiate", "loss_of", "opened", "scalar"]

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        loss: Its loss.
        gradients: Parameter name to gradient; None for what the loss does not depend on.
        broken: The first module whose output was not finite while its inputs were; None if there is none.
    """

    loss: float
    gradients: Mapping[str, Tensor | None]
    broken: str | None

    def moves(self, name: str) -> bool:
        """Return whether a parameter has a gradient that is not zero."""
        gradient = self.gradients.get(name)
        return gradient is not None and bool(gradient.any())


def loss_of(batch_or_loss_fn: Any) -> Loss:
    """Make a loss of what a user gives.

    Args:
        batch_or_loss_fn: A function of the model that returns a loss; or the model's input, several as a tuple, or by
            name as a dictionary: the loss is then a random projection of all outputs.

    Returns:
        A function of the model.
    """
    if callable(batch_or_loss_fn) and not isinstance(batch_or_loss_fn, Tensor):
        function: Loss = batch_or_loss_fn
        return function
    example = read_input(batch_or_loss_fn)

    def project(model: nn.Module) -> Tensor:
        args, kwargs = copied(example)
        outputs = [each for each in tensors(model(*args, **kwargs)) if each.is_floating_point() and each.requires_grad]
        if not outputs:
            raise UsageError("no output of the model has a gradient: is it run under no_grad, or frozen as a whole?")
        generator = torch.Generator().manual_seed(0)
        directions = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
        return torch.stack([(each * d).sum().float() for each, d in zip(outputs, directions, strict=True)]).sum()

    return project


def differentiate(model: nn.Module, loss: Loss) -> Pass:
    """Run a model in training, forward and backward, from a fixed seed; it is left as it was.

    Args:
        model: The model.
        loss: Its loss.

    Returns:
        The loss and the gradients.

    Raises:
        UsageError: If the loss is no scalar that can be differentiated.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with undisturbed(model), switched(model, training=True), torch.enable_grad(), _watched(model) as broken:
        torch.manual_seed(0)
        value = scalar(loss(model))
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return Pass(float(value.detach()), dict(zip(parameters, found, strict=True)), next(iter(broken), None))


def scalar(value: Any) -> Tensor:
    """Return what a loss function returned, if it can be differentiated.

    Args:
        value: What it returned.

    Returns:
        The loss, 0-d.

    Raises:
        UsageError: If it is no tensor of one number with a gradient.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
        return value.reshape(())
    got = type(value).__name__
    if isinstance(value, Tensor):
        got = f"a tensor of shape {tuple(value.shape)} {'with' if value.requires_grad else 'without'} a gradient"
    raise UsageError(f"expected a loss function that returns one number with a gradient, got {got}")


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Note the modules whose output is not finite while their inputs are, innermost first."""
    broken: list[str] = []

    def look(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not broken and not _finite(output) and _finite((args, kwargs)):
            broken.append(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(look, name), with_kwargs=True).remove)
        yield broken


def _finite(values: Any) -> bool:
    return all(bool(each.isfinite().all()) for each in tensors(values) if each.is_floating_point())


@contextmanager
def opened(owners: Mapping[str, AnyGate], size: float) -> Iterator[None]:
    """Set gates that are exactly zero to something small, and put them back.

    Args:
        owners: Modules that own gates, by any name.
        size: The value.

    Yields:
        Nothing.
    """
    closed = [each.gate_parameter for each in owners.values() if not bool(each.gate_parameter.any())]
    try:
        with torch.no_grad():
            for parameter in closed:
                parameter.fill_(size)
        yield
    finally:
        with torch.no_grad():
            for parameter in closed:
                parameter.zero_()
