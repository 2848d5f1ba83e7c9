"""Thousands of equal residual blocks as one module."""

import copy
from collections.abc import Iterable
from operator import attrgetter
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from rezero.gate import AnyGate
from rezero.kernels.fusing import is_autocast
from rezero.layers.mlp import MLPBlock
from rezero.layers.network import check_sizes
from rezero.layers.transformer import TransformerEncoderLayer
from rezero.residual import ReZero
from rezero.stackable import (
    build_unit,
    check_units,
    draw,
    find_children,
    find_gates,
    find_own,
    find_weight,
    named_class,
    run,
)
from rezero.stacked import Stacked, stack_child

__all__ = ["DeepStack"]


class DeepStack(AnyGate, nn.Module):
    r"""Many equal ReZero blocks in one module, with one parameter a role for all layers.

    Of an `rezero.layers.MLPBlock` it makes ``x + alpha_l * relu(W_l x + b_l)`` for each layer ``l``: what
    ``nn.Sequential(*(ReZero(MLPBlock(dim)) for _ in range(depth)))`` does, without Python a layer. On the CPU, in
    float32, float64, and bfloat16 where the processor multiplies it, a loop in C++ runs forward and backward, compiled
    when it is first used. The batch is split over the threads; with as many threads the rounding is the same each time.
    In bfloat16 it sums over the layers in float32. Elsewhere, in float16, under autocast, ``torch.func`` and for second
    derivatives the layers run one after the other in torch.

    Of an `rezero.layers.TransformerEncoderLayer` it makes layer after layer, each run by the layer's own code on its
    part of the parameters, with a dropout of its own.

    Under ``torch.compile`` the layers of either kind are one operation of one graph (MLP blocks not under autocast),
    and compiling takes as long for 1,000 as for 100. For Transformer layers it is ``scan``, which torch calls a
    prototype; with ``dynamic=True`` it needs ``torch._dynamo.config.specialize_float``, as it refuses the probability
    of a dropout that may change.

    All layers are one gate with a number for each: `rezero.gates` finds it, `rezero.param_groups` counts its branches.

    Args:
        block: The template: an MLPBlock, which is the branch of a block, or a TransformerEncoderLayer, which is a whole
            one. Its sizes, options, dtype and device are taken over, and each layer draws a start of its own by the
            template's rule; the template's own numbers are not used, but for those that its ``reset_parameters``
            leaves alone (of an activation).
        depth: Number of layers ``L``.
        init_value: Start of every ``alpha`` (dimensionless); by default that of the template's gates, or 0. At 0 the
            stack is the identity.
        checkpoint: ``"sqrt"`` to keep less for the backward pass, at the cost of a second forward pass: of MLP blocks
            the activations of about ``3 sqrt(L)`` layers instead of ``2 L``, of Transformer layers the inputs of
            ``sqrt(L)`` segments of ``sqrt(L)`` layers instead of everything. The gradients are the same, bitwise on
            the CPU in float32. Without effect under ``torch.func``; of MLP blocks also under autocast, of Transformer
            layers also under ``torch.compile``.

    Attributes:
        alpha: The gates, ``(L, 1)``, or ``(L, 2)`` for layers with a gate a branch; float32 also in a half-precision
            model.
        weight: ``W`` of MLP blocks, ``(L, D, D)``.
        bias: ``b`` of MLP blocks, ``(L, D)``.
        self_attn: Of Transformer layers, like ``linear1`` and ``linear2``: holds the stacked parameters by the names
            that they have in a layer, ``self_attn.in_proj_weight`` ``(L, 3 D, D)`` and so on.

    Raises:
        TypeError: If ``block`` is neither, or a changed one.
        ValueError: If ``depth`` is below 1, ``init_value`` is not finite, ``checkpoint`` is unknown, or the gates of
            ``block`` differ.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1; sec. 5 for Transformers.

    Example:
        >>> stack, x = DeepStack(MLPBlock(4), 1000), torch.randn(2, 4)
        >>> torch.equal(stack(x), x)
        True
        >>> len(list(stack.parameters()))
        3
        >>> stack = DeepStack(TransformerEncoderLayer(4, 2, 8, batch_first=True), 100)
        >>> x = torch.randn(2, 3, 4)
        >>> torch.equal(stack(x, is_causal=True), x)
        True
        >>> stack.self_attn.in_proj_weight.shape, stack.alpha.shape
        (torch.Size([100, 12, 4]), torch.Size([100, 2]))
    """

    alpha: nn.Parameter
    gate_activation = None

    def __init__(
        self,
        block: MLPBlock | TransformerEncoderLayer,
        depth: int,
        *,
        init_value: float | None = None,
        checkpoint: Literal["sqrt"] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(depth=depth)
        if checkpoint not in (None, "sqrt"):
            raise ValueError(f"checkpoint must be None or 'sqrt': got {checkpoint!r}")
        unit = build_unit(block, init_value)
        for name, places in find_own(unit).items():
            values = torch.cat([unit.get_parameter(place).detach() for place in places])
            self.register_parameter(name, nn.Parameter(values.expand(depth, *values.shape).clone()))
        for name, child in find_children(unit).items():
            self.add_module(name, stack_child(child, depth))
        self._places = {name: [name] for name, _ in self.named_parameters()} | find_own(unit)
        self.init_value, self.checkpoint = next(iter(find_gates(unit).values())).init_value, checkpoint
        self._unit = (unit.to("meta"),)  # in a tuple, so that it is none of the modules of the stack
        self.reset_parameters()

    @classmethod
    def from_modules(cls, modules: Iterable[nn.Module], *, checkpoint: Literal["sqrt"] | None = None) -> Self:
        """Stack blocks that are there already, with copies of their values.

        Args:
            modules: Blocks ``ReZero(MLPBlock(dim))``, or TransformerEncoderLayers, that differ in nothing but their
                values, such as an ``nn.Sequential`` of them. They stay as they are.
            checkpoint: As for the class.

        Returns:
            The stack.

        Raises:
            TypeError: If ``modules`` is no collection, or a module is no such block or a changed one.
            ValueError: If there is none, an MLP block has dropout, a gate has ``tanh`` or a number a feature, a block
                differs from the first, two share a parameter, or only one gate of a layer is frozen.
        """
        if not isinstance(modules, Iterable):
            raise TypeError(
                "expected the blocks, such as a list or an nn.Sequential of them: got one "
                f"{named_class(modules)}; of an encoder pass its layers"
            )
        units = list(modules)
        check_units(units)
        template = copy.deepcopy(units[0]).to("meta")
        start = next(iter(find_gates(template).values())).init_value
        block = template.branch if isinstance(template, ReZero) else template
        stack = cls(cast(MLPBlock, block), len(units), init_value=start, checkpoint=checkpoint)
        for name, places in stack._places.items():
            learns = {units[0].get_parameter(place).requires_grad for place in places}
            if len(learns) > 1:
                raise ValueError(
                    f"expected {' and '.join(places)} to learn both or neither, as one tensor holds them: one of them "
                    "is frozen; freeze both, or keep the layers apart"
                )
            rows = [torch.cat([unit.get_parameter(place).detach() for place in places]) for unit in units]
            _put(stack, name, nn.Parameter(torch.stack(rows), requires_grad=learns.pop()))
        for module in stack.modules():
            if isinstance(module, DeepStack | Stacked):
                module.training = units[0].training
        return stack

    def to_modules(self) -> nn.Sequential:
        """Return the same blocks one by one, with copies of the values: what `from_modules` takes."""
        blocks = nn.Sequential(*(copy.deepcopy(self._find_unit()) for _ in range(len(self.alpha))))
        for name, places in self._places.items():
            parameter = attrgetter(name)(self)
            for block, row in zip(blocks, parameter.detach(), strict=True):
                for place, value in zip(places, row.chunk(len(places)), strict=True):
                    _put(block, place, nn.Parameter(value.clone(), requires_grad=parameter.requires_grad))
        blocks.training = self.training
        return blocks

    def reset_parameters(self) -> None:
        """Draw every layer as the template draws itself, and set ``alpha`` back to ``init_value``."""
        with torch.no_grad():
            draw(self._unit[0], self._stacked())
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
        """The number of branches of all layers: one a layer of MLP blocks, two of Transformer layers."""
        return len(self.alpha) * sum(gate.branches for gate in find_gates(self._unit[0]).values())

    def forward(
        self,
        x: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return what the last layer gives.

        Args:
            x: ``(*, D)``, in the dtype of the weights; for Transformer layers laid out as they ask for.
            src_mask: For Transformer layers, passed on to each of them, as are the others.
            src_key_padding_mask: Mask of the keys.
            is_causal: Whether position ``t`` sees positions up to ``t`` only.

        Returns:
            ``(*, D)``, in the dtype of ``x``.

        Raises:
            ValueError: If ``x`` has another width or dtype than the weights, or is on another device.
        """
        unit, stacked = self._find_unit(), self._stacked()
        weight = stacked[find_weight(unit)]
        dim = weight.shape[-1]
        if x.shape[-1:] != (dim,):
            raise ValueError(f"expected an input of width {dim}, (*, {dim}): got {tuple(x.shape)}")
        if x.device != weight.device:
            raise ValueError(f"expected an input on {weight.device}, where the weights are: got one on {x.device}")
        if x.dtype != weight.dtype and not is_autocast(x):
            raise ValueError(
                f"expected an input in the dtype of the weights, {weight.dtype}: got {x.dtype}; convert it with "
                ".to(), or call under torch.autocast"
            )
        masks = {"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return run(unit, stacked, x, masks, segments=self.checkpoint == "sqrt")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as every module does."""
        self._unit[0].train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        checkpoint = f", checkpoint={self.checkpoint!r}" if self.checkpoint else ""
        dim, depth = self._stacked()[find_weight(self._unit[0])].shape[-1], len(self.alpha)
        return f"dim={dim}, depth={depth}, init_value={self.init_value:g}{checkpoint}"

    def _find_unit(self) -> nn.Module:
        """Return the block of one layer, in the mode of the stack."""
        unit = self._unit[0]
        return unit if unit.training == self.training else unit.train(self.training)

    def _stacked(self) -> dict[str, Tensor]:
        """Return the tensors of the places, ``(L, *shape)``."""
        stacked: dict[str, Tensor] = {}
        for name, places in self._places.items():
            parameter = attrgetter(name)(self)
            stacked |= zip(places, parameter.split(1, 1) if len(places) > 1 else [parameter], strict=True)
        return stacked


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, role = name.rpartition(".")
    setattr(module.get_submodule(owner), role, parameter)
