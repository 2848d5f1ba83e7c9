"""Hold a converted model against the original: the real module, in every mode that can take another path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rezero.gate import held
from rezero.surgery.cached import continued, second_step
from rezero.surgery.gated import ReadsGated, gates_by_name
from rezero.surgery.gradients import Learning, check_gradients, gated_only, learning
from rezero.surgery.outputs import MODES, Mode, Outputs, all_outputs, compare, output_of, same
from rezero.surgery.sites import Residuals
from rezero.surgery.skips import check_skips
from rezero.surgery.undisturbed import unfused, unwritten

__all__ = ["Original", "observe", "verify"]

_EVALUATION = Mode(training=False, grad=False)


@dataclass(frozen=True)
class Original:
    """What a model did before its conversion.

    Attributes:
        outputs: What it returned in every mode.
        continued: What it returned in a second step, with the cache of the first; None if it makes none.
        learning: Which parameters had a gradient.
    """

    outputs: Outputs
    continued: list[Tensor] | Exception | None
    learning: Learning


def observe(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Original:
    """Run a model in every way that its converted one will be run; it is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        What it did.

    Raises:
        UsageError: If it writes into its parameters.
    """
    with unwritten(model):
        outputs = all_outputs(model, args, kwargs)
    return Original(outputs, continued(model, args, kwargs), learning(model, args, kwargs))


def verify(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    before: Original,
    *,
    unchanged: bool,
) -> None:
    """Check that every gate gates its branch, and nothing else.

    With the gates at 1 the outputs are the original's. With the gates at 0 every addition returns its skip, also where
    the model takes a faster path in evaluation or goes on from a cache; what only gated branches use has no gradient;
    and every gate can learn.

    Args:
        model: The converted model.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: The additions that were converted.
        before: What the original did.
        unchanged: Whether the gates are all that was changed, so that gates at 1 must give the original's outputs.

    Raises:
        UsageError: If a check fails: which, and where.
    """
    gates = gates_by_name(model)
    if unchanged:
        with held(gates.values(), 1.0):
            _check_outputs(model, args, kwargs, before)
    with held(gates.values(), 0.0):
        inside = _check_additions(model, args, kwargs, found, before)
        _check_fast_path(model, args, kwargs, before.outputs)
        check_gradients(model, args, kwargs, found, before.learning, inside, unchanged=unchanged)


def _check_outputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], before: Original) -> None:
    # A frozen layer is fused in evaluation even with gradients enabled; with a gate to learn it is not.
    fused = any(isinstance(module, ReadsGated) for module in model.modules())
    for mode, output in all_outputs(model, args, kwargs).items():
        exact = not fused or mode != (False, True)
        compare(before.outputs[mode], output, f"with all gates at 1 {mode}", exact=exact)
    if isinstance(before.continued, list):
        again = continued(model, args, kwargs) or []
        compare(before.continued, again, "with all gates at 1 and the cache of a first step", exact=True)


def _check_additions(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals, before: Original
) -> dict[bool, frozenset[str]]:
    """Check the skips in every mode; name what only gates lead to the outputs."""
    inside: dict[bool, frozenset[str]] = {}
    for mode in (mode for mode in MODES if not isinstance(before.outputs[mode], Exception)):
        traced = check_skips(model, args, kwargs, found, mode)
        inside[mode.training] = gated_only(traced, gates_by_name(model))
    if isinstance(before.continued, list):
        with second_step(model, args, kwargs) as step:
            check_skips(model, (), step or {}, found, _EVALUATION, when="going on from a cache")
    return inside


def _check_fast_path(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], before: Outputs) -> None:
    """Compare evaluation as it is with evaluation without torch's fused layers, and with gradients."""
    fused = output_of(model, args, kwargs, _EVALUATION)
    with unfused():
        plain = output_of(model, args, kwargs, _EVALUATION)
    if not isinstance(before[_EVALUATION], Exception):
        compare(plain, fused, "with all gates at 0 on the fused path", exact=False)
    graded = Mode(training=False, grad=True)
    if same(before[_EVALUATION], before[graded]):
        output = output_of(model, args, kwargs, graded)
        compare(fused, output, "with all gates at 0 and gradients enabled in evaluation", exact=False)
