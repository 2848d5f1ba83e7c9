"""Steps of the gates that are never too large, whatever their learning rate."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from rezero.optim import branches_by_gate

__all__ = ["HeldGates", "hold_gates"]


class HeldGates:
    """What `hold_gates` returns: `remove` lets the steps go again.

    Args:
        optimizer: The optimizer.
        parameters: The gates' parameters that it trains, and how many branches each scales.
        most: Largest sum over all branches of what one step changes their scales by.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Counter[nn.Parameter], most: float) -> None:
        self.most = most
        together: dict[Any, list[tuple[nn.Parameter, float]]] = {}
        for parameter, branches in parameters.items():
            share = branches / parameter.numel()  # of a gate with a scale a feature their mean counts
            together.setdefault(_place(parameter), []).append((parameter, share))
        self._together = [_Together(each) for each in together.values()]
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._shorten),
        ]

    def remove(self) -> None:
        """Let the optimizer take steps of any size from now on."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        for each in self._together:
            each.remember()

    @torch.no_grad()
    def _shorten(self, *_: Any) -> None:
        sums = [each.moved() for each in self._together]
        moved = torch.stack([each.to(sums[0].device) for each in sums]).sum()
        if moved.device.type == "cpu" and moved <= self.most:  # elsewhere the question would wait for the device
            return
        back = (1 - self.most / moved).clamp(min=0)
        for each in self._together:
            each.take_back(back)


class _Together:
    """Gates on one device, or sharded in one way."""

    def __init__(self, gates: list[tuple[nn.Parameter, float]]) -> None:
        self.parameters = [parameter for parameter, _ in gates]
        sizes = [part.numel() for part in self._parts()]
        shares = [share for (_, share), size in zip(gates, sizes, strict=True) for _ in range(size)]
        self.sizes, self.shares = sizes, torch.tensor(shares, device=self.parameters[0].device)

    def _parts(self) -> list[Tensor]:
        """Return what this process has of the gates; writing into it writes into them."""
        if _is_sharded(self.parameters[0]):
            return [parameter.to_local() for parameter in self.parameters]  # type: ignore[attr-defined]
        return list(self.parameters)

    def _flat(self) -> Tensor:
        return torch.cat([part if part.ndim == 1 else part.reshape(-1) for part in self._parts()])

    def remember(self) -> None:
        self._before = self._flat()

    def moved(self) -> Tensor:
        """Sum what all processes have moved their parts by since."""
        self._step = self._flat() - self._before
        moved = (self._step.abs() * self.shares).sum()
        first: Any = self.parameters[0]
        if not _is_sharded(first):
            return moved
        from torch.distributed.tensor import DTensor, Partial, Replicate  # slow to import

        parts = [Partial() if each.is_shard() else Replicate() for each in first.placements]
        return DTensor.from_local(moved, first.device_mesh, parts).full_tensor()

    def take_back(self, share: Tensor) -> None:
        """Undo a share of the step."""
        back = self._step * share.to(self._step.device)
        parts = self._parts()
        undone = [each.view_as(part) for each, part in zip(back.split(self.sizes), parts, strict=True)]
        torch._foreach_sub_(parts, undone)


def _place(parameter: nn.Parameter) -> Any:
    if _is_sharded(parameter):
        sharded: Any = parameter
        return sharded.device_mesh, sharded.placements
    return parameter.device


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def hold_gates(optimizer: torch.optim.Optimizer, model: nn.Module, *, most: float = 1.0) -> HeldGates:
    r"""Let no step of an optimizer change the gates by more than ``most`` in all; a larger step is made smaller.

    The first steps move all ``alpha`` the same way at once, and change the output by a factor of up to
    ``exp(sum |step of alpha|)``: what makes deep networks diverge is this sum, whatever the optimizer. Held to 1, the
    gates can have a rate that suits the many steps after the first ones, such as ``20 * lr / sqrt(L)`` for ``L`` gated
    branches. The page "The learning rate of alpha" has the measurement behind it.

    All gates of a step are shortened by the same factor; momenta and other states are not touched. No device is waited
    for. Call it once, after the optimizer is made, and anew for one that is made anew, as after a resume.

    Args:
        optimizer: Any torch optimizer, of several the one that trains the gates.
        model: The model.
        most: Largest sum over all gated branches of ``|step of alpha|`` (dimensionless). Of a gate with a scale a
            feature its mean over the features counts, and a gate that scales several branches counts for each.

    Returns:
        A handle with ``remove()``.

    Raises:
        TypeError: If ``optimizer`` is no torch optimizer, or ``model`` no module.
        ValueError: If ``most`` is not above 0 or not finite, or the optimizer trains no gate of the model.

    Example:
        >>> from rezero import ReZero, gates, param_groups
        >>> model = nn.Sequential(*(ReZero(nn.Linear(4, 4)) for _ in range(100)))
        >>> optimizer = torch.optim.Adam(param_groups(model, lr=0.01, weight_decay=0.0, alpha_lr=0.5))
        >>> held = hold_gates(optimizer, model)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> moved = sum(gate.alpha.abs().item() for gate in gates(model).values())
        >>> round(moved, 4)  # 100 times 0.5 without
        1.0
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected a torch optimizer: got {type(optimizer).__name__}")
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner  # Accelerate's has no hooks of its own
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected the model itself, to find its gates: got {type(model).__name__}")
    if not (math.isfinite(most) and most > 0):
        raise ValueError(f"most must be a finite number above 0: got {most}")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    branches = branches_by_gate(model)
    owned: Counter[nn.Parameter] = Counter()
    for gate, count in branches.items():
        if id(gate.gate_parameter) in trained:
            owned[gate.gate_parameter] += count
    if not owned:
        found = "of the model's gates it trains none" if branches else "the model has none"
        raise ValueError(f"expected an optimizer that trains the gates of the model: {found}")
    return HeldGates(optimizer, owned, most)
