"""Which modules a model calls in a pass, and with what."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.example import advice
from rezero.surgery.hidden import input_argument
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["watch"]


def watch(
    model: nn.Module, modules: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[Tensor, Any]]:
    """Run a model in evaluation, without gradients, and note what goes in and out of some of its modules.

    Args:
        model: The model, which is left as it was.
        modules: The modules, by their names.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        First argument and output of those that are called, by their names.

    Raises:
        UsageError: If the model fails.
    """
    calls: dict[str, tuple[Any, Any]] = {}

    def note(name: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        first: Any = (
            given[0] if given else named.get(input_argument(module.forward) or "", next(iter(named.values()), None))
        )
        calls.setdefault(name, (first, output))

    hooks = []
    try:
        with undisturbed(model), switched(model, training=False), torch.no_grad():
            for name, module in modules.items():  # the model's own hooks are aside now
                hooks.append(module.register_forward_hook(partial(note, name), with_kwargs=True))
            args, kwargs = copied((args, kwargs))
            model(*args, **kwargs)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the model fails on the example: {error}{advice(args, kwargs)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls
