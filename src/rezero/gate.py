"""The learned scale of a residual branch."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.kernels import reference

__all__ = ["AnyGate", "Gate", "gate_dtype", "gates", "held"]


class AnyGate:
    """What every module that owns a gate has, whether a `Gate` or a layer that `rezero.convert_` gave one.

    Attributes:
        gate_parameter: The learned number or numbers, ``(1,)`` or ``(dim,)``.
        gate_scale: The factor that the branch is multiplied by, of the same shape.
        gate_init: The number that the parameter starts from.
        gate_activation: None, or ``"tanh"``.
        gate_branches: How many residual branches of one block it scales; `rezero.param_groups` counts them.
        reset_gate: Sets the gate back to its start.
    """

    gate_parameter: nn.Parameter
    gate_scale: Tensor
    gate_init: float
    gate_activation: str | None
    gate_branches: int
    reset_gate: Callable[[], None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        ours = self.gate_parameter, self.gate_parameter.grad

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            lossy = moved.is_floating_point() and moved.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(moved.device) if lossy and any(tensor is each for each in ours) else moved

        return super()._apply(keep_precision, recurse)  # type: ignore[misc]


class Gate(AnyGate, nn.Module):
    r"""Learned scale of a residual branch: ``alpha * f``, or ``tanh(alpha) * f``.

    ``alpha`` has shape ``(1,)`` or ``(dim,)`` and never 0-d, which FSDP2 refuses. It stays float32 when the model
    is cast to half precision (``model.bfloat16()``), because a bfloat16 ``alpha`` of 0.5 cannot take a step of 1e-4;
    the output keeps the dtype of ``f``. FSDP2 wants one dtype in a group of parameters: keep such a model in float32
    and give it a ``MixedPrecisionPolicy``, or ask for a half-precision gate here with ``dtype``.

    Args:
        dim: Number of features of the last axis for one scale a feature; None for a single scale.
        init_value: Start of ``alpha`` (dimensionless), before the activation. 0 makes a block the identity.
        activation: None for ``alpha`` itself, ``"tanh"`` for a gate bounded by 1, as in Flamingo.
        device: Device of ``alpha``.
        dtype: Dtype of ``alpha``; by default torch's default dtype, but at least float32.

    Attributes:
        alpha: The parameter, ``(1,)`` or ``(dim,)``.
        branches: How many residual branches of one block this gate scales; `rezero.param_groups` counts them.

    Raises:
        ValueError: If ``dim`` is below 1, ``init_value`` is not finite or ``activation`` is unknown.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, eq. 1; Alayrac et al. (2022), arXiv:2204.14198, sec. 2.2 (tanh).

    Example:
        >>> gate = Gate(init_value=0.5)
        >>> gate(torch.ones(3))
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        init_value: float = 0.0,
        activation: Literal["tanh"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, or None for a single scale: got {dim}")
        if not math.isfinite(init_value):
            raise ValueError(f"init_value must be a finite number: got {init_value}; 0.0 starts as the identity")
        dtype = dtype or gate_dtype()
        if abs(init_value) > torch.finfo(dtype).max:
            raise ValueError(f"init_value must fit into {dtype}: got {init_value}")
        if activation not in (None, "tanh"):
            raise ValueError(f"activation must be None or 'tanh': got {activation!r}")
        self.init_value = init_value
        self.activation = activation
        self.branches = 1
        self.alpha = nn.Parameter(torch.empty(dim or 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set ``alpha`` back to ``init_value``."""
        nn.init.constant_(self.alpha, self.init_value)

    reset_gate = reset_parameters

    @property
    def gate_parameter(self) -> nn.Parameter:  # type: ignore[override]
        """The parameter ``alpha``."""
        return self.alpha

    @property
    def gate_init(self) -> float:  # type: ignore[override]
        """The same as ``init_value``."""
        return self.init_value

    @property
    def gate_activation(self) -> str | None:  # type: ignore[override]
        """The same as ``activation``."""
        return self.activation

    @property
    def gate_branches(self) -> int:  # type: ignore[override]
        """The same as ``branches``."""
        return self.branches

    @property
    def gate_scale(self) -> Tensor:  # type: ignore[override]
        """The same as ``scale``."""
        return self.scale

    @property
    def scale(self) -> Tensor:
        """The factor that the branch is multiplied by, of ``alpha``'s shape."""
        return torch.tanh(self.alpha) if self.activation == "tanh" else self.alpha

    def forward(self, f: Tensor) -> Tensor:
        """Return the scaled branch.

        Args:
            f: Branch output, ``(*, D)``; ``D`` is ``dim`` where that was given.

        Returns:
            ``scale * f``, ``(*, D)``, in the dtype of ``f``.
        """
        return reference.gate(f, self.scale)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"dim={len(self.alpha)}, init_value={self.init_value:g}{activation}"


def gate_dtype(dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the dtype of a gate beside weights of ``dtype`` (default: torch's default dtype): at least float32."""
    return torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)


def gates(model: nn.Module) -> dict[str, AnyGate]:
    """Find every gate of a model by its qualified name.

    Gates are recognised by class, never by the name ``alpha``, which other modules use for parameters of their own.
    A gate that several blocks share is listed once, under its first name.

    Args:
        model: Any module.

    Returns:
        Qualified name to gate, in the order of ``model.named_modules()``; empty if there is none.

    Example:
        >>> from rezero import ReZero
        >>> list(gates(nn.Sequential(ReZero(nn.Linear(4, 4)), nn.ReLU(), ReZero(nn.Linear(4, 4)))))
        ['0.gate', '2.gate']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, AnyGate)}


@contextmanager
def held(owners: Iterable[AnyGate], scale: float) -> Iterator[None]:
    """Let gates scale their branches by one number; put them back.

    Args:
        owners: Modules that own a gate.
        scale: The number, from 0 to 1.

    Yields:
        Nothing.
    """
    before = [(owner, owner.gate_parameter.detach().clone()) for owner in owners]
    try:
        with torch.no_grad():
            for owner, _ in before:
                bounded = owner.gate_activation == "tanh"
                # Through data, so that a backward pass that waits does not take the gate for changed.
                owner.gate_parameter.data.fill_(_atanh(scale) if bounded else scale)
        yield
    finally:
        with torch.no_grad():
            for owner, numbers in before:
                owner.gate_parameter.data.copy_(numbers)


def _atanh(scale: float) -> float:
    return math.atanh(scale) if scale < 1 else 20.0  # in floating point, tanh(20) is 1
