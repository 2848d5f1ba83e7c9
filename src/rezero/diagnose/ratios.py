"""How large gated branches are beside their skips, seen where the two are added during a training step."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rezero.gate import AnyGate
from rezero.surgery.linear import divides, moves, multiplies
from rezero.surgery.recorder import ADDITIONS

__all__ = ["Ratios", "Seen", "ratios_of"]

_WEIGHTED = frozenset(("linear", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"))


class Seen(NamedTuple):
    """A gated branch that was added.

    Attributes:
        gate: Place of its gate.
        branch: Norm of the branch with its gate, 0-d.
        skip: Norm of the skip, 0-d.
    """

    gate: int
    branch: Tensor
    skip: Tensor


class Ratios:
    """Watches a model's forward passes with gradients, between `begin` and `end`; otherwise nothing is in its way.

    A compiled model runs uncompiled while it is watched.

    Args:
        model: What is called in training: the compiled or wrapped model, if it is one.
        owners: Its gates.
    """

    def __init__(self, model: nn.Module, owners: Sequence[AnyGate]) -> None:
        self._model, self._owners = model, owners
        self._watching: _Watch | None = None
        self._passing, self._hooks = ExitStack(), ExitStack()

    @property
    def watching(self) -> bool:
        """Whether it was begun and not ended."""
        return self._watching is not None

    def begin(self) -> None:
        """Watch from now on."""
        self._watching = _Watch([owner.gate_parameter for owner in self._owners])
        enter, leave = _Hook(self._enter), _Hook(self._leave)
        self._hooks.callback(self._model.register_forward_pre_hook(enter).remove)
        self._hooks.callback(self._model.register_forward_hook(leave, always_call=True).remove)

    def end(self) -> list[Seen]:
        """Watch no longer.

        Returns:
            The additions of gated branches.
        """
        self._leave()  # where a pass was broken off by Ctrl-C
        self._hooks.close()
        seen = self._watching.seen if self._watching is not None else []
        self._watching = None
        return seen

    def _enter(self) -> None:
        if self._watching is not None and not self._watching.inside and torch.is_grad_enabled():
            self._passing.enter_context(torch.compiler.set_stance("force_eager"))
            self._passing.enter_context(self._watching)
            self._watching.inside = True

    def _leave(self) -> None:
        if self._watching is not None and self._watching.inside:
            self._watching.inside = False
            self._passing.close()


def ratios_of(gates: Sequence[int], norms: Sequence[tuple[float, float]], count: int) -> list[float]:
    """Reduce what was seen to one ratio a gate; squares are summed over its uses before they are divided.

    Args:
        gates: Place of the gate of each addition.
        norms: Norms of branch and skip of each.
        count: How many gates there are.

    Returns:
        The ratios; nan for a gate whose branch was not seen to be added.
    """
    squares: dict[int, tuple[float, float]] = {}
    for gate, (branch, skip) in zip(gates, norms, strict=True):
        before = squares.get(gate, (0.0, 0.0))
        squares[gate] = before[0] + branch * branch, before[1] + skip * skip  # ** would raise at 1e200
    return [_ratio(*squares.get(gate, (math.nan, math.nan))) for gate in range(count)]


def _ratio(branch: float, skip: float) -> float:
    if skip == 0:
        return 0.0 if branch == 0 else math.nan
    return math.sqrt(branch / skip)


class _Hook:
    """A hook that stays out of compiled code, and that a copy or a pickle of the model has without effect."""

    def __init__(self, act: Callable[[], None] | None = None) -> None:
        self._act = act

    def __call__(self, *_: Any) -> None:
        if self._act is not None and not torch.compiler.is_compiling():
            self._act()

    def __reduce__(self) -> Any:
        return _Hook, ()


class _Part(NamedTuple):
    """A gated branch in a tensor, alone or summed with others."""

    gate: int
    share: Tensor | None  # its norm over that of the sum; None where it is alone


_Mark = int | tuple[_Part, ...]  # a gate's factor, or gated branches


class _Watch(TorchFunctionMode):
    """Follows each gate from its parameter to the branch that it scales, and the branch to where it is added.

    Args:
        parameters: Those of the gates.

    Attributes:
        seen: The additions.
        inside: Whether a pass is under way.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.inside = False
        self._parameters = parameters
        self._gates = {id(each): gate for gate, each in enumerate(parameters)}
        # By id, which is quick to look up; the reference tells whether the id is still that of the same tensor.
        self._marks: dict[int, tuple[weakref.ref[Tensor], _Mark]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__get__":  # a shape or a dtype: most of all calls
            return function(*args, **kwargs)
        given = (*args, *kwargs.values())
        for each in given:
            if id(each) in self._marks or id(each) in self._gates:
                break
        else:
            return function(*args, **kwargs)
        # Before the call, which may write into what it adds.
        mark = self._follow(name.strip("_"), [each for each in given if isinstance(each, Tensor)], kwargs)
        result = function(*args, **kwargs)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self._marks.pop(id(tensor), None)
            if mark is not None and isinstance(tensor, Tensor):
                self._marks[id(tensor)] = weakref.ref(tensor), mark
        return result

    def _mark(self, tensor: Tensor) -> _Mark | None:
        if (gate := self._gates.get(id(tensor))) is not None:
            return gate
        reference, mark = self._marks.get(id(tensor), (None, None))
        return mark if reference is not None and reference() is tensor else None

    def _follow(self, name: str, tensors: Sequence[Tensor], kwargs: Mapping[str, Any]) -> _Mark | None:
        """Return what the result of a function is."""
        marks = [self._mark(each) for each in tensors]
        known = [mark for mark in marks if mark is not None]
        if not known:  # an id that had been another tensor's
            return None
        if name in ADDITIONS and len(tensors) == 2 and "alpha" not in kwargs:
            return self._add(tensors, marks)
        if name in _WEIGHTED:  # a layer whose weights are scaled
            return next((mark for mark in marks[1:] if isinstance(mark, tuple)), None)
        scales = multiplies(name) or (divides(name) and marks[-1] is None)
        if moves(name) or (len(tensors) == 1 and (scales or divides(name) or name == "tanh")):
            return marks[0]
        if not scales or (len(tensors), len(known)) != (2, 1):
            return None
        return (_Part(known[0], None),) if isinstance(known[0], int) else known[0]

    def _add(self, tensors: Sequence[Tensor], marks: Sequence[_Mark | None]) -> tuple[_Part, ...] | None:
        """Note the norms of a branch and its skip; several branches are first summed."""
        if any(isinstance(mark, int) for mark in marks):
            return None
        shape = torch.broadcast_shapes(*(each.shape for each in tensors))
        norms = [_norm(each) * math.sqrt(math.prod(shape) / max(1, each.numel())) for each in tensors]
        branches = [
            (part.gate, norm if part.share is None else part.share * norm)
            for norm, mark in zip(norms, marks, strict=True)
            for part in (mark if isinstance(mark, tuple) else ())
        ]
        if None in marks:
            skip = norms[marks.index(None)]
            self.seen += [Seen(gate, norm, skip) for gate, norm in branches]
            return None
        whole = _norm(torch.add(*(each.detach() for each in tensors)))
        return tuple(_Part(gate, torch.where(whole > 0, norm / whole, 0)) for gate, norm in branches)


@torch.no_grad()
def _norm(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm of all numbers, in float32 at least."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norm
