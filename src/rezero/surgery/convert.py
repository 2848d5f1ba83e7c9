"""Put a gate on every residual branch of a model that somebody else wrote."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.optim import default_alpha_lr
from rezero.surgery.apply import apply_, check_convertible, check_forwards, check_unwrapped, drop_
from rezero.surgery.example import as_example
from rezero.surgery.find import sort_additions, trace_learning
from rezero.surgery.fit import check_intact
from rezero.surgery.layer_scale import choose_scales, neutral
from rezero.surgery.plan import plan
from rezero.surgery.recipe import Recipe, Undo
from rezero.surgery.saved import recall, remember, write
from rezero.surgery.sites import Residuals, counted
from rezero.surgery.undisturbed import unwritten
from rezero.surgery.verify import observe
from rezero.surgery.verify import verify as verify_
from rezero.surgery.watch import read_elsewhere, tensors_of
from rezero.surgery.zero import wake_

__all__ = ["Conversion", "check_optimizer", "convert_"]


@dataclass(frozen=True)
class Conversion:
    """What `convert_` changed.

    Attributes:
        model: The converted model.
        residuals: The additions that are gated, and those that were left out.
        recipe: The changes, as data.
        reset: Parameters that ended a branch with zeros and were set to their usual start.
        silent: Modules whose branch is zero on the example although no parameter of it is.
        kept: Removed norms that have their parameters although these were to be dropped: other code reads them.
    """

    model: nn.Module
    residuals: Residuals
    recipe: Recipe
    reset: tuple[str, ...]
    silent: tuple[str, ...]
    kept: tuple[str, ...]
    _undo: Undo

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates' parameters, which are new but for reused LayerScales."""
        return self.recipe.parameters

    def undo(self) -> None:
        """Put the very same model back: its classes, its state-dict keys, and, untrained, its outputs. Once is enough.

        A trained model loses its gates, as if they were 1: use `fold_` to keep them.

        Raises:
            UsageError: If the model has been compiled, distributed, given hooks, pruned or folded since, or if a module
                that was converted has been replaced or parametrized.
        """
        if recall(self.model).silent:
            raise UsageError("branches were pruned since the conversion: call undo() of what prune_ returned first")
        if self._undo.steps and len(recall(self.model).gates) < len(self.recipe.gates):
            raise UsageError("gates were folded into the weights since, and folding stays: build the model anew")
        check_unwrapped(self.model)
        check_intact(self.model, recall(self.model))
        check_forwards(self.model, self.recipe)
        self._undo()

    def save(self, path: str | Path) -> None:
        """Write the weights and the recipe, as they are now, for `rezero.load_converted_`.

        Args:
            path: A folder, made if it is not there.

        Raises:
            UsageError: If a module that was converted has been replaced since, or the folder can't be written.
        """
        write(self.model, path)

    def _start(self) -> str:
        gate = self.recipe.gates[0]
        if gate.activation is None:
            return f"{gate.init_value:g}"
        return f"{gate.activation}({gate.init_value:g}) = {math.tanh(gate.init_value):.3g}"

    def __str__(self) -> str:
        gates, norms = len(self.gates), len(self.recipe.norms)
        gated = f"{counted(len(self.residuals.branches), 'branch')} gated by {counted(gates, 'gate')}"
        lines = [f"{gated}, starting at {self._start()}"]
        if norms:
            lines.append(f"{counted(norms, 'norm')} removed")
        if self.recipe.dropped:
            lines.append(f"{norms - len(self.kept)} of these lost their parameters")
        if self.kept:
            lines.append(f"kept, because other code reads their parameters: {', '.join(self.kept)}")
        if scaled := [branch.leaf for branch in self.residuals.branches if branch.scale]:
            reused = sum(gate.reused for gate in self.recipe.gates)
            fate = "are the gates now" if reused else "are kept under the gates"
            lines.append(
                f"scaled already, by parameters that {fate}: {counted(len(scaled), 'branch')}, see 'scaled by'"
            )
        if self.reset:
            lines.append(f"were zero, and start as usual now: {', '.join(self.reset)}")
        if self.silent:
            lines.append(f"zero on this example, so that their gates could not be tried: {', '.join(self.silent)}")
        return "\n".join([*lines, "", str(self.residuals)])


