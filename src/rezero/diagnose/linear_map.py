"""The Jacobian of a network, or of a stretch of it, as a linear map, which is made a matrix only where it fits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from rezero.diagnose.example import batch_size
from rezero.diagnose.untouched import is_scripted, told
from rezero.errors import UsageError, near
from rezero.surgery.backward import kept
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import unfused

__all__ = ["LinearMap", "find_layer", "frozen", "linear_maps", "square"]

_ROWS = 256  # backward passes at a time
_FUSED = (nn.functional.scaled_dot_product_attention, nn.functional.multi_head_attention_forward)


class LinearMap:
    """The derivative of a function at one input: an ``m x n`` matrix ``J`` that is not made unless it is asked for.

    ``J^T u`` is a backward pass. It is linear in ``u``, so that its own backward pass gives ``J v``: as fast, where
    forward derivatives take several times as long, and known to more operations.

    Args:
        function: Takes the input, returns a tensor.
        at: The input.

    Attributes:
        shape: ``(m, n)``: entries of the output, and of the input.
        dtype: That of the input.
        fused: Whether the function uses fused attention, which is computed in its plain form here.

    Raises:
        UsageError: If the output does not depend on the input, or can't be differentiated; later, if a product is not
            finite.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], at: Tensor) -> None:
        self._input = at.detach().requires_grad_()
        with torch.enable_grad(), unfused(), sdpa_kernel(SDPBackend.MATH), _SeesAttention() as seen:
            self._output = function(self._input.clone())  # which it may write into
            if not self._output.requires_grad:
                raise UsageError("the output has no derivative by the input: it does not depend on it, or is detached")
            if not self._output.numel() or not at.numel():
                raise UsageError("input or output has no entries, and so there are no singular values")
            self._direction = torch.zeros_like(self._output, requires_grad=True)
            [self._pulled] = torch.autograd.grad(
                self._output, self._input, self._direction, create_graph=True, materialize_grads=True
            )
        self.shape = self._output.numel(), at.numel()
        self.dtype = at.dtype
        self.fused = seen.attention

    def push(self, v: Tensor) -> Tensor:
        """Return ``J v``, ``(m,)``.

        Args:
            v: Direction in the input, ``(n,)``.
        """
        return self._backward(self._pulled, self._direction, v)

    def pull(self, u: Tensor) -> Tensor:
        """Return ``J^T u``, ``(n,)``.

        Args:
            u: Direction in the output, ``(m,)``.
        """
        return self._backward(self._output, self._input, u)

    def matrix(self) -> Tensor:
        """Return ``J``, ``(m, n)``, by one backward pass an entry of the output, many at a time."""
        units = torch.eye(self.shape[0], dtype=self.dtype, device=self._input.device)
        try:
            rows = [self._backward(self._output, self._input, each, batched=True) for each in units.split(_ROWS)]
        except RuntimeError:  # an operation without a batched backward pass
            rows = [self.pull(unit)[None] for unit in units]
        return torch.cat(rows)

    def _backward(self, value: Tensor, by: Tensor, along: Tensor, *, batched: bool = False) -> Tensor:
        shape = (len(along), *value.shape) if batched else value.shape
        if not value.requires_grad:  # what does not depend on the input has a derivative of zero
            return along.new_zeros((*shape[: int(batched)], by.numel()))
        [found] = torch.autograd.grad(
            value,
            by,
            along.to(value).reshape(shape),
            retain_graph=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        if not bool(found.isfinite().all()):
            raise UsageError(
                f"the Jacobian, or a product with it, is not finite in {self.dtype}: look for a layer whose output is "
                "nan or infinite; where numbers are only large, convert a copy of model and input with .double()"
            )
        return found.reshape(len(along), -1) if batched else found.reshape(-1)


def square(linear_map: LinearMap, v: Tensor) -> Tensor:
    """Return the product with ``J^T J`` or ``J J^T``, whichever is smaller; its eigenvalues are the squares.

    Args:
        linear_map: The map ``J``, ``m x n``.
        v: A vector, ``(min(m, n),)``.

    Returns:
        The product, of the same shape.
    """
    m, n = linear_map.shape
    return linear_map.pull(linear_map.push(v)) if n <= m else linear_map.push(linear_map.pull(v))


class _SeesAttention(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.attention = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attention |= function in _FUSED
        return function(*args, **(kwargs or {}))


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a module by its name.

    Args:
        model: The model.
        name: Qualified name; the model itself has the name ``""``.

    Returns:
        The module.

    Raises:
        TypeError: If the name is no text.
        UsageError: If there is none; near names are listed. If it is scripted.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the name of a layer, such as '0' or 'encoder.layers.3', got {name!r}")
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        hint = near(name, modules, count=5) or f"; it has {', '.join([each for each in modules if each][:5]) or 'none'}"
        raise UsageError(f"the model has no layer {name!r}{hint}")
    if is_scripted(modules[name]):
        raise UsageError(f"the layer {name!r} is scripted, and can't be watched: choose another one, around it")
    return modules[name]


def linear_maps(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], between: tuple[str, str] | None
) -> list[LinearMap]:
    """Differentiate a model at each example of a batch.

    Args:
        model: The model, in evaluation.
        args: Its arguments; tensors have the batch along their first axis.
        kwargs: Its arguments by name.
        between: A layer, whose input is varied, and a later one, whose output is looked at; None for the model's own.

    Returns:
        One map an example.

    Raises:
        UsageError: If there is nothing to differentiate, or one layer does not come before the other.
    """
    first, last = ("", "") if between is None else between
    start, end = find_layer(model, first), find_layer(model, last)
    examples = batch_size((args, kwargs))
    maps = []
    with kept(model):
        for example in range(examples):
            one = tree_map_only(Tensor, partial(_one, example, examples), (args, kwargs))
            section = _Section(model, (first, start), (last, end), *one)
            maps.append(LinearMap(section.run, section.input()))
    return maps


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Spare what only the parameters' gradients need, as long as maps of a model are used.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()


def _one(example: int, examples: int, tensor: Tensor) -> Tensor:
    return tensor[example : example + 1] if tensor.ndim and len(tensor) == examples else tensor


class _Reached(BaseException):
    """The rest of the model is not needed; no `Exception`, which a model might catch."""

    def __init__(self, output: Any) -> None:
        self.output = output


class _Section:
    """What lies between the input of one module and the output of another, on one example."""

    def __init__(
        self,
        model: nn.Module,
        start: tuple[str, nn.Module],
        end: tuple[str, nn.Module],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        (self.first, self.start), (self.last, self.end) = start, end

    def input(self) -> Tensor:
        """Return what the first module is given."""
        seen: list[Tensor] = []

        def look(_module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.extend(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
            raise _Reached(None)

        with torch.no_grad():
            self._run((), ((self.start, look),))
        where = f"the input of {self.first!r}" if self.first else "the input"
        if not seen:
            raise UsageError(
                f"{where} is no tensor, or it is never called: choose another layer with between=(first, last)"
            )
        floating = [each for each in seen if each.is_floating_point() or each.is_complex()]
        if not floating:
            raise UsageError(
                f"{where} is of whole numbers ({seen[0].dtype}), which have no derivative: start at a layer behind the "
                "embedding, with between=(first, last)"
            )
        if floating[0].is_complex():
            raise UsageError(
                f"{where} is complex ({floating[0].dtype}): expected real numbers; view it as two real axes"
            )
        if floating[0].dtype.itemsize < 4:
            raise UsageError(
                f"{where} is in {floating[0].dtype}, too coarse for singular values: convert a copy of the model and "
                "its input with .float() or .double()"
            )
        if not bool(floating[0].isfinite().all()):
            raise UsageError(f"{where} is nan or infinite, where nothing has a derivative: look at what it comes from")
        return floating[0].detach()

    def run(self, h: Tensor) -> Tensor:
        """Return the output of the last module where the first is given ``h``."""
        entered: list[bool] = []

        def enter(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if entered:
                return None
            entered.append(True)
            return _with_first(args, kwargs, h)

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            if entered:
                raise _Reached(output)

        output = self._run(((self.end, leave),), ((self.start, enter),))
        if not isinstance(output, _Reached):
            raise UsageError(
                f"{self.first!r} is not called before {self.last!r}: expected between=(first, last) in the order of "
                f"their calls, got {(self.first, self.last)}"
            )
        floating = [each for each in tensors(output.output) if each.is_floating_point()]
        if not floating:
            raise UsageError("the output holds no real numbers that could be differentiated")
        return floating[0]

    def _run(self, after: Sequence[tuple[nn.Module, Any]], before: Sequence[tuple[nn.Module, Any]]) -> Any:
        with ExitStack() as stack:
            for module, hook in before:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for module, hook in after:
                stack.callback(module.register_forward_hook(hook).remove)
            try:
                with told(self.model):
                    return self.model(*self.args, **self.kwargs)
            except _Reached as reached:
                return reached


def _with_first(args: tuple[Any, ...], kwargs: dict[str, Any], h: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put a tensor in the place of the first one of real numbers."""
    for i, each in enumerate(args):
        if isinstance(each, Tensor) and each.is_floating_point():
            return (*args[:i], h, *args[i + 1 :]), kwargs
    name = next(name for name, each in kwargs.items() if isinstance(each, Tensor) and each.is_floating_point())
    return args, kwargs | {name: h}
