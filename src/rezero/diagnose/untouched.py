"""Let a diagnosis run a model wherever it is called from, without a trace, and say in one line why it can't."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.jit._trace import TopLevelTracedModule
from torch.nn.parameter import is_lazy

from rezero.errors import UsageError
from rezero.surgery.trace import explain

__all__ = ["check_model", "is_scripted", "told", "untouched", "written"]


def check_model(model: nn.Module) -> None:
    """Refuse what can't be run and watched.

    Args:
        model: The model.

    Raises:
        TypeError: If it is no module.
        UsageError: If it is scripted, has parameters without a shape yet, or ones that can take no gradient.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module: got {type(model).__name__}")
    if is_scripted(model):
        raise UsageError("the model is scripted, and can't be watched: give the module that it was made from")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UsageError(f"the parameter {name!r} has no shape yet: run the model once on an example before")
        if parameter.is_inference():
            raise UsageError(
                f"the parameter {name!r} was made under torch.inference_mode and can take no gradient: build the model "
                "outside of it"
            )


def is_scripted(module: nn.Module) -> bool:
    """Return whether a module takes no hooks, as scripted ones."""
    return isinstance(module, torch.jit.ScriptModule) and not isinstance(module, TopLevelTracedModule)


def written(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that a forward pass writes into: tables of embeddings with a largest norm."""
    tables = (each for each in model.modules() if getattr(each, "max_norm", None) is not None)
    return [parameter for table in tables for parameter in table.parameters(recurse=False)]


@contextmanager
def untouched(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Leave ``torch.inference_mode``, let nothing be compiled, and put parameters back.

    Args:
        model: The model; whether its parameters are trained is put back.
        parameters: Those whose numbers may change; a copy of them is kept.

    Yields:
        Nothing.
    """
    learning = [(each, each.requires_grad) for each in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        before = [(each, each.detach().clone()) for each in parameters]
        try:
            yield
        finally:
            for parameter, numbers in before:
                if not torch.equal(parameter, numbers):  # what is written to counts as changed, also by the same
                    parameter.data.copy_(numbers)
            for parameter, learns in learning:
                parameter.requires_grad_(learns)


@contextmanager
def told(model: nn.Module) -> Iterator[None]:
    """Say where and why a model can't be run on the input that a user gave.

    Args:
        model: The model.

    Yields:
        Nothing.

    Raises:
        UsageError: If it can't.
        OutOfMemoryError: As it is.
    """
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(explain(model, error)) from error