def convert_(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    gate: Literal["scalar", "channel", "tanh"] = "scalar",
    share: Literal["sublayer", "layer"] = "sublayer",
    init_value: float = 0.0,
    norms: Literal["keep", "remove"] = "keep",
    drop: bool = False,
    activation_after: Literal["keep", "move"] = "keep",
    zero_last: Literal["reset", "refuse"] = "reset",
    layer_scale: Literal["keep", "reuse", "refuse"] = "keep",
    long_skips: bool = False,
    repeated: Literal["refuse", "tie"] = "refuse",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    verify: bool = True,
) -> Conversion:
    r"""Switch ReZero on in a model of any class: every ``x + f(x)`` becomes ``x + alpha * f(x)``, in place.

    The modules that return the branches change their class for a gated one, so the keys of the state dict stay and only
    ``alpha`` is new. Then the model is held against the original; if a check fails, everything is undone.

    ``init_value = 0`` is for training from the start; it erases what a trained model has learned. For trained weights
    ``init_value = 1`` leaves every output as it was, bit for bit, with a scalar or channel gate and all else kept.

    Args:
        model: The model.
        args: Example arguments of its ``forward``: a tensor, or a tuple.
        kwargs: Example keyword arguments.
        gate: One number a branch, one a ``channel``, or one number through ``tanh``.
        share: A gate for each ``sublayer``, or one for a whole ``layer``, as in the paper's Transformer.
        init_value: Start of the gates (dimensionless); of a ``tanh`` gate before the tanh: 1 is a factor of 0.76.
        norms: Whether the norms before and after gated branches stay. Removed ones return their input; their parameters
            stay in the state dict, frozen.
        drop: Whether the parameters of removed norms go, from the state dict too. A norm of which other code reads a
            parameter keeps them, and is named in ``kept``.
        activation_after: Whether an activation after the addition stays, or moves into the branch as in the paper's
            ResNet: after the addition it is not the identity for negative ``x``.
        zero_last: What is done where a branch outputs only zeros, because its last layer, gain or scale starts at zero:
            behind a gate at zero it would never learn. ``reset`` gives it its usual start, ``refuse`` is an error. With
            another ``init_value`` such branches stay as they are.
        layer_scale: What becomes of a LayerScale that a branch ends with already, ``x + gamma * f(x)``. ``keep`` puts
            the gate on top, ``x + alpha * gamma * f(x)``: the default, because it fits every model and leaves what a
            trained one has learned. For training from the start, two small factors (``gamma = 1e-6`` behind
            ``alpha = 0``) learn late: there ``reuse`` makes ``gamma`` itself the gate, one number a channel that starts
            at ``init_value``, where the LayerScale is a module of its own. The model's own initialisation gives a
            reused one its usual start again. ``refuse`` is an error.
        long_skips: Whether skips over other resolutions, as in a U-Net, are gated too.
        repeated: What is done with a module that is used several times, each time as a branch, such as the one layer of
            ALBERT: ``refuse`` is an error, ``tie`` gives it one gate for all its uses, as its parameters are tied.
        filter_fn: Is given a branch's module and its qualified name, and says whether the branch gets a gate.
        optimizer: Gets the gates as a group of their own, without decay, at the default rate of `rezero.param_groups`.
            One made before would not know them otherwise, and they would never move. It must have no learning-rate
            scheduler yet, since most of torch's count groups.
        verify: Whether the converted model is held against the original.

    Returns:
        What was changed, with ``undo()``.

    Raises:
        TypeError: If ``model`` is not a module, ``kwargs`` no dictionary, or ``optimizer`` no optimizer.
        ValueError: If an option is unknown, or ``drop`` is asked for where norms are kept.
        UsageError: If the model can't be converted, whole and surely: why, and where. It is left as it was.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, eq. 1 and table 1.

    Example:
        >>> import rezero
        >>> model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), torch.randn(1, 3, 8)
        >>> rezero.convert_(model, x).gates
        ('self_attn.out_proj.alpha', 'linear2.alpha')
        >>> torch.equal(model(x), x)
        True
    """
    args, kwargs = as_example(args, kwargs)
    _check_options(
        init_value,
        drop,
        gate=gate,
        share=share,
        norms=norms,
        activation_after=activation_after,
        zero_last=zero_last,
        layer_scale=layer_scale,
        repeated=repeated,
    )
    check_convertible(model)
    check_optimizer(optimizer, model)
    real = not any(parameter.is_meta for parameter in model.parameters())
    fresh = real and init_value == 0
    runs = fresh or (real and verify)  # with its numbers, later on
    with unwritten(model) if runs else nullcontext():
        traced = trace_learning(model, args, kwargs, numbers=runs)
    found = sort_additions(traced, filter_fn, long_skips=long_skips, repeated=repeated)
    _check_found(found)
    scales = choose_scales(model, found, layer_scale)
    if scales and optimizer is not None:
        raise UsageError(
            f"layer_scale='reuse': the optimizer may hold {next(iter(scales))!r} already, and decay it: make it after "
            "the conversion, from rezero.param_groups"
        )
    options = {"gate": gate, "share": share, "norms": norms, "activation_after": activation_after}
    recipe = plan(model, found, scales, init_value=init_value, **options)
    kept: tuple[str, ...] = ()
    undo = Undo()
    try:
        with neutral(model, recipe):
            wake = partial(wake_, model, args, kwargs, found, reset=zero_last == "reset", undo=undo)
            reset, silent = wake() if fresh else ((), ())
            before = observe(model, args, kwargs) if verify and real else None
        apply_(model, recipe, undo)
        if drop:
            recipe, kept = _drop(model, recipe, args, kwargs, undo)
        if before is not None:
            unchanged = norms == "keep" and activation_after == "keep"
            verify_(model, args, kwargs, found, before, unchanged=unchanged)
        remember(model, recipe, undo)
        if optimizer is not None:
            _add_to(optimizer, model, recipe, undo)
    except BaseException:
        undo()
        raise
    return Conversion(model, found, recipe, reset, silent, kept, undo)


