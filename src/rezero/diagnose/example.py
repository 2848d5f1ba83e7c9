"""What a diagnosis asks of the example input that it is given."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rezero.errors import UsageError
from rezero.surgery.example import as_example
from rezero.surgery.outputs import tensors

__all__ = ["batch_size", "check_devices", "check_not_empty", "read_input"]


def read_input(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read a model's input: one argument, several as a tuple, or by name as a dictionary.

    Args:
        x: The input.

    Returns:
        Arguments in order, and by name.
    """
    return ((), dict(x)) if isinstance(x, Mapping) else as_example(x, None)


def batch_size(given: Any) -> int:
    """Return the number of examples: the length of the first axis of the first tensor.

    Args:
        given: Arguments of a model.

    Returns:
        The number.

    Raises:
        UsageError: If there is no tensor with an axis, or no example.
    """
    axes = [each.shape for each in tensors(given) if each.ndim]
    if not axes:
        raise UsageError("expected an input with a batch along its first axis, got no such tensor")
    if not axes[0][0]:
        raise UsageError("expected a batch of one example or more, got an empty one")
    return axes[0][0]


def check_not_empty(given: Any) -> None:
    """Refuse a batch without an example, on which everything is cut off.

    Args:
        given: Arguments of a model.

    Raises:
        UsageError: If it has none.
    """
    if any(each.ndim for each in tensors(given)):
        batch_size(given)


def check_devices(model: nn.Module, given: Any, wanted: str) -> None:
    """Refuse a model and an input that do not lie on one device, or have no numbers.

    Args:
        model: The model.
        given: Its arguments.
        wanted: What is to be measured, for errors.

    Raises:
        UsageError: If that is so.
    """
    home = next((parameter.device for parameter in model.parameters()), None)
    for tensor in tensors(given):
        if home is not None and tensor.device != home:
            raise UsageError(f"the input is on {tensor.device}, the model on {home}: move one of them with .to()")
        if tensor.is_meta:
            raise UsageError(f"the input is on the meta device: without numbers there are no {wanted}")
    if home is not None and home.type == "meta":
        raise UsageError(f"the model is on the meta device: without numbers it has no {wanted}")
