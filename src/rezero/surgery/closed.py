"""Hold a model without some branches against the same model with their gates at 0."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.gate import held
from rezero.surgery.cached import second_step
from rezero.surgery.contribution import Batch
from rezero.surgery.gated import Owner
from rezero.surgery.outputs import Mode, all_outputs, output_of, same, tensors
from rezero.surgery.recipe import GateRecipe
from rezero.surgery.undisturbed import unfused

__all__ = ["Closed", "cacheless"]

_EVALUATION = Mode(training=False, grad=False)


@contextmanager
def cacheless(model: nn.Module) -> Iterator[None]:
    """Let a model return no ``past_key_values``: what it keeps there is for itself.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    kind: Any = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = kind.forward(self, *args, **kwargs)
        if not isinstance(output, Mapping):
            return output
        return {name: value for name, value in output.items() if name != "past_key_values"}

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    try:
        yield
    finally:
        model.__class__ = kind


class Closed:
    """A model with some gates at 0, as a measure for the one without their branches.

    Args:
        model: The model with these gates, whatever their numbers.
        batches: Arguments and keyword arguments of its forward.
        gates: The gates.

    Attributes:
        change: How far its outputs are from those of the model with open gates: the root mean square of the difference,
            relative to that of the output.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], gates: Sequence[GateRecipe]) -> None:
        self.model, self.batches = model, batches
        self.runs = all_outputs(model, *batches[0])
        opened = _outputs(model, batches)
        owners = [module for gate in gates if isinstance(module := model.get_submodule(gate.leaf), Owner)]
        with held(owners, 0.0):
            self.outputs, self.continued = _outputs(model, batches), _continued(model, *batches[0])
        self.change = _distance(opened, self.outputs)

    def check(self) -> None:
        """Check that the model, which is without the branches now, has the outputs that it had with the gates at 0.

        Raises:
            UsageError: If it has not, or fails where it ran.
        """
        for mode, output in all_outputs(self.model, *self.batches[0]).items():
            if isinstance(output, Exception) and not isinstance(self.runs[mode], Exception):
                raise UsageError(f"without these branches the model fails {mode}: {output}") from output
        for expected, got in zip(self.outputs, _outputs(self.model, self.batches), strict=True):
            if not same(expected, got, exact=True):
                raise UsageError("without these branches the model's output is another than with their gates at 0")
        if not same(self.continued, _continued(self.model, *self.batches[0]), exact=True):
            raise UsageError("without these branches the model goes on from its cache in another way than before")


def _outputs(model: nn.Module, batches: Sequence[Batch]) -> list[list[Tensor]]:
    """Run a model in evaluation, without torch's fused layers, which round differently."""
    with unfused(), cacheless(model):
        outputs = [output_of(model, *batch, _EVALUATION) for batch in batches]
    for output in outputs:
        if isinstance(output, Exception):
            raise UsageError(f"the model fails in evaluation: {output}") from output
    return [output for output in outputs if isinstance(output, list)]


def _continued(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the outputs of a second step, which goes on from the cache of a first; none if the model makes none."""
    with second_step(model, args, kwargs) as step, cacheless(model):
        return [] if step is None else [tensor.detach() for tensor in tensors(model(**step))]


def _distance(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]) -> float:
    """Return the root mean square of the difference of outputs, relative to that of the first ones."""
    pairs = [pair for one, other in zip(before, after, strict=True) for pair in zip(one, other, strict=True)]
    pairs = [(a.double(), b.double()) for a, b in pairs if a.is_floating_point()]
    difference = math.hypot(*(float(torch.linalg.vector_norm(a - b)) for a, b in pairs))
    size = math.hypot(*(float(torch.linalg.vector_norm(a)) for a, _ in pairs))
    return 0.0 if difference == 0 else difference / size if size else math.inf
