"""What is known of torch's functions: which of them add, which only move or scale numbers, which are affine."""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from rezero.surgery.recorder import ADDITIONS
from rezero.surgery.traced import Op, Value

__all__ = [
    "affine_sources",
    "averages",
    "cancels",
    "changes_resolution",
    "divides",
    "is_activation",
    "is_addition",
    "is_matrix",
    "is_norm",
    "is_product",
    "is_subtraction",
    "mixes",
    "moves",
    "multiplies",
    "other_additions",
    "path",
    "queries",
    "rejoins",
    "size",
    "sources",
    "summands",
]

_ADD = frozenset(name for name in ADDITIONS if "sub" not in name)
_PRODUCT = {"mul", "rmul", "imul", "multiply"}
_QUOTIENT = {"div", "truediv", "itruediv", "true_divide", "divide"}
_SCALE = _PRODUCT | _QUOTIENT | {"neg", "negative"}
_MOVE = frozenset(
    """
    view view_as reshape reshape_as permute transpose swapaxes swapdims movedim moveaxis t adjoint contiguous flatten
    unflatten unfold squeeze unsqueeze expand expand_as getitem get select narrow chunk split split_with_sizes unbind
    tensor_split roll flip clone to type type_as float half bfloat16 double detach pad constant_pad_nd index_select
    masked_fill dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout requires_grad
    """.split()  # noqa: SIM905
)
_POOL = {
    f"{adaptive}{kind}_pool{axes}d{indices}"
    for adaptive in ("", "adaptive_")
    for kind in ("avg", "max")
    for axes in (1, 2, 3)
    for indices in ("", "_with_indices")
} | {"amax", "max", "mean"}
_AFFINE = frozenset(
    """
    linear conv1d conv2d conv3d batch_norm layer_norm group_norm rms_norm instance_norm addmm matmul rmatmul
    """.split()  # noqa: SIM905
)
_JOIN = {"cat", "concat", "concatenate"}
_WRITE = {"setitem", "written", "index_put"}  # into a part of what was there
_ADDS_OTHERWISE = frozenset(("addcmul", "addmm", "addmv", "baddbmm", "addbmm", "rsub", "index_add", "scatter_add"))
_SUMS = {"sum", "mean"}
_RESOLUTION = {"interpolate", "upsample", "pixel_shuffle", "grid_sample"} | {f"conv_transpose{n}d" for n in (1, 2, 3)}
_ACTIVATIONS = frozenset(
    """
    relu gelu silu elu selu celu leaky_relu prelu hardswish hardtanh relu6 mish softplus sigmoid tanh
    """.split()  # noqa: SIM905
)


def _plain(op: Op) -> str:
    """Name a function without the marks of a method: ``__iadd__`` and ``relu_`` become ``iadd`` and ``relu``."""
    return op.name.strip("_")


def is_addition(op: Op) -> bool:
    """Return whether an operation adds two tensors, one of which has the shape of the result."""
    if _plain(op) not in ADDITIONS or len(op.inputs) < 2:
        return False
    shape = op.outputs[-1].shape
    return bool(shape) and any(value.shape == shape for value in op.inputs[:2])


def summands(op: Op) -> list[tuple[Value, Value]]:
    """Pair the sides of an addition as skip and branch, in every way that is possible.

    Args:
        op: An addition.

    Returns:
        Pairs of a side that has the shape of the sum and is not subtracted, and the other side.
    """
    first, second = op.inputs[:2]
    ways = [(first, second)] if _plain(op) not in _ADD else [(first, second), (second, first)]
    return [way for way in ways if way[0].shape == op.outputs[-1].shape]


def queries(op: Op) -> Iterator[tuple[Value, Value]]:
    """Pair learned queries, the same for every input of a batch, with what is added to them for each.

    Args:
        op: An addition.

    Yields:
        Pairs of a sequence of parameters alone, and another side of the sum's shape, which has an axis for the batch.
    """
    shape = op.outputs[-1].shape
    for skip, term in (op.inputs[:2], op.inputs[1::-1]):
        alike = skip.shape in (shape[1:], (1, *shape[1:])) and term.shape == shape != skip.shape
        if alike and len(shape) == 3 and not skip.data and _from_parameters(skip):
            yield skip, term


