"""Hold a converted model's gradients against the original's: closed gates let none through, and each can learn."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.gate import held
from rezero.surgery.backward import Gradients, differentiate, projection, started
from rezero.surgery.gated import Owner, gates_by_name
from rezero.surgery.outputs import Mode
from rezero.surgery.passed import Passed
from rezero.surgery.sites import Residuals
from rezero.surgery.skips import silent_branches
from rezero.surgery.traced import Trace, Value

__all__ = ["Learning", "check_gradients", "gated_only", "learning"]

Learning = dict[bool, frozenset[str] | Exception]  # in training: which parameters have a gradient, or what went wrong


def learning(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Learning:
    """Differentiate a model in training and in evaluation; it is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Names of the parameters that have a gradient in evaluation and in training, or the error that was raised.
    """
    found: Learning = {}
    for training in (False, True):
        try:
            found[training] = _present(_gradients(model, args, kwargs, training=training))
        except Exception as error:
            found[training] = error
    return found


def _present(gradients: Gradients) -> frozenset[str]:
    return frozenset(name for name, gradient in gradients.items() if gradient is not None)


def _gradients(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, training: bool) -> Gradients:
    return differentiate(model, projection(args, kwargs), training=training)[1]


def gated_only(traced: Trace, gates: Collection[str]) -> frozenset[str]:
    """Name the parameters of which nothing reaches the outputs but through a gate.

    Args:
        traced: A pass of a converted model.
        gates: Names of its gates' parameters.

    Returns:
        The names.
    """
    reached: set[str] = set()
    seen: set[Value] = set()
    open_values = [value for value in traced.values if value.escapes]
    while open_values:
        value = open_values.pop()
        if value in seen:
            continue
        seen.add(value)
        reached |= {value.parameter} if value.parameter else set()
        inputs = value.op.inputs if value.op is not None else ()
        scales = [each for each in inputs if _is_gate(each, gates) or _is_gated_weight(each, gates)]
        open_values += scales or inputs
    return frozenset(value.parameter for value in traced.values if value.parameter) - reached


def _is_gate(value: Value, gates: Collection[str]) -> bool:
    """Return whether a value was made from gates alone."""
    seen: set[Value] = set()
    open_values = [value]
    while open_values:
        each = open_values.pop()
        inputs = each.op.inputs if each.op is not None else ()
        if each.data or not (inputs or each.parameter in gates):
            return False
        open_values += [one for one in inputs if one not in seen]
        seen.update(inputs)
    return True


def _is_gated_weight(value: Value, gates: Collection[str]) -> bool:
    """Return whether a value is the product of a gate and a parameter, which what reads it is scaled by."""
    inputs = value.op.inputs if value.op is not None else ()
    kinds = [_is_gate(each, gates) for each in inputs]
    return any(kinds) and all(gate or each.parameter for gate, each in zip(kinds, inputs, strict=True))


def check_gradients(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    before: Learning,
    inside: Mapping[bool, frozenset[str]],
    *,
    unchanged: bool,
) -> None:
    """Check that closed gates let no gradient through, and that every gate can learn.

    Args:
        model: The converted model, its gates at 0.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: The additions that were gated.
        before: `learning` of the original.
        inside: In training and in evaluation, the parameters that only gates lead to the outputs.
        unchanged: Whether gates at 1 give the original's outputs.

    Raises:
        UsageError: If the model can't be differentiated, if a parameter inside gated branches has a gradient, if
            another has lost or got one, or if a gate could never learn.
    """
    check = _Check(model, args, kwargs, gates_by_name(model))
    modes = {training: names for training, names in before.items() if not isinstance(names, Exception)}
    if not modes:
        raise UsageError(
            f"the backward pass of the original fails, so that no gate could learn: {_line(before[True])}; mend that, "
            "or convert with verify=False"
        )
    gradients = {training: check.differentiate(training=training) for training in modes}
    if not any(_present(each) for each in gradients.values()):
        raise UsageError(
            "no output of the model has a gradient, so that no gate could learn: it runs without gradients, detaches "
            "what it returns, or returns no floating-point numbers; give an example on which it returns what is "
            "trained on, or convert with verify=False"
        )
    for training, each in gradients.items():
        _check_branches(each, inside.get(training, frozenset()) & found.parameters["branch"], training)
        check.present(each, modes[training], training, unchanged=unchanged)
    alive = {name for each in gradients.values() for name, gradient in each.items() if _moves(gradient)}
    check.learns(found, check.gates.keys() - alive, list(modes))


def _line(error: object) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _check_branches(gradients: Gradients, inside: frozenset[str], training: bool) -> None:
    for name in sorted(inside & gradients.keys()):
        gradient = gradients[name]
        if gradient is not None and _moves(gradient.nan_to_num(0.0, 0.0, 0.0)):
            raise UsageError(
                f"with all gates at 0 {Mode(training, grad=True)} {name!r} has a gradient, although only gated "
                "branches use it: it gets one past its gate, by a hook or a function with a gradient of its own"
            )


@dataclass(frozen=True)
class _Check:
    """Asks a converted model for its gradients."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    gates: Mapping[str, Owner]

    def differentiate(self, *, training: bool) -> Gradients:
        try:
            return _gradients(self.model, self.args, self.kwargs, training=training)
        except Exception as error:
            raise UsageError(
                f"{Mode(training, grad=True)} the backward pass of the converted model fails where the original's "
                f"ran: {_line(error)}"
            ) from error

    def present(self, gradients: Gradients, before: frozenset[str], training: bool, *, unchanged: bool) -> None:
        """Compare which parameters have a gradient, be it zero: trainers on several devices count on them.

        Where a model chooses its way by its numbers, as mixtures of experts do, it is asked again with open gates.

        Raises:
            UsageError: If they are others than in the original.
        """
        passed = tuple(f"{name}." for name, module in self.model.named_modules() if isinstance(module, Passed))
        names = {name for name in gradients if name not in self.gates and not name.startswith(passed)}
        if not unchanged or not names & (_present(gradients) ^ before):
            return
        with held(self.gates.values(), 1.0):
            again = _present(self.differentiate(training=training))
        for name in sorted(names & (again ^ before)):
            had, has = ("has a gradient", "has none") if name in before else ("has no gradient", "has one")
            when = Mode(training, grad=True)
            raise UsageError(f"{when} {name!r} {had} in the original and {has} in the converted model")

    def learns(self, found: Residuals, stuck: set[str], modes: Sequence[bool]) -> None:
        """Open the gates that can learn until the others, which lie behind them, can as well.

        A gate before a head that starts at zero gets its gradient after the head's first step. One whose branch is zero
        on the example can't be tried.

        Raises:
            UsageError: If one could never learn.
        """
        for start, training in product((False, True), modes):
            moved = stuck
            while moved:
                opened = [gate for name, gate in self.gates.items() if name not in stuck]
                with held(opened, 1.0), started(self._others()) if start else nullcontext():
                    gradients = self.differentiate(training=training)
                moved = {name for name in stuck if _moves(gradients[name])}
                stuck = stuck - moved
        quiet = self._quiet(found) if stuck else set()
        for name in (name for name in self.gates if name in stuck and not name.startswith(tuple(quiet))):
            raise UsageError(
                f"the gate {name!r} gets no gradient and could never learn: what it scales does not reach the outputs, "
                "or is detached on the way; leave it out with filter_fn, or give an example on which the outputs "
                "depend on it"
            )

    def _others(self) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self.model.named_parameters() if name not in self.gates)

    def _quiet(self, found: Residuals) -> set[str]:
        """Name the modules of the branches that are zero even with open gates."""
        with held(self.gates.values(), 1.0):
            silent = silent_branches(self.model, self.args, self.kwargs, found)
        return {f"{leaf}." for branch in silent for leaf in (branch.leaf, *branch.leaves)}
