"""Classes that modules of other people's models are changed to: the same module, with a gate or passed by."""

import types
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.gate import AnyGate
from rezero.kernels import reference

__all__ = [
    "Changed",
    "Dropped",
    "GatedOutput",
    "GatedWeight",
    "Owner",
    "Passed",
    "ReadsGated",
    "ReadsGatedUnfused",
    "ReusedScale",
    "SharedOutput",
    "SharedWeight",
    "Silent",
    "gates_by_name",
    "has_own_forward",
    "restore_class",
    "rezero_attributes",
    "swap_class",
]

if TYPE_CHECKING:
    from rezero.surgery.recipe import GateRecipe, SilentRecipe

    _Module = nn.Module
else:  # a mixin, which the class of any module can follow
    _Module = object


class Changed(_Module):
    """A module of somebody's class, changed by `rezero.convert_`.

    Its class is made on the spot, from one of the classes below and the module's own, so `isinstance` still holds, the
    keys of the state dict stay, and no hook stands in the way of a compiler.
    """

    original_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class made on the spot can't be found by its name, so a copy or a pickle names what it is made from.
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        _, arguments, *rest = reduced
        change = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        return _rebuild, (change, self.original_class, tuple(arguments[1:])), *rest


class Owner(Changed, AnyGate):
    """A layer that owns a gate."""

    rezero_gate: "GateRecipe"

    @property
    def gate_parameter(self) -> nn.Parameter:  # type: ignore[override]
        """The parameter of the gate."""
        parameter: nn.Parameter = getattr(self, self.rezero_gate.parameter)
        return parameter

    @property
    def gate_init(self) -> float:  # type: ignore[override]
        """The start of the gate."""
        return self.rezero_gate.init_value

    @property
    def gate_activation(self) -> str | None:  # type: ignore[override]
        """The activation of the gate."""
        return self.rezero_gate.activation

    @property
    def gate_branches(self) -> int:  # type: ignore[override]
        """How many branches it scales: its own, and those of the layers that share it."""
        return self.rezero_gate.branches

    @property
    def gate_scale(self) -> Tensor:  # type: ignore[override]
        """What this layer's branch is multiplied by."""
        return torch.tanh(self.gate_parameter) if self.gate_activation == "tanh" else self.gate_parameter

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows: the layer's own, and the factor of its branch."""
        name, factor = self.rezero_gate.parameter, self.gate_scale.detach()
        if self.rezero_gate.activation is not None:
            name = f"{self.rezero_gate.activation}({name})"
        if factor.is_meta:
            return _joined(super().extra_repr(), f"{name}: {len(factor)}")
        low, high = factor.min().item(), factor.max().item()
        return _joined(super().extra_repr(), f"{name}={low:.3g}" if low == high else f"{name}={low:.3g} to {high:.3g}")

    def reset_gate(self) -> None:
        """Set the gate back to its start."""
        nn.init.constant_(self.gate_parameter, self.gate_init)

    def reset_parameters(self) -> None:
        """Draw the layer's weights anew, as its own class does, and set the gate back."""
        own = getattr(super(), "reset_parameters", None)
        if own is not None:
            own()
        self.reset_gate()


def gates_by_name(model: nn.Module) -> dict[str, Owner]:
    """Find the gates that a conversion made.

    Args:
        model: A converted model.

    Returns:
        The layers that own them, by the qualified names of the gates' parameters.
    """
    return {
        f"{name}.{module.rezero_gate.parameter}".lstrip("."): module
        for name, module in model.named_modules()
        if isinstance(module, Owner)
    }


class _Sharer(Changed):
    """A layer that uses the gate of another one."""

    rezero_gate: "GateRecipe"
    rezero_owner: tuple[AnyGate]  # in a tuple, for otherwise the owner would be registered twice

    @property
    def gate_scale(self) -> Tensor:
        """What this layer's branch is multiplied by."""
        return self.rezero_owner[0].gate_scale

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows: the layer's own, and whose gate it uses."""
        return _joined(super().extra_repr(), f"gate of {self.rezero_gate.owner or 'the model'}")


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