def other_additions(op: Op) -> Iterator[tuple[Value, Value]]:
    """Pair what might be skip and branch of an operation that adds, but is no addition of two tensors.

    Args:
        op: Any operation.

    Yields:
        Pairs of an input that has the shape of the result, or is stacked with others to be summed, and another.
    """
    name = _plain(op)
    stacked = name == "stack" and any(_plain(user) in _SUMS for user in op.outputs[-1].users)
    if stacked or name in _ADDS_OTHERWISE or name == "lerp":
        shape = op.inputs[0].shape if stacked else op.outputs[-1].shape
        skips = [value for value in op.inputs if value.data and value.shape == shape]
        yield from ((skip, term) for skip in skips for term in op.inputs if skip is not term)


def averages(op: Op) -> bool:
    """Return whether an operation weighs its inputs against one another, as an average of layers does."""
    return _plain(op) in {"lerp", "stack"}


def sources(value: Value, *, joins: bool = True) -> Iterator[tuple[Value, bool]]:
    """Walk back from a skip as long as numbers are only moved, pooled, scaled or joined.

    Where pieces are joined, the way leads to the value that all of them come from, or else to the largest.

    Args:
        value: A side of an addition.
        joins: Whether to go on where pieces are joined.

    Yields:
        The value and those it came from; with whether parameters have scaled it.
    """
    scaled = False
    while True:
        yield value, scaled
        op = value.op
        if op is not None and _plain(op) in _JOIN | _WRITE:
            if not joins or not (pieces := [piece for piece in op.inputs if piece.data]):
                return
            root = _whole([dict(sources(piece, joins=False)) for piece in pieces])
            value, by_parameters = root or (max(pieces, key=size), False)
            scaled = scaled or by_parameters
            continue
        if op is None or not (_plain(op) in _MOVE | _POOL | _SCALE or _adds_constant(op)):
            return
        main, *others = _by_data(op)
        if _plain(op) not in _MOVE and any(other.data for other in others):
            return
        if _plain(op) in _SCALE:
            scaled = scaled or any(_from_parameters(other) for other in others)
        value = main


def affine_sources(value: Value, *, joins: bool = True) -> Iterator[Value]:
    """Walk back from a projected skip as long as the operations are affine in one input.

    Args:
        value: A side of an addition.
        joins: Whether to go on where pieces of one value are joined.

    Yields:
        The values that it came from, the nearest first.
    """
    while (op := value.op) is not None and (
        _plain(op) in _MOVE | _POOL | _SCALE | _AFFINE | _JOIN or _adds_constant(op)
    ):
        value, *others = _by_data(op)
        if _plain(op) in _JOIN:
            pieces = [dict.fromkeys((p, *affine_sources(p, joins=False)), False) for p in op.inputs if joins]
            if (root := _whole(pieces)) is None:
                return
            value, _ = root
        elif any(other.data for other in others) and _plain(op) not in _MOVE:
            return
        yield value


def size(value: Value) -> int:
    """Return how many numbers a value has."""
    return math.prod(value.shape)


def _whole(pieces: Sequence[Mapping[Value, bool]]) -> tuple[Value, bool] | None:
    """Return the nearest value that all pieces come from, and whether one of them was scaled on the way."""
    first, *others = pieces or ({},)
    root = next((value for value in first if all(value in other for other in others)), None)
    return None if root is None else (root, any(piece[root] for piece in pieces))


