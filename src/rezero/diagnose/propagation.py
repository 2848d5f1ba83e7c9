"""How a signal and its gradient go through a network, layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map_only

from rezero.diagnose.attention import Entropy, WatchesAttention
from rezero.diagnose.blocks import block_names
from rezero.diagnose.example import batch_size, check_devices, read_input
from rezero.diagnose.linear_map import find_layer
from rezero.diagnose.liveness import scalar
from rezero.diagnose.mean_field import MeanField, relu_mean_field
from rezero.diagnose.plain import plain
from rezero.diagnose.signal import first_real, root_mean_square
from rezero.diagnose.untouched import check_model, told, untouched, written
from rezero.diagnose.whole import whole
from rezero.errors import UsageError
from rezero.surgery.backward import kept
from rezero.surgery.outputs import tensors
from rezero.surgery.undisturbed import copied, switched, undisturbed, unfused

if TYPE_CHECKING:
    from altair import TopLevelMixin

__all__ = ["Propagation", "Signal", "propagation"]

_ALL, _SHOWN = 40, 12  # rows of a printed table: all of so many, or so many of more


@dataclass(frozen=True)
class Signal:
    """What one layer passes on.

    Attributes:
        name: Qualified name of the layer; empty for what the first layer is given.
        depth: Place among all calls of the layers, from 1; 0 for what the first layer is given.
        norm: Root mean square of an entry of the output.
        mean: Mean of an entry.
        cosine: Mean cosine between two examples of the batch; None where the output has no axis of examples, or fewer
            than two of them are other than zero.
        gradient: Root mean square of an entry of the gradient with respect to the output; None where none arrives.
        entropy: Mean entropy of the attention weights that the layer computes (nats); None where it computes none.
        entropy_share: The same as a share of the most that the masks allow, which is ``log T`` for ``T`` keys without
            a mask; None where there is one key to choose from.
    """

    name: str
    depth: int
    norm: float
    mean: float
    cosine: float | None
    gradient: float | None
    entropy: float | None = None
    entropy_share: float | None = None


@dataclass(frozen=True)
class Propagation:
    """The signal behind every layer.

    Attributes:
        layers: In the order in which the layers return; one that is called twice is there twice.
        start: What the first layer is given; None where that is no tensor of real numbers.
    """

    layers: tuple[Signal, ...]
    start: Signal | None

    def mean_field(
        self, *, skip: bool, alpha: float = 1.0, weight_variance: float = 2.0, centred: bool = False
    ) -> MeanField:
        """Return what theory expects of layers ``s x + alpha relu(W x)`` from where this signal starts.

        It holds for infinite width; with a skip the gradient of deep, narrow networks is larger (`relu_mean_field`).

        Args:
            skip: Whether a layer adds its input to its branch (``s = 1``).
            alpha: Scale of the branch.
            weight_variance: Variance of the weights times their number of inputs; 2 is He's.
            centred: Whether a second linear layer follows the ReLU, of variance 1.

        Returns:
            The values of `rezero.diagnose.relu_mean_field`.

        Raises:
            UsageError: If there is no start, or no cosine or gradient to start from.
        """
        start, end = self.start, self.layers[-1]
        if start is None or start.cosine is None or end.gradient is None:
            raise UsageError("expected a first layer with real numbers, and a gradient at the last, to start from")
        return relu_mean_field(
            len(self.layers),
            skip=skip,
            alpha=alpha,
            weight_variance=weight_variance,
            centred=centred,
            norm=start.norm,
            mean=start.mean,
            cosine=start.cosine,
            gradient=end.gradient,
        )

    def chart(self, theory: MeanField | None = None) -> "TopLevelMixin":
        """Draw every quantity against depth.

        Args:
            theory: What to draw beside it, dashed, such as that of ``mean_field``.

        Returns:
            An Altair chart; `rezero.charts.save` writes it.
        """
        from rezero.charts.depth import propagation_chart

        return propagation_chart({"measured": self}, {} if theory is None else {"measured": theory})

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types; what is not finite is None."""
        return {
            "start": None if self.start is None else plain(asdict(self.start)),
            "layers": [plain(asdict(each)) for each in self.layers],
        }

    def __str__(self) -> str:
        rows = [*([] if self.start is None else [self.start]), *self.layers]
        shown = len(rows) if len(rows) <= _ALL else _SHOWN
        chosen = sorted({round(i * (len(rows) - 1) / max(1, shown - 1)) for i in range(shown)})
        head = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        head += f", {shown} rows of {len(rows)}" * (shown < len(rows))
        attends = any(each.entropy is not None for each in rows)
        titles = ["depth", "layer", "norm", "cosine", "gradient", *(["entropy", "of its most"] if attends else [])]
        table = [titles, *(_cells(rows[i], attends=attends) for i in chosen if i < len(rows))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = (
            "  ".join(
                cell.ljust(width) if place == 1 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        )
        return "\n".join([head, *(line.rstrip() for line in lines)])


def propagation(
    model: nn.Module,
    x: Any,
    *,
    layers: Sequence[str] | None = None,
    loss_fn: Callable[[Any], Tensor] | None = None,
    training: bool = False,
    seed: int = 0,
) -> Propagation:
    r"""Measure the signal, its gradient and the spread of attention behind every layer of a model.

    Deep networks fail in ways that show here before any training: the signal vanishes or explodes, all examples become
    alike (a cosine of 1), gradients do not come back, attention looks everywhere or at one place. A ReZero network at
    ``alpha = 0`` passes everything on as it is.

    The model runs forward and backward once, in its own precision; the numbers are computed in float64. Model, mode,
    gradients and random generators are left as they were. Attention is seen where it passes through torch's
    ``scaled_dot_product_attention`` or ``nn.MultiheadAttention``, and its weights are then computed in full, so that
    long sequences need memory; that of code of its own, as transformers' ``eager``, is not seen.

    Args:
        model: Any module.
        x: Its input, ``(B, *)``, with the batch of at least two examples first; several as a tuple, or by name as a
            dictionary.
        layers: Names of layers; by default the blocks of the model's longest list, and those of their kind.
        loss_fn: Function of the model's output that returns the loss whose gradient is measured; by default a
            projection of the output on a random direction of unit variance.
        training: Whether dropout and batch norms work as in training.
        seed: Of the direction, and of dropout.

    Returns:
        One row a call of a layer.

    Raises:
        TypeError: If ``model`` is no module, or a number is not whole.
        UsageError: If the model can't be run; if a layer is unknown, is not called or returns no real numbers; if the
            batch has one example, lies on another device than the model, has no numbers or is not finite; if the loss
            is no scalar with a gradient.

    References:
        Poole et al. (2016), arXiv:1606.05340 (norms and cosines); Schoenholz et al. (2017), arXiv:1611.01232
        (gradients); Dong et al. (2021), arXiv:2103.03404 (tokens become alike).

    Example:
        >>> from rezero.layers import MLP
        >>> found = propagation(MLP(64, 32, 100, 10), torch.randn(8, 64))
        >>> found.layers[0].gradient == found.layers[99].gradient
        True
    """
    check_model(model)
    seed = whole("seed", seed)
    example = read_input(x)
    check_devices(model, example, "signals to measure")
    examples = batch_size(example)
    if examples < 2:
        raise UsageError("expected at least two examples, for the cosine between them, got a batch of 1")
    _check_finite(example)
    names = block_names(model) if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise UsageError("expected at least one layer, got none")
    known = dict(model.named_modules(remove_duplicate=False))
    chosen = {known.get(name) or find_layer(model, name): name for name in reversed(names)}  # the first of two names
    with (
        untouched(model, written(model)),
        undisturbed(model),
        switched(model, training=training),
        _thawed(model),
        torch.enable_grad(),
        unfused(),
        kept(model),
    ):
        torch.manual_seed(seed)
        args, kwargs = tree_map_only(Tensor, _followed, copied(example))
        with _Recorder(chosen, examples) as recorder, told(model):
            output = model(*args, **kwargs)
        called = {row.name for row in recorder.rows if row.depth}
        missing = [name for name in chosen.values() if name not in called]
        if missing and (layers is not None or not called):
            raise UsageError(f"layer {missing[-1]!r} is not called: choose others with layers=[...]")
        goal = _projected(output, seed) if loss_fn is None else scalar(loss_fn(output))
        edges = [edge for edge in recorder.edges if edge is not None]
        found = iter(torch.autograd.grad(goal, edges, allow_unused=True) if edges else ())
    rows = [
        _signal(row, None if edge is None else next(found))
        for row, edge in zip(recorder.rows, recorder.edges, strict=True)
    ]
    return Propagation(
        tuple(each for each in rows if each.depth), next((each for each in rows if not each.depth), None)
    )


def _check_finite(example: Any) -> None:
    given = [each for each in tensors(example) if each.is_floating_point()]
    if any(bool(each.isnan().any()) for each in given) or (
        given and bool(given[0].isinf().any())
    ):  # masks are infinite
        raise UsageError("the input is nan or infinite, and so is all that comes of it: look at what it comes from")


@dataclass
class _Row:
    """What is known of a layer's output after the forward pass."""

    name: str
    depth: int
    norm: float
    mean: float
    cosine: float | None
    attention: list[Entropy]


class _Recorder:
    """Measures what the layers return while a model runs, and keeps the way back to it.

    Args:
        layers: Modules and their names.
        examples: Size of the batch.
    """

    def __init__(self, layers: Mapping[nn.Module, str], examples: int) -> None:
        self._layers, self._examples = layers, examples
        self._attention = WatchesAttention()
        self._depth = 0
        self._open: list[int] = []  # calls of attention before each layer that is running
        self._stack = ExitStack()
        self.rows: list[_Row] = []
        self.edges: list[GradientEdge | None] = []

    def __enter__(self) -> "_Recorder":
        self._stack.enter_context(self._attention)
        for module, name in self._layers.items():
            self._stack.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            self._stack.callback(module.register_forward_hook(partial(self._leave, name)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        given = first_real((args, kwargs))
        if not self.rows and not self._open and given is not None:
            self._note("", 0, given, [])
        self._open.append(len(self._attention.seen))

    def _leave(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        returned = first_real(output)
        if returned is None:
            raise UsageError(f"layer {name!r} returns no real numbers to measure: choose others with layers=[...]")
        self._depth += 1
        self._note(name, self._depth, returned, self._attention.seen[self._open.pop() :])

    def _note(self, name: str, depth: int, h: Tensor, attention: list[Entropy]) -> None:
        # An edge leads to h as it is now, even if the model goes on to change it in place.
        self.edges.append(get_gradient_edge(h) if h.requires_grad else None)
        numbers = h.detach().to("cpu", torch.float64)
        cosine = _cosine(numbers, self._examples)
        self.rows.append(_Row(name, depth, root_mean_square(numbers), float(numbers.mean()), cosine, attention))


def _signal(row: _Row, gradient: Tensor | None) -> Signal:
    most = sum(each.most for each in row.attention)
    nats = sum(each.nats for each in row.attention)
    return Signal(
        row.name,
        row.depth,
        row.norm,
        row.mean,
        row.cosine,
        None if gradient is None else root_mean_square(gradient),
        nats / len(row.attention) if row.attention else None,
        nats / most if most else None,
    )


def _cosine(h: Tensor, examples: int) -> float | None:
    """Return the mean cosine of all pairs of examples, from the length of the sum of their directions."""
    if not h.ndim or len(h) != examples:
        return None
    rows = h.reshape(examples, -1)
    lengths = rows.norm(dim=1)
    directions = rows[lengths > 0] / lengths[lengths > 0, None]
    n = len(directions)
    return float((directions.sum(0).square().sum() - n) / (n * (n - 1))) if n > 1 else None


def _followed(tensor: Tensor) -> Tensor:
    """Let gradients flow from a tensor, which must be no leaf for a model that writes into it."""
    return tensor.requires_grad_().clone() if tensor.is_floating_point() else tensor


@contextmanager
def _thawed(model: nn.Module) -> Iterator[None]:
    """Let gradients through frozen parameters, behind which nothing may need one."""
    frozen = [each for each in model.parameters() if each.is_floating_point() and not each.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _projected(output: Any, seed: int) -> Tensor:
    returned = first_real(output)
    if returned is None or not returned.requires_grad:
        raise UsageError("the model returns nothing that has a gradient: does it run under no_grad, or detach?")
    direction = torch.randn(returned.shape, generator=torch.Generator().manual_seed(seed))
    return (returned.float() * direction.to(returned.device)).sum()


def _cells(signal: Signal, *, attends: bool) -> list[str]:
    def shown(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    numbers = [shown(value) for value in (signal.norm, signal.cosine, signal.gradient)]
    spread = [shown(signal.entropy), shown(signal.entropy_share, ".0%")] if attends else []
    name = (signal.name or "(model)") if signal.depth else "(input)"
    return [str(signal.depth), name, *numbers, *spread]
