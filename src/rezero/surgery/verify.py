"""Hold a converted model against the original: the real module, in every mode that can take another path."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rezero.errors import UsageError
from rezero.gate import AnyGate
from rezero.surgery.find import sort_additions
from rezero.surgery.gated import ReadsGated
from rezero.surgery.linear import is_addition
from rezero.surgery.sites import Residuals, Site
from rezero.surgery.trace import Op, trace
from rezero.surgery.undisturbed import switched, undisturbed, unfused

__all__ = ["Outputs", "all_outputs", "silent_branches", "verify"]

MODES = tuple(product((False, True), (False, True)))  # training, with gradients
Outputs = dict[tuple[bool, bool], list[Tensor] | Exception]


def all_outputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Outputs:
    """Run a model in training and evaluation, with gradients and without; it is left as it was.

    Args:
        model: The model.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Mode to the tensors that came out, or to the error that the model raised.
    """
    return {mode: _outputs(model, args, kwargs, *mode) for mode in MODES}


def _outputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool, grad: bool
) -> list[Tensor] | Exception:
    with undisturbed(model), switched(model, training=training), torch.set_grad_enabled(grad):
        torch.manual_seed(0)
        try:
            return [leaf.detach() for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
        except Exception as error:
            return error


def verify(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    before: Outputs,
    *,
    unchanged: bool,
    alive: set[str],
) -> None:
    """Check that every gate gates its branch, and nothing else.

    With the gates at 1 the outputs are the original's; with the gates at 0 every addition returns its skip, also where
    the model takes a faster path in evaluation; and every gate that is not inside another branch has a gradient then.

    Args:
        model: The converted model.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: The additions that were converted.
        before: `all_outputs` of the original.
        unchanged: Whether the gates are all that was changed, so that gates at 1 must give the original's outputs.
        alive: Modules that end a branch and whose gate must have a gradient at 0.

    Raises:
        UsageError: If a check fails: which, and where.
    """
    gates = {name: module for name, module in model.named_modules() if isinstance(module, AnyGate)}
    # A frozen layer is fused in evaluation even with gradients enabled; with a gate to learn it is not.
    fused = any(isinstance(module, ReadsGated) for module in model.modules())
    if unchanged:
        with _scales(gates.values(), 1.0):
            for mode, output in all_outputs(model, args, kwargs).items():
                exact = not fused or mode != (False, True)
                _compare(before[mode], output, f"with all gates at 1 {_words(mode)}", exact=exact)
    with _scales(gates.values(), 0.0):
        for training, grad in MODES:
            if isinstance(before[training, grad], Exception):
                continue
            _check_skips(model, args, kwargs, found, training=training, grad=grad)
        _check_fast_path(model, args, kwargs, before)
    if alive:
        modes = [training for training in (False, True) if not isinstance(before[training, True], Exception)]
        _check_gradients(model, args, kwargs, found, gates, alive, modes)


def _ends(name: str, branches: set[str]) -> bool:
    return name in branches or name.removesuffix(".out_proj") in branches  # the projection inside an attention


def _words(mode: tuple[bool, bool]) -> str:
    training, grad = mode
    return f"in {'training' if training else 'evaluation'} {'with' if grad else 'without'} gradients"


def _compare(expected: list[Tensor] | Exception, got: list[Tensor] | Exception, when: str, *, exact: bool) -> None:
    if isinstance(expected, Exception):
        return
    if isinstance(got, Exception):
        raise UsageError(f"{when} the converted model fails where the original ran: {got}") from got
    same = len(expected) == len(got) and all(
        a.shape == b.shape
        and (
            torch.equal(a, b)
            or torch.allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5, equal_nan=True)
        )
        for a, b in zip(expected, got, strict=True)
    )
    if not same:
        raise UsageError(f"{when} the converted model's output differs from the original's")


def silent_branches(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    *,
    training: bool = False,
    grad: bool = False,
) -> list[Site]:
    """Run a model and name the additions whose branch is zero everywhere.

    Args:
        model: The model, converted or not; it is left as it was.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: Its additions.
        training: Whether to run it in training mode.
        grad: Whether to run it with gradients enabled.

    Returns:
        The sites with a branch that outputs only zeros.

    Raises:
        UsageError: If none of the additions happens in this mode, or others do. Layers that are dropped at random in
            training are no other path.
    """
    wanted = {(site.name, *place): site for site in found for place in site.added}
    silent: dict[tuple[str, int, int, int], bool] = {}
    counts: dict[Any, int] = {}

    def look(op: Op, operands: list[Tensor]) -> None:
        if not is_addition(op):
            return
        number = counts[op.call] = counts.get(op.call, -1) + 1
        for index, operand in enumerate(operands[:2]):
            silent[op.call.name, op.call.number, number, index] = not bool(operand.any())

    traced = trace(model, args, kwargs, training=training, grad=grad, on_add=look)
    when = _words((training, grad))
    if not silent.keys() & wanted.keys():
        raise UsageError(f"{when} none of the additions happens: the model takes another path then")
    gated = {branch.leaf for branch in found.branches}
    there = sort_additions(traced, found.filter_fn, long_skips=found.long_skips, repeated=found.repeated)
    if others := [branch.leaf for branch in there.branches if branch.leaf not in gated]:
        raise UsageError(
            f"{when} the model takes another path, on which {others[0]!r} ends a branch that the example's path has "
            "not: give an example on which it takes all of them"
        )
    loud = {site for key, site in wanted.items() if not silent.get(key, True)}
    return [site for site in found if site not in loud]


def _check_skips(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals, *, training: bool, grad: bool
) -> None:
    silent = silent_branches(model, args, kwargs, found, training=training, grad=grad)
    if loud := [site.name for site in found if site not in silent]:
        raise UsageError(
            f"with all gates at 0 {_words((training, grad))} the addition in {loud[0]!r} does not return its skip"
        )


def _check_fast_path(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], before: Outputs) -> None:
    """Compare evaluation as it is with evaluation without torch's fused layers, and with gradients."""
    fused = _outputs(model, args, kwargs, training=False, grad=False)
    with unfused():
        plain = _outputs(model, args, kwargs, training=False, grad=False)
    if not isinstance(before[False, False], Exception):
        _compare(plain, fused, "with all gates at 0 on the fused path", exact=False)
    if _agree(before[False, False], before[False, True]):
        graded = _outputs(model, args, kwargs, training=False, grad=True)
        _compare(fused, graded, "with all gates at 0 and gradients enabled in evaluation", exact=False)