_OPTIONS = {
    "gate": ("scalar", "channel", "tanh"),
    "share": ("sublayer", "layer"),
    "norms": ("keep", "remove"),
    "activation_after": ("keep", "move"),
    "zero_last": ("reset", "refuse"),
    "layer_scale": ("keep", "reuse", "refuse"),
    "repeated": ("refuse", "tie"),
}


def _check_options(init_value: float, drop: bool, **options: str) -> None:
    for name, value in options.items():
        if value not in _OPTIONS[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _OPTIONS[name]))}: got {value!r}")
    if drop and options["norms"] == "keep":
        raise ValueError("drop=True is for norms that are removed: it needs norms='remove', got norms='keep'")
    if not (isinstance(init_value, Real) and math.isfinite(init_value)):
        raise ValueError(f"init_value must be a finite number: got {init_value!r}")
    if abs(init_value) > torch.finfo(torch.float32).max:
        raise ValueError(f"init_value must fit into torch.float32: got {init_value}")


def check_optimizer(optimizer: Any, model: nn.Module, *, scheduled: bool = False) -> None:
    """Refuse an optimizer that can't get parameters of a model.

    Args:
        optimizer: The optimizer; None for none.
        model: The model.
        scheduled: Whether it may have a scheduler.

    Raises:
        TypeError: If it is none.
        UsageError: If it trains another model, takes one group only, or has a scheduler.
    """
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer: got {type(optimizer).__name__}")
    ours = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError("the optimizer holds none of the model's parameters: give the one that trains this model")
    if isinstance(optimizer, getattr(torch.optim, "Muon", ())):
        raise UsageError("Muon takes matrices alone, and a gate is none: give the gates to an optimizer beside it")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS takes no second group of parameters: make it after the conversion")
    if not scheduled and any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError(
            "the optimizer has a learning-rate scheduler, which could not take one more group: convert first, then "
            "make the scheduler; if it has none any more, delete 'initial_lr' from its param_groups"
        )


def _check_found(found: Residuals) -> None:
    refused = [each for each in found.left_out if each.refused]
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UsageError(
            f"the addition in {refused[0].name or 'the model'!r}{more} can't be gated: {refused[0].reason}; leave it "
            "out with filter_fn, which is asked about that module, or see rezero.find_residuals for all of them"
        )
    if not len(found):
        raise UsageError(f"expected residual additions, found none{f'{chr(10)}{found}' if found.left_out else ''}")


def _drop(
    model: nn.Module, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], undo: Undo
) -> tuple[Recipe, tuple[str, ...]]:
    """Drop the parameters of removed norms; return the recipe with that, and the norms that keep them."""
    theirs = {norm: tensors_of(model, norm) for norm in recipe.norms}
    read = read_elsewhere(model, sum(theirs.values(), ()), args, kwargs)
    kept = tuple(norm for norm in recipe.norms if read.intersection(theirs[norm]))
    dropped = tuple(name for norm in recipe.norms if norm not in kept for name in theirs[norm])
    drop_(model, dropped, undo)
    frozen = tuple(name for name in recipe.frozen if name not in dropped)
    return replace(recipe, dropped=dropped, frozen=frozen), kept


def _add_to(optimizer: torch.optim.Optimizer, model: nn.Module, recipe: Recipe, undo: Undo) -> None:
    parameters = {name: model.get_parameter(name) for name in recipe.parameters}
    with_names = any("param_names" in group for group in optimizer.param_groups)
    before = list(optimizer.param_groups)

    def put_back() -> None:
        ours = {id(parameter) for parameter in parameters.values()}
        kept = [group for group in optimizer.param_groups if not ours & {id(each) for each in group["params"]}]
        optimizer.param_groups[:] = kept if len(kept) >= len(before) else before
        for parameter in parameters.values():
            optimizer.state.pop(parameter, None)

    undo.steps.append(put_back)
    params = list(parameters.items()) if with_names else list(parameters.values())
    group: dict[str, Any] = {"params": params, "weight_decay": 0.0, "name": "gates"}
    known = {id(parameter) for parameter in model.parameters()}
    first = next(each for each in before if any(id(parameter) in known for parameter in each["params"]))
    if first.get("lr") is not None:  # some optimizers find their own
        group["lr"] = default_alpha_lr(model, first["lr"])
    optimizer.add_param_group(group)
