"""Watching one forward pass, and writing it down."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import NoneType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from rezero.errors import UsageError
from rezero.surgery.outputs import tensors
from rezero.surgery.shapes import call_on_shapes
from rezero.surgery.state import State
from rezero.surgery.traced import Call, Op, Trace, Value
from rezero.surgery.undisturbed import empty_caches, quiet, unfused
from rezero.surgery.views import Views

__all__ = ["ADDITIONS", "KEPT", "Recorder", "Way"]


ADDITIONS = frozenset(("add", "radd", "iadd", "sub", "isub", "subtract"))  # without the underscores of methods

_READS_OTHERS = frozenset(
    """
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_empty_strided new_full new_tensor
    """.split()  # noqa: SIM905
)  # of the first only shape and type
_READS_FIRST = frozenset(("expand_as", "reshape_as", "to", "type_as", "view_as"))  # of the others only shape and type


KEPT = (
    "a cache outside of the model, such as a global or an attribute of a class, holds a tensor without numbers; empty "
    "it, and then let the model keep it in an attribute, or run it once on the example before"
)

Way = Literal["real", "fake", "meta"]  # the numbers that a pass runs on

_NUMBERS = frozenset((bool, int, float, NoneType, str, torch.dtype, torch.device))

_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_CUTS = frozenset(("data", "detach", "detach_"))


class Recorder(TorchFunctionMode):
    """Writes down what happens while a model runs.

    Args:
        model: The model.
        on_add: Is shown every addition with its operands as they were before.
    """

    def __init__(self, model: nn.Module, on_add: Callable[[Op, list[Tensor]], object] | None) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
        self.parameters = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
        self.on_add = on_add
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.values: list[Value] = []
        self.open: list[Call] = []
        self.way: Way = "real"
        self.grad = torch.is_grad_enabled()
        self._seen: Any = WeakIdKeyDictionary()
        self._views = Views()
        self._stale: Any = WeakIdKeyDictionary()  # tensors that look at what was written into since, and the writings
        self._counts: dict[nn.Module, int] = {}
        self._blind: dict[Op, list[Op]] = {}  # what ran with gradients disabled, and all that ran so beside it

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, way: Way) -> Trace:
        """Run the model, with its own numbers or with shapes alone."""
        self.way = way
        with ExitStack() as stack:
            if way == "fake":
                stack.enter_context(quiet())
                fake = FakeTensorMode(allow_non_fake_inputs=True)
                args, kwargs = tree_map_only(Tensor, fake.from_tensor, (args, kwargs))
                stack.enter_context(fake)
            stack.enter_context(self.listening())
            for tensor in _tensors((args, kwargs)):
                self.value(tensor).data = True
            for tensor in tensors(self.model(*args, **kwargs)):
                self.value(tensor).escapes = True
                self._look_through(tensor)
        for op in self._blind:
            op.cuts = True
        return Trace(self.ops, self.calls, self.values, way == "real")

    def empty_caches(self) -> None:
        """Empty the caches of functions that keep a tensor without numbers."""
        if left := self._left():
            empty_caches(left)

    def check_left(self) -> None:
        """Refuse a model that keeps a tensor without numbers where it can't be put back.

        Raises:
            UsageError: If there is one: which module made it.
        """
        if any(isinstance(parameter, FakeTensor) for parameter in self.model.parameters()):
            return
        if self._left():
            gc.collect()
        for value in map(self._seen.get, self._left()):
            maker = "the model" if value.op is None else repr(value.op.call.name or "the model")
            raise UsageError(f"{maker} keeps a tensor out of reach: {KEPT}")

    def _left(self) -> list[Tensor]:
        """List what the pass has made without numbers that is still there, but for what is the model's own."""
        if self.way != "meta":
            return [tensor for tensor in list(self._seen) if isinstance(tensor, FakeTensor)]
        values = [(tensor, self._seen[tensor]) for tensor in list(self._seen) if tensor.is_meta]
        made = [tensor for tensor, value in values if value.op is not None or value.data]
        if not made:
            return []
        own = State(self.model)
        return [tensor for tensor in made if not own.holds(tensor)]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Follow every module call and every torch function."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave),
        ]
        try:
            with unfused(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        versions = [_version(tensor) for tensor in given]
        name = "data" if func == _DATA else getattr(func, "__name__", str(func))
        inputs = tuple(self.value(tensor) for tensor in _read(name, given))
        if self._blind and torch.is_grad_enabled():
            for tensor in given:
                self._look_through(tensor)
        watched = self.on_add is not None and name.strip("_") in ADDITIONS
        before = [tensor.detach().clone() for tensor in given] if watched else []
        result = func(*args, **kwargs) if self.way == "real" else call_on_shapes(func, args, kwargs)
        changed = [
            tensor for tensor, version in zip(given, versions, strict=True) if _version(tensor) not in (None, version)
        ]
        known = {id(tensor) for tensor in given}
        made = [*changed, *(tensor for tensor in _tensors(result) if id(tensor) not in known)]
        if made and self.open:
            self._record(name, inputs, _once(made))
            for tensor in changed:
                for other in self._views.changed_with(tensor):
                    self._stale.setdefault(other, []).append(self._seen[tensor])
            if watched and self.on_add is not None:
                self.on_add(self.ops[-1], before)
        return result

    def value(self, tensor: Tensor) -> Value:
        """Return the present value of a tensor."""
        known = self._seen.get(tensor)
        if known is None:
            with torch._C.DisableTorchFunction():  # its shape is nothing that the model asked for
                return self._make(tensor, None)
        if (written := self._stale.pop(tensor, None)) is None:
            return known  # type: ignore[no-any-return]
        whole = len(written) == 1 and math.prod(written[0].shape) == math.prod(known.shape)
        inputs = tuple(written) if whole else (*written, known)
        return self._record("view" if whole else "written", inputs, [tensor])[-1]

    def _look_through(self, tensor: Tensor) -> None:
        """Note that gradients come back where they were disabled only to be made otherwise, as in checkpoints."""
        op = self._seen[tensor].op if tensor.requires_grad else None
        for each in self._blind.get(op, ()) if op is not None else ():
            del self._blind[each]

    def _record(self, name: str, inputs: tuple[Value, ...], made: Sequence[Tensor]) -> tuple[Value, ...]:
        op = Op(len(self.ops), name, inputs, (), self.open[-1] if self.open else self.calls[0], name in _CUTS)
        if self.grad and not torch.is_grad_enabled():
            beside = self._blind.get(self.ops[-1], []) if self.ops else []
            beside.append(op)
            self._blind[op] = beside
        self.ops.append(op)
        with torch._C.DisableTorchFunction():
            op.outputs = tuple(self._make(tensor, op) for tensor in made)
        for value in dict.fromkeys(inputs):
            value.users.append(op)
        return op.outputs

    def _make(self, tensor: Tensor, op: Op | None) -> Value:
        value = Value(len(self.values), tuple(tensor.shape), op, None if op else self.parameters.get(id(tensor)))
        value.whole = not (tensor.is_floating_point() or tensor.is_complex())
        for each in op.inputs if op else ():
            value.below |= each.below | 1 << each.index
            value.data = value.data or each.data
        if tensor not in self._seen:
            self._views.add(tensor)
        self.values.append(value)
        self._seen[tensor] = value
        self._stale.pop(tensor, None)
        return value

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module not in self.names:  # made during the pass, or not the model's
            return
        number = self._counts.get(module, 0)
        self._counts[module] = number + 1
        call = Call(module, self.names[module], self.open[-1] if self.open else None, number, len(self.ops))
        call.inputs = tuple(self.value(tensor) for tensor in _tensors(args))
        self.calls.append(call)
        self.open.append(call)

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if module not in self.names:
            return
        call = self.open.pop()
        call.last = len(self.ops)
        first = output if isinstance(output, Tensor) else _first(output)
        if isinstance(first, Tensor):
            call.output = self.value(first)
            call.output.returned.append(call)
        call.others = tuple(self.value(tensor) for tensor in _tensors(output) if tensor is not first)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else None


def _tensors(tree: Any) -> list[Tensor]:
    """List the tensors of nested tuples, lists, dictionaries and plain objects such as outputs and caches."""
    found: list[Tensor] = []
    for leaf in _leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += _tensors(dict(leaf))
    return found


def _leaves(tree: Any) -> Iterator[Any]:
    """Walk over what torch's own walk visits, several times as fast where tuples hold tensors and numbers alone."""
    kind = type(tree)
    if kind is tuple or kind is list:
        for part in tree:
            yield from _leaves(part)
    elif kind is Tensor or kind is nn.Parameter:
        yield tree
    elif kind not in _NUMBERS:
        yield from tree_iter(tree)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _read(name: str, given: list[Tensor]) -> list[Tensor]:
    """Return the tensors whose numbers a function reads: of some it takes the shape alone."""
    plain = name.strip("_")
    return given[1:] if plain in _READS_OTHERS else given[:1] if plain in _READS_FIRST else given


def _once(tensors: list[Tensor]) -> list[Tensor]:
    """Leave each tensor where it stands last."""
    return list({id(tensor): tensor for tensor in reversed(tensors)}.values())[::-1]