def _agree(one: list[Tensor] | Exception, other: list[Tensor] | Exception) -> bool:
    try:
        _compare(one, other, "", exact=False)
    except UsageError:
        return False
    return not isinstance(one, Exception)


def _check_gradients(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    gates: Mapping[str, AnyGate],
    alive: set[str],
    modes: Sequence[bool],
) -> None:
    """Look for gates that could never learn.

    Behind other closed gates a branch may read zeros, and gets its turn later; in evaluation batch norms that have seen
    no data may let a signal shrink to nothing.

    Raises:
        UsageError: If there is one.
    """
    inner = {leaf for branch in found.branches for leaf in branch.leaves if leaf != branch.leaf}
    stuck = [name for name in gates if name not in inner and _ends(name, alive)]
    for training, value in product(modes if stuck else (), (0.0, 1.0)):
        parameters = [gates[name].gate_parameter for name in stuck]
        with _scales(gates.values(), value), switched(model, training=training):
            gradients = _gradients(model, args, kwargs, parameters)
        stuck = [
            name for name, gradient in zip(stuck, gradients, strict=True) if gradient is not None and not gradient.any()
        ]
        if not stuck:
            return
    if modes and stuck:
        raise UsageError(f"the gate of {stuck[0]!r} gets no gradient: what it scales does not reach the output")


def _gradients(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[nn.Parameter]
) -> Sequence[Tensor | None]:
    """Differentiate a random projection of the outputs; None for what they do not depend on at all."""
    with undisturbed(model), torch.enable_grad():
        outputs = [
            leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        if not outputs:
            return [None] * len(parameters)
        loss = torch.stack(
            [(leaf.double() * torch.randn_like(leaf, dtype=torch.float64)).sum() for leaf in outputs]
        ).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)


@contextmanager
def _scales(gates: Any, value: float) -> Iterator[None]:
    """Set every gate so that it scales by a number; put them back."""
    parameters = [gate.gate_parameter for gate in gates]
    before = [parameter.detach().clone() for parameter in parameters]
    tanh = [gate for gate in gates if getattr(getattr(gate, "rezero_gate", None), "activation", None) == "tanh"]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(value)
            for gate in tanh:
                if value:
                    gate.gate_parameter.fill_(20.0)  # whose tanh is 1
        yield
    finally:
        with torch.no_grad():
            for parameter, numbers in zip(parameters, before, strict=True):
                parameter.copy_(numbers)