class _ScalesOutput(Changed):
    rezero_gate: "GateRecipe"
    rezero_moved: tuple[Any, ...] = ()  # the activation from behind the addition
    gate_scale: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module and scale what it returns.

        Args:
            *args: As the module's own class takes them.
            **kwargs: Likewise.

        Returns:
            Its output, or the first item of it, multiplied by the gate.
        """
        output = super().forward(*args, **kwargs)
        f = output if isinstance(output, Tensor) else output[0]
        for activation in self.rezero_moved:
            f = activation.original_class.forward(activation, f)
        f = reference.gate(f, self.gate_scale.view(self.rezero_gate.shape))
        if isinstance(output, Tensor):
            return f
        return type(output)(f, *output[1:]) if hasattr(output, "_fields") else type(output)((f, *output[1:]))


class _ScalesWeight(Changed):
    """A layer whose weights other code reads: its gate is multiplied into them while that code runs.

    The rest of the time ``weight`` and ``bias`` are the parameters themselves, so that an initialisation can fill them.
    """

    gate_scale: Tensor
    rezero_reading: bool = False

    @property
    def weight(self) -> Any:
        """The weight, scaled while `ReadsGated` runs."""
        return self._read("weight")

    @weight.setter
    def weight(self, value: Any) -> None:  # as the hooks of torch's older weight norm do
        vars(self)["weight"] = value

    @property
    def bias(self) -> Any:
        """The bias, likewise."""
        return self._read("bias")

    def _read(self, name: str) -> Any:
        own = self._parameters if name in self._parameters else vars(self)
        value = own[name] if name in own else getattr(super(), name)  # computed, where it is parametrised
        if value is None or not self.rezero_reading:
            return value
        return reference.gate(value, self.gate_scale.view(-1, *[1] * (value.ndim - 1)))


class GatedOutput(_ScalesOutput, Owner):
    """A module whose output is multiplied by its own gate."""


class SharedOutput(_ScalesOutput, _Sharer):
    """A module whose output is multiplied by another's gate."""


class ReusedScale(Owner):
    """A LayerScale whose own parameter is the gate."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module; a gate that is more precise than the branch does not change its dtype.

        Args:
            *args: The branch.
            **kwargs: Or the branch by its name.

        Returns:
            The branch, multiplied by the parameter.
        """
        (f,) = (*args, *kwargs.values())
        output: Tensor = super().forward(*args, **kwargs)
        return output.to(f.dtype)


class GatedWeight(_ScalesWeight, Owner):
    """A layer whose weights are multiplied by its own gate."""


class SharedWeight(_ScalesWeight, _Sharer):
    """A layer whose weights are multiplied by another's gate."""


