"""Thousands of equal residual blocks as one module."""

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from rezero.gate import AnyGate, Gate, gate_dtype
from rezero.kernels.deep_stack import deep_stack
from rezero.layers.mlp import MLPBlock
from rezero.layers.network import check_sizes
from rezero.residual import ReZero

__all__ = ["DeepStack"]


class DeepStack(AnyGate, nn.Module):
    r"""Many equal ReZero blocks, ``x + alpha_l * relu(W_l x + b_l)`` for each layer ``l``, in three parameters.

    Does what ``nn.Sequential(*(ReZero(MLPBlock(dim)) for _ in range(depth)))`` does, without Python a layer: on the
    CPU, in float32 and float64, a loop in C++ runs forward and backward, compiled when it is first used. The batch is
    split over the threads; with as many threads the rounding is the same each time. Elsewhere, in half precision,
    under autocast, ``torch.func`` and for second derivatives the layers run one after the other in torch.

    All layers are one gate with a number for each: `rezero.gates` finds it, `rezero.param_groups` counts its branches.

    Args:
        block: The template of the branch, an `rezero.layers.MLPBlock`. Its width, gain, dtype and device are taken
            over, and each layer draws a start of its own by the template's rule; the template's own numbers are not
            used.
        depth: Number of layers ``L``.
        init_value: Start of every ``alpha`` (dimensionless). 0 makes the stack the identity.
        checkpoint: ``"sqrt"`` to keep the activations of about ``3 sqrt(L)`` layers for the backward pass instead of
            ``2 L``, at the cost of a second forward pass. The gradients are the same, bitwise on the CPU in float32.
            Without effect under autocast and ``torch.func``.

    Attributes:
        weight: ``W``, ``(L, D, D)``.
        bias: ``b``, ``(L, D)``.
        alpha: The gates, ``(L, 1)``, float32 also in a half-precision model.

    Raises:
        TypeError: If ``block`` is no MLPBlock.
        ValueError: If ``depth`` is below 1, ``init_value`` is not finite or ``checkpoint`` is unknown.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1.

    Example:
        >>> stack, x = DeepStack(MLPBlock(4), 1000), torch.randn(2, 4)
        >>> torch.equal(stack(x), x)
        True
        >>> len(list(stack.parameters()))
        3
    """

    gate_activation = None

    def __init__(
        self, block: MLPBlock, depth: int, *, init_value: float = 0.0, checkpoint: Literal["sqrt"] | None = None
    ) -> None:
        super().__init__()
        _check_branch(block)
        check_sizes(depth=depth)
        if checkpoint not in (None, "sqrt"):
            raise ValueError(f"checkpoint must be None or 'sqrt': got {checkpoint!r}")
        weight, bias = block.linear.weight, block.linear.bias
        gate = Gate(init_value=init_value, device=weight.device, dtype=gate_dtype(weight.dtype))
        self.gain, self.init_value, self.checkpoint = block.gain, init_value, checkpoint
        self.weight = nn.Parameter(weight.new_empty(depth, *weight.shape))
        self.bias = nn.Parameter(bias.new_empty(depth, *bias.shape))
        self.alpha = nn.Parameter(gate.alpha.new_empty(depth, 1))
        self.reset_parameters()

    @classmethod
    def from_modules(cls, modules: Iterable[nn.Module], *, checkpoint: Literal["sqrt"] | None = None) -> Self:
        """Stack blocks that are there already, with copies of their values.

        Args:
            modules: Blocks ``ReZero(MLPBlock(dim))`` that differ in nothing but their values, such as an
                ``nn.Sequential`` of them. They stay as they are.
            checkpoint: As for the class.

        Returns:
            The stack.

        Raises:
            TypeError: If a module is no such block.
            ValueError: If there is none, one has dropout, ``tanh`` or a number a feature in its gate, one differs from
                the first, or two share a parameter.
        """
        blocks: list[Any] = list(modules)
        _check_blocks(blocks)
        first = blocks[0]
        template = MLPBlock(first.branch.linear.in_features, gain=first.branch.gain, device="meta")
        stack = cls(template, len(blocks), init_value=first.gate.init_value, checkpoint=checkpoint)
        for name, place in _PLACES.items():
            values = [block.get_parameter(place) for block in blocks]
            stacked = torch.stack([each.detach() for each in values])
            setattr(stack, name, nn.Parameter(stacked, requires_grad=values[0].requires_grad))
        return stack.train(first.training)

    def to_modules(self) -> nn.Sequential:
        """Return the same blocks one by one, with copies of the values: ``ReZero(MLPBlock(dim))`` for each layer."""
        branch = MLPBlock(self.weight.shape[-1], gain=self.gain, device="meta")
        template = ReZero(branch, gate=Gate(init_value=self.init_value, device="meta"))
        blocks = nn.Sequential(*(copy.deepcopy(template) for _ in range(len(self.weight))))
        for layer, block in enumerate(blocks):
            for name, place in _PLACES.items():
                parameter, (owner, _, role) = self.get_parameter(name), place.rpartition(".")
                value = nn.Parameter(parameter[layer].detach().clone(), requires_grad=parameter.requires_grad)
                setattr(block.get_submodule(owner), role, value)
        return blocks.train(self.training)

    def reset_parameters(self) -> None:
        """Draw every layer as an `rezero.layers.MLPBlock` is drawn, and set ``alpha`` back to ``init_value``."""
        dim = self.weight.shape[-1]
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(dim))  # Xavier-normal
        nn.init.uniform_(self.bias, -1 / math.sqrt(dim), 1 / math.sqrt(dim))
        self.reset_gate()

    def reset_gate(self) -> None:
        """Set every ``alpha`` back to ``init_value``."""
        nn.init.constant_(self.alpha, self.init_value)

    @property
    def gate_parameter(self) -> nn.Parameter:  # type: ignore[override]
        """The parameter ``alpha``."""
        return self.alpha

    @property
    def gate_scale(self) -> Tensor:  # type: ignore[override]
        """The same as ``alpha``."""
        return self.alpha

    @property
    def gate_init(self) -> float:  # type: ignore[override]
        """The same as ``init_value``."""
        return self.init_value

    @property
    def gate_branches(self) -> int:  # type: ignore[override]
        """The number of layers."""
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer gives.

        Args:
            x: ``(*, D)``, in the dtype of the weights.

        Returns:
            ``(*, D)``, in the dtype of ``x``.

        Raises:
            ValueError: If ``x`` has another width or dtype than the weights.
        """
        dim = self.weight.shape[-1]
        if x.shape[-1:] != (dim,):
            raise ValueError(f"expected an input of width {dim}, (*, {dim}): got {tuple(x.shape)}")
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"expected an input in the dtype of the weights, {self.weight.dtype}: got {x.dtype}; convert it with "
                ".to(), or call under torch.autocast"
            )
        return deep_stack(x, self.weight, self.bias, self.alpha, segments=self.checkpoint == "sqrt")

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        checkpoint = f", checkpoint={self.checkpoint!r}" if self.checkpoint else ""
        return f"dim={self.weight.shape[-1]}, depth={len(self.weight)}, init_value={self.init_value:g}{checkpoint}"


_PLACES = {
    "weight": "branch.linear.weight",
    "bias": "branch.linear.bias",
    "alpha": "gate.alpha",
}  # in a ReZero(MLPBlock)


def _check_branch(block: object) -> None:
    if type(block) is not MLPBlock or type(block.linear) is not nn.Linear:
        hint = "; give the branch without ReZero around it" if isinstance(block, ReZero) else ""
        raise TypeError(
            "a stack is made of unchanged rezero.layers.MLPBlock, the only kind that it can run so far: got "
            f"{type(block).__name__}{hint}"
        )


def _check_blocks(blocks: list[Any]) -> None:
    facts = [_facts(block, place) for place, block in enumerate(blocks)]
    if not blocks:
        raise ValueError("expected at least one block ReZero(MLPBlock(dim)), got none")
    for place, each in enumerate(facts):
        for name, value in each.items():
            if value != facts[0][name]:
                raise ValueError(
                    f"blocks of a stack must be equal but for their values: {name} is {facts[0][name]} in block 0 "
                    f"and {value} in block {place}; stack those that are equal, one stack after the other"
                )
    if len({id(each) for block in blocks for each in block.parameters()}) < 3 * len(blocks):
        raise ValueError("blocks of a stack must not share parameters, as each layer of a stack has its own")


def _facts(block: object, place: int) -> dict[str, object]:
    """Refuse a block that can't be stacked; tell what must be equal in all."""
    if type(block) is not ReZero or type(block.gate) is not Gate:
        raise TypeError(f"expected blocks ReZero(MLPBlock(dim)): block {place} is {type(block).__name__}")
    _check_branch(block.branch)
    if block.dropout.p or block.gate.activation or block.gate.alpha.shape != (1,):
        raise ValueError(
            f"expected blocks without dropout, whose gate is one number without an activation: block {place} is {block}"
        )
    facts: dict[str, object] = {
        "training": block.training,
        "init_value": block.gate.init_value,
        "gain": block.branch.gain,
    }
    for name, place_of in _PLACES.items():
        parameter = block.get_parameter(place_of)
        for fact in ("shape", "dtype", "device", "requires_grad"):
            facts[f"{name}.{fact}"] = getattr(parameter, fact)
    return facts
