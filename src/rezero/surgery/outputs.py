"""What a model returns: its tensors, in every mode, and whether two models return the same."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rezero.errors import UsageError
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["MODES", "Mode", "Outputs", "all_outputs", "compare", "output_of", "same", "tensors"]


class Mode(NamedTuple):
    """How a model is run.

    Attributes:
        training: In training mode, or in evaluation.
        grad: With gradients enabled, or without.
    """

    training: bool
    grad: bool

    def __str__(self) -> str:
        return f"in {'training' if self.training else 'evaluation'} {'with' if self.grad else 'without'} gradients"


MODES = tuple(Mode(training, grad) for training, grad in product((False, True), (False, True)))
Outputs = dict[Mode, list[Tensor] | Exception]


def tensors(output: Any) -> list[Tensor]:
    """List the tensors of what a model returned.

    Args:
        output: A tensor, nested containers, dataclasses, or plain objects such as caches and distributions.

    Returns:
        The tensors, in the order of their places.
    """
    return list(_tensors(output, {}))


def _tensors(output: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield from leaf.unbind() if leaf.is_nested else [leaf]
        elif id(leaf) not in seen:
            seen[id(leaf)] = leaf  # and keeps it alive, so that no other gets its id
            for part in _parts(leaf):
                yield from _tensors(part, seen)


def _parts(leaf: Any) -> list[Any]:
    """Return what a container that torch does not know holds."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, list | tuple | set | frozenset):
        return list(leaf)
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return [getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)]
    if callable(leaf) or not hasattr(leaf, "__dict__"):  # modules, classes and functions; numbers and text
        return []
    return list(vars(leaf).values())


def output_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], mode: Mode) -> list[Tensor] | Exception:
    """Run a model from a fixed seed; it is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.
        mode: How to run it.

    Returns:
        The tensors that came out, or the error that it raised.
    """
    with undisturbed(model), switched(model, training=mode.training), torch.set_grad_enabled(mode.grad):
        torch.manual_seed(0)
        args, kwargs = copied((args, kwargs))
        try:
            return [tensor.detach() for tensor in tensors(model(*args, **kwargs))]
        except Exception as error:
            return error


def all_outputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Outputs:
    """Run a model in training and evaluation, with gradients and without; it is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Mode to the tensors that came out, or to the error that the model raised.
    """
    return {mode: output_of(model, args, kwargs, mode) for mode in MODES}


def compare(expected: list[Tensor] | Exception, got: list[Tensor] | Exception, when: str, *, exact: bool) -> None:
    """Hold a converted model's outputs against the original's, where that ran.

    Args:
        expected: What the original returned or raised.
        got: What the converted model returned or raised.
        when: The circumstances, for errors.
        exact: Whether they must be equal, or equal to rounding.

    Raises:
        UsageError: If they differ.
    """
    if isinstance(expected, Exception):
        return
    if isinstance(got, Exception):
        raise UsageError(f"{when} the converted model fails where the original ran: {got}") from got
    if not same(expected, got, exact=exact):
        raise UsageError(f"{when} the converted model's output differs from the original's")


def same(one: list[Tensor] | Exception, other: list[Tensor] | Exception, *, exact: bool = False) -> bool:
    """Return whether two runs gave the same tensors.

    Args:
        one: What a model returned or raised.
        other: What another one did.
        exact: Whether they must be equal, or equal to rounding.

    Returns:
        Whether both ran and agree.
    """
    if isinstance(one, Exception) or isinstance(other, Exception) or len(one) != len(other):
        return False
    return all(_equal(a, b, exact=exact) for a, b in zip(one, other, strict=True))


def _equal(one: Tensor, other: Tensor, *, exact: bool) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    rtol, atol = (0.0, 0.0) if exact else (1e-4, 1e-5)
    return torch.equal(one, other) or torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
