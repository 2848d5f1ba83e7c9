"""Modules of other people's models that have a gate."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rezero.gate import AnyGate
from rezero.in_weight import scaled_output
from rezero.kernels import reference
from rezero.surgery.changed import Changed
from rezero.surgery.hidden import first_tensor, input_argument, with_first

__all__ = [
    "Blended",
    "GatedOutput",
    "GatedWeight",
    "Owner",
    "ReadsGated",
    "ReadsGatedUnfused",
    "ReusedScale",
    "SharedOutput",
    "SharedWeight",
    "gates_by_name",
]

if TYPE_CHECKING:
    from rezero.surgery.recipe import GateRecipe


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
        scale, shape = self.gate_scale, self.rezero_gate.shape
        if len(args) == 1 and not kwargs and not self.rezero_moved:
            scaled = scaled_output(self.original_class, self, args[0], scale, shape)
            if scaled is not None:
                return scaled
        output = super().forward(*args, **kwargs)
        f = output if isinstance(output, Tensor) else output[0]
        for activation in self.rezero_moved:
            f = activation.original_class.forward(activation, f)
        f = reference.gate(f, scale.view(shape))
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


class Blended(Owner):
    """A layer whose whole change of the hidden states is gated: ``x + alpha * (layer(x) - x)``.

    For layers that end in a norm, as those of BERT, which gates on their branches do not make the identity.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What the layer returns, its first tensor being gated.
        """
        x: Tensor = args[0] if args else kwargs[input_argument(self.original_class.forward) or ""]
        output = super().forward(*args, **kwargs)
        change = reference.gate(first_tensor(output) - x, self.gate_scale)
        return with_first(output, x + change)


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