class ReadsGated(Changed):
    """A module that reads the weights of layers inside it without calling them.

    ``nn.TransformerEncoderLayer`` does so in evaluation, on its fused path. Two threads cannot run it at once.
    """

    rezero_weights: tuple[_ScalesWeight, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on scaled weights.

        Args:
            *args: As the module's own class takes them.
            **kwargs: Likewise.

        Returns:
            Its output.
        """
        for layer in self.rezero_weights:
            layer.rezero_reading = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            for layer in self.rezero_weights:
                layer.rezero_reading = False


class ReadsGatedUnfused(ReadsGated):
    """A Transformer layer without norms: its fused path would apply them, so it is never taken."""

    @property
    def activation_relu_or_gelu(self) -> int:
        """0, which tells the layer that its activation is unknown to the fused path."""
        return 0


class Passed(Changed):
    """A module that returns its input.

    Its parameters stay, frozen, for the state dict and for those who read them.
    """

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input.

        Args:
            x: Any tensor.
            *_: Ignored.
            **__: Ignored.

        Returns:
            ``x``.
        """
        return x


class _Empty(Changed):
    _is_hf_initialized = True  # transformers draws no weights for what is marked so

    def reset_parameters(self) -> None:
        """Do nothing: the parameters are gone."""

    def extra_repr(self) -> str:
        """Return nothing of what the module's own class shows, which may be gone."""
        return ""


class Dropped(_Empty, Passed):
    """A module that returns its input and has no parameters."""


class Silent(_Empty):
    """A module that returns zeros, in the shape and the container of what it returned, and computes nothing."""

    rezero_silent: "SilentRecipe"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros.

        Args:
            *args: As the module's own class takes them. The first tensor gives shape, dtype and device.
            **kwargs: Likewise.

        Returns:
            Zeros, alone or followed by None in place of what else the module returned.
        """
        x = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        shape = list(x.shape)
        if self.rezero_silent.axis is not None:
            shape[self.rezero_silent.axis] = self.rezero_silent.size
        zeros = x.new_zeros(shape)
        return (zeros, *[None] * (self.rezero_silent.items - 1)) if self.rezero_silent.items else zeros


_ATTRIBUTES = ("rezero_gate", "rezero_owner", "rezero_moved", "rezero_weights", "rezero_reading", "rezero_silent")


@cache
def _changed_class(change: type[Changed], original: Any) -> type[Changed]:
    try:
        made: Any = types.new_class(f"{change.__name__}{original.__name__}", (change, original))
    except Exception as error:  # somebody's __init_subclass__ may refuse in any way
        raise UsageError(
            f"expected a class that a gated one can be derived from, got {original.__name__}: {error}; leave its "
            "branches out with filter_fn, or put them into a module around it"
        ) from error
    made.__module__, made.__doc__ = original.__module__, original.__doc__
    made.original_class = original
    made.__init__ = _init_of(original)
    if hasattr(original, "__deepcopy__"):
        made.__deepcopy__ = _deepcopy_of(original)
    return made  # type: ignore[no-any-return]


def _init_of(original: Any) -> Any:
    """Return what lets ``type(layer)(...)`` make a new layer of the original class: it is nobody's branch."""

    @wraps(original.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = original
        original.__init__(self, *args, **kwargs)

    return init


def _deepcopy_of(original: Any) -> Any:
    """Return what refuses a copy that its own class made anew, and so without the gate."""

    @wraps(original.__deepcopy__)
    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        twin = original.__deepcopy__(self, memo)
        if type(twin) is not type(self):
            raise UsageError(
                f"{original.__name__}.__deepcopy__ makes a {type(twin).__name__} without what the conversion changed: "
                "let it copy vars(self), or copy the model before the conversion"
            )
        return twin

    return deepcopy


def swap_class(module: nn.Module, change: type[Changed]) -> None:
    """Change a module's class in place.

    Args:
        module: Any module.
        change: What becomes of it.
    """
    original = module.original_class if isinstance(module, Changed) else type(module)
    module.__class__ = _changed_class(change, original)  # type: ignore[arg-type]


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module runs a ``forward`` that is not its class's, as with the hooks of accelerate.

    Args:
        module: Any module. After accelerate has removed a hook, the class's own is set on it.

    Returns:
        Whether a change of its class would be passed by.
    """
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def restore_class(module: nn.Module) -> None:
    """Give a changed module its own class back, and take away what the change had added beside its parameters.

    Args:
        module: A module whose class `swap_class` changed.
    """
    module.__class__ = module.original_class  # type: ignore[assignment]
    for name in ("forward", *_ATTRIBUTES):
        vars(module).pop(name, None)


def rezero_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a changed module knows of its change."""
    return {name: vars(module)[name] for name in _ATTRIBUTES if name in vars(module)}


def _rebuild(change: type[Changed], original: type[nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    kind = _changed_class(change, original)  # type: ignore[arg-type]
    return kind.__new__(kind, *arguments)