def path(term: Value, reader: Op, skip: Value, *, scales: bool) -> Iterator[tuple[Value, Op]]:
    """Walk back from a branch as long as scaling an earlier value scales the branch.

    Args:
        term: The branch where it is added.
        reader: The addition.
        skip: What the branch came from.
        scales: Whether to walk through products with other tensors, too.

    Yields:
        A value and the operation that reads it on the way to the addition.
    """
    value = term
    while True:
        yield value, reader
        op = value.op
        if op is None or _plain(op) not in _MOVE | _SCALE | _ADD:
            return
        main = [each for each in op.inputs if each.descends_from(skip)]
        if scales and _plain(op) in _PRODUCT and len(main) > 1:
            main = [max(main, key=size)]  # the other weighs it, and may be smaller
        if len(main) != 1 or (_plain(op) in _ADD and len(op.inputs) > 1):
            return
        if not scales and len(op.inputs) > 1 and _plain(op) in _SCALE:
            others = [each for each in op.inputs if each is not main[0]]
            if any(each.data or _from_parameters(each) for each in others):
                return
        value, reader = main[0], op


def rejoins(op: Op, total: Value) -> bool:
    """Return whether all that an operation reads is moved to where it is joined with a sum.

    Args:
        op: An operation that reads a part of a branch.
        total: What the addition of another part of it has made.

    Returns:
        Whether the addition is one of the whole branch and a skip of fewer channels, padded with zeros.
    """
    if _plain(op) in _JOIN:
        return total in op.inputs
    ends = [user for value in op.outputs for user in value.users]
    moved = _plain(op) in _MOVE and not any(value.escapes for value in op.outputs)
    return moved and bool(ends) and all(rejoins(user, total) for user in ends)


def moves(name: str) -> bool:
    """Return whether the function of this name only moves, converts or drops the numbers of its first tensor."""
    return name in _MOVE


def multiplies(name: str) -> bool:
    """Return whether the function of this name multiplies its inputs, number by number, or changes their sign."""
    return name in _SCALE - _QUOTIENT


def divides(name: str) -> bool:
    """Return whether the function of this name divides its first input by its second, number by number."""
    return name in _QUOTIENT


def is_product(op: Op) -> bool:
    """Return whether an operation multiplies its inputs, number by number."""
    return _plain(op) in _PRODUCT


def is_subtraction(op: Op) -> bool:
    """Return whether an addition subtracts its second side."""
    return _plain(op) in ADDITIONS - _ADD


def cancels(skip: Value, term: Value) -> bool:
    """Return whether a branch is a difference from its skip, as in ``x + (f(x) - x)``, which is ``f(x)``.

    Args:
        skip: One side of an addition.
        term: The other side.

    Returns:
        Whether the skip is subtracted again.
    """
    value = term
    while (op := value.op) is not None and _plain(op) in _MOVE:
        value = _by_data(op)[0]
    return (
        op is not None and is_subtraction(op) and len(op.inputs) > 1 and op.inputs[1] in {v for v, _ in sources(skip)}
    )


def mixes(op: Op) -> bool:
    """Return whether an operation without parameters makes a layer all the same: a Fourier transform."""
    return _plain(op).startswith("fft_")


def _adds_constant(op: Op) -> bool:
    return _plain(op) in ADDITIONS and sum(value.data for value in op.inputs) <= 1


def _by_data(op: Op) -> list[Value]:
    """Order the inputs of an operation, those that depend on the model's input first."""
    return sorted(op.inputs, key=lambda value: not value.data)


def _from_parameters(value: Value) -> bool:
    seen, open_values = set(), [value]
    while open_values:
        each = open_values.pop()
        if each.parameter is not None:
            return True
        if each not in seen and each.op is not None:
            open_values += each.op.inputs
        seen.add(each)
    return False


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a parameter of that shape mixes features: two or more of its axes are longer than 1."""
    return sum(size > 1 for size in shape) >= 2


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, judged by its class's name and its parameters."""
    named = "norm" in type(module).__name__.lower()
    return named and not any(is_matrix(parameter.shape) for parameter in module.parameters())


def changes_resolution(op: Op) -> bool:
    """Return whether an operation makes an image or a sequence longer."""
    before, after = op.inputs[0].shape, op.outputs[-1].shape
    return (_plain(op) in _RESOLUTION and after[2:] != before[2:]) or _plain(op) == "repeat_interleave"


def is_activation(op: Op) -> bool:
    """Return whether an operation is an activation function."""
    return _plain(op) in _ACTIVATIONS
