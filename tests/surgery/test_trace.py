"""What a trace writes down, and that a pass leaves no trace in the model."""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import TensorDataset

from rezero.errors import UsageError
from rezero.surgery.convert import convert_
from rezero.surgery.shapes import call_on_shapes
from rezero.surgery.trace import trace
from rezero.surgery.traced import Op, Trace, Value
from rezero.surgery.undisturbed import switched, undisturbed
from tests.surgery.models import WIDTH, Attention, PreNorm, Restless, linear

X = torch.linspace(-1, 1, 2 * 3 * WIDTH).reshape(2, 3, WIDTH)


class Function(nn.Module):
    """Runs any function of itself and its input; it has a layer ``fc``, a ``weight`` and a buffer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc, self.weight = linear(), nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("table", torch.ones(WIDTH))
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def names(traced: Trace) -> list[str]:
    return [op.name for op in traced.ops]


def op_named(traced: Trace, name: str) -> Op:
    (op,) = [op for op in traced.ops if op.name == name]
    return op


def ignore(_op: Op, _tensors: list[Tensor]) -> None:
    """Ask for a pass with numbers."""


# What is written down


def test_operations() -> None:
    """Operations are in order, each with the tensors it read and made and the module call it happened in."""
    traced = trace(PreNorm(), (X,))
    assert [name.strip("_") for name in names(traced)] == ["layer_norm", "linear", "gelu", "linear", "add"]
    assert [op.index for op in traced.ops] == list(range(5))
    assert [op.call.name for op in traced.ops] == ["norm", "fc1", "", "fc2", ""]
    for first, second in zip(traced.ops, traced.ops[1:], strict=False):
        assert first.outputs[-1] in second.inputs
    assert traced.ops[1].inputs[1].parameter == "fc1.weight"
    assert not traced.real


def test_calls() -> None:
    """Module calls are in the order of their beginning, each with its parent, its operations and its tensors."""
    traced = trace(nn.Sequential(PreNorm(), linear()), (X,))
    assert [call.name for call in traced.calls] == ["", "0", "0.norm", "0.fc1", "0.fc2", "1"]
    whole, block, norm, *_, last = traced.calls
    assert (whole.parent, block.parent, norm.parent, last.parent) == (None, whole, block, whole)
    assert [(call.first, call.last) for call in (whole, block, norm, last)] == [(0, 6), (0, 5), (0, 1), (5, 6)]
    assert block.inputs == norm.inputs == whole.inputs
    assert block.output is traced.ops[4].outputs[-1]
    assert last.inputs == (block.output,)
    assert norm.within(block)
    assert norm.within(norm)
    assert not block.within(norm)
    assert not last.within(block)


def test_calls_of_one_module_are_numbered() -> None:
    """A module that is called again has the same name and the next number."""
    traced = trace(Function(lambda self, x: self.fc(self.fc(x))), (X,))
    assert [(call.name, call.number) for call in traced.calls] == [("", 0), ("fc", 0), ("fc", 1)]


def test_returned_by_innermost_first() -> None:
    """A value that several modules hand on lists their calls, the innermost first."""
    traced = trace(nn.Sequential(nn.Sequential(linear())), (X,))
    (op,) = traced.ops
    assert [call.name for call in op.outputs[-1].returned] == ["0.0", "0", ""]


def test_tuple_is_known_by_its_first_item() -> None:
    """Of a tuple the first item is the output, and the others are kept beside it."""
    traced = trace(nn.Sequential(Attention(weights=True)), (X,))
    attention = next(call for call in traced.calls if call.name == "0")
    assert attention.output is op_outputs(traced, "linear")[-1]
    assert [value.shape for value in attention.others] == [(2, 3, 3)]
    assert all(value.escapes for value in (attention.output, *attention.others))


def op_outputs(traced: Trace, name: str) -> list[Value]:
    return [op.outputs[-1] for op in traced.ops if op.name == name]


@pytest.mark.parametrize(
    ("wrap", "escapes"),
    [
        (lambda y: {"a": y}, True),
        (lambda y: [None, (1, {"a": y})], True),
        (lambda y: (y.shape, "nothing"), False),
    ],
    ids=["dictionary", "nested", "no-tensor"],
)
def test_what_escapes(wrap: Any, *, escapes: bool) -> None:
    """Tensors in nested results escape; results without tensors are no matter."""
    traced = trace(Function(lambda self, x: wrap(self.fc(x))), (X,))
    assert op_outputs(traced, "linear")[0].escapes is escapes


def test_data_is_what_depends_on_the_input() -> None:
    """Values made from parameters and buffers alone are not data, those made with the input are."""
    traced = trace(Function(lambda self, x: x * (self.weight * self.table)), (X,))
    scale, product = (op.outputs[-1] for op in traced.ops)
    assert (scale.data, product.data) == (False, True)


def test_keyword_inputs_are_data() -> None:
    """Tensors in keyword arguments, also in nested ones, are inputs like others."""
    traced = trace(Function(lambda _, *, x: x["a"][0] + 1), kwargs={"x": {"a": [X]}})
    assert traced.ops[-1].inputs[0].data


def test_shared_module_and_tied_parameter_go_by_their_first_names() -> None:
    """A module or parameter with two names has the first."""
    model = nn.ModuleDict({"a": linear(), "b": linear()})
    model["b"].weight = model["a"].weight
    model["c"] = model["a"]
    chain = nn.Sequential(model["a"], model["b"], model["c"])
    traced = trace(chain, (X,))
    assert [call.name for call in traced.calls] == ["", "0", "1", "0"]
    assert [op.inputs[1].parameter for op in traced.ops] == ["0.weight"] * 3


# Writing in place


def test_in_place_makes_another_value() -> None:
    """What is written into is another value from then on, whose operation wrote it."""

    def write(self: Function, x: Tensor) -> Tensor:
        y = self.fc(x)
        y += x
        return y

    traced = trace(Function(write), (X,))
    layer, add = traced.ops
    before, after = layer.outputs[-1], add.outputs[-1]
    assert before is not after
    assert before in add.inputs
    assert before.users == [add]
    assert after.descends_from(before)
    assert (before.escapes, after.escapes) == (False, True)


def test_input_written_in_place() -> None:
    """An input that is written into keeps its first value, too."""

    def write(self: Function, x: Tensor) -> Tensor:
        x.add_(self.fc(x))
        return x

    traced = trace(Function(write), (X,))
    x = traced.calls[0].inputs[0]
    assert [op.name for op in x.users] == ["linear", "add_"]
    assert traced.calls[0].output is op_named(traced, "add_").outputs[-1]


def test_out_argument_is_written_into() -> None:
    """A tensor given as ``out=`` is another value from then on."""

    def write(self: Function, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        torch.add(x, self.table, out=out)
        return out

    traced = trace(Function(write), (X,))
    assert op_named(traced, "add").outputs[-1] is traced.calls[0].output
    assert traced.calls[0].output.descends_from(traced.calls[0].inputs[0])  # type: ignore[union-attr]


def test_setitem_changes_the_tensor() -> None:
    """Assigning to items makes another value of the tensor."""

    def write(self: Function, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 0] = self.fc(x)[:, 0]
        return y

    traced = trace(Function(write), (X,))
    assert traced.calls[0].output is not None
    assert traced.calls[0].output.descends_from(op_outputs(traced, "linear")[0])


# Shapes or numbers


def looks(self: Function, x: Tensor) -> Tensor:
    return self.fc(x) if float(x.sum()) > -1e9 else x


def test_numbers_where_the_model_looks_at_them() -> None:
    """A model that decides by numbers is run with its own, and written down the same."""
    traced = trace(Function(looks), (X,))
    assert traced.real
    assert names(traced)[-1] == "linear"
    assert traced.calls[-1].name == "fc"


def test_failed_pass_leaves_nothing_in_the_trace() -> None:
    """What happened before the pass with shapes gave up is not in the trace."""
    traced = trace(Function(lambda self, x: looks(self, self.fc(x))), (X,))
    assert traced.real
    assert [call.name for call in traced.calls] == ["", "fc", "fc"]
    assert [call.number for call in traced.calls] == [0, 0, 1]


def test_example_without_tensors() -> None:
    """A model may make its own tensors."""
    traced = trace(Function(lambda self: self.fc(torch.ones(1, WIDTH))))
    assert op_outputs(traced, "linear")[0].escapes


def test_on_add_is_shown_the_operands_before() -> None:
    """With ``on_add`` every addition is shown with its operands as they were, though it overwrites one."""
    shown: list[tuple[str, list[Tensor]]] = []

    def add(self: Function, x: Tensor) -> Tensor:
        y = x * 2
        y += x
        return y - x

    traced = trace(Function(add), (X,), on_add=lambda op, tensors: shown.append((op.name, tensors)))
    assert traced.real
    assert [name.strip("_") for name, _ in shown] == ["add", "sub"]
    assert torch.equal(shown[0][1][0], 2 * X)
    assert torch.equal(shown[0][1][1], X)
    assert torch.equal(shown[1][1][0], 3 * X)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_mode(*, training: bool, grad: bool) -> None:
    """The pass runs in the mode that was asked for, whatever the model's own, which is put back."""
    seen: list[tuple[bool, bool, bool]] = []

    def look(self: Function, x: Tensor) -> Tensor:
        y = self.fc(x)
        seen.append((self.training, self.fc.training, y.requires_grad))
        return y

    model = Function(look).train(not training)
    model.fc.train(training)
    trace(model, (X,), training=training, grad=grad)
    assert seen == [(training, training, grad)]
    assert (model.training, model.fc.training) == (not training, training)
    assert torch.is_grad_enabled()


def test_hooks_and_modes_are_gone_after_an_error() -> None:
    """After a pass that failed, no hook of ours is called and no mode of ours is on."""
    with pytest.raises(UsageError, match=r"in fc \(Linear\), \S+linear\.py:\d+"):
        trace(Function(lambda self, x: self.fc(x[..., :3])), (X,))
    assert not torch.overrides._get_current_function_mode_stack()
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


# The context managers


def test_switched_puts_each_mode_back() -> None:
    """Every module has its own mode again afterwards, also after an exception."""
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).eval()
    model[1].train()
    modes: list[bool] = []

    def fail() -> None:
        with switched(model, training=True):
            modes.extend(module.training for module in model.modules())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert modes == [True] * 3
    assert [module.training for module in model.modules()] == [False, False, True]


def disturb(model: Restless) -> None:
    """Change all that `undisturbed` is to put back."""
    model.train()
    model(X)
    torch.rand(3), random.random(), np.random.rand()
    model.bn.running_mean.fill_(float("nan"))
    model.bn.momentum = None
    model.fc = nn.Linear(2, 2)
    model.log = ["another"]
    del model.cache


def snapshot(model: Restless) -> dict[str, Any]:
    return {
        "attributes": {name: dict.fromkeys(vars(module)) for name, module in model.named_modules()},
        "tensors": {key: (id(value), value.tolist()) for key, value in model.state_dict(keep_vars=True).items()},
        "plain": (model.count, model.temporary, model.cache, model.log, model.seen, model.bn.momentum, model.drop.p),
        "objects": (id(model.cache), id(model.log), id(model.seen), id(model.fc)),
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": [str(each) for each in np.random.get_state()],
    }


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
def test_undisturbed_puts_everything_back(*, fails: bool) -> None:
    """Attributes, containers, modules, buffers, modes and random states are put back, also after an exception."""
    model = Restless().eval()
    before = snapshot(model)

    def run() -> None:
        with undisturbed(model):
            disturb(model)
            if fails:
                raise KeyError("stop")

    with pytest.raises(KeyError, match="stop") if fails else nullcontext():
        run()
    assert snapshot(model) == before


def test_undisturbed_with_buffers_of_nan() -> None:
    """Buffers that hold NaN or integers are put back, and one that did not change is not written into."""
    model = nn.BatchNorm1d(3)
    model.running_mean.fill_(float("nan"))
    version = model.running_var._version
    with undisturbed(model):
        model.num_batches_tracked += 5
        model.running_mean.zero_()
    assert model.running_mean.isnan().all()
    assert int(model.num_batches_tracked) == 0
    assert model.running_var._version == version


def test_undisturbed_with_buffers_on_the_meta_device() -> None:
    """Buffers without numbers are no obstacle."""
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    with undisturbed(model):
        model.extra = 1
    assert not hasattr(model, "extra")


def test_passes_draw_no_numbers() -> None:
    """A pass with dropout, in training mode and with numbers, leaves all random states alone."""
    model = Restless(looks=True)
    before = snapshot(model)
    trace(model, (X,), training=True, on_add=ignore)
    assert snapshot(model) == before


def autocasting(self: Function, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        return x + self.fc(x)


@pytest.mark.parametrize("function", [lambda self, x: x + self.fc(x), autocasting], ids=["around", "inside"])
def test_autocast_keeps_no_casts_of_a_pass(function: Any) -> None:
    """Within autocast, whose cache keeps casts of weights, a pass on shapes leaves none: the next one has numbers."""
    model = Function(function)
    with torch.autocast("cpu", torch.bfloat16):
        trace(model, (X,), grad=True)
        y = model(X)
        assert torch.is_autocast_cache_enabled()
    y.sum().backward()
    assert type(y) is Tensor
    assert type(model.fc.weight.grad) is Tensor


class Slotted:
    """Remembers in a slot, and in another that is empty at first."""

    __slots__ = ("count", "last")

    def __init__(self) -> None:
        self.count = 0


class Remembers(nn.Module):
    """Changes objects that are no containers, at any depth, draws from generators of its own, and learns by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.momentum = linear(), nn.Parameter(torch.ones(WIDTH))
        self.plain = SimpleNamespace(count=0, table=None, inner=[SimpleNamespace(memory=torch.zeros(WIDTH))])
        self.slotted, self.recent = Slotted(), deque([0], maxlen=2)
        self.generators = torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
        self.source = np.random.PCG64(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain.table is None:
            self.plain.table = torch.arange(WIDTH) / WIDTH
        self.plain.count += 1
        self.plain.inner[0].memory += 1
        self.plain.inner.append(x)
        self.slotted.count += 1
        self.slotted.last = x
        self.recent.append(x)
        first, *others = self.generators
        noise = torch.rand(1, generator=first) + sum(float(each.random()) for each in others[:1])
        noise = noise + float(self.generators[2].rand()) + self.generators[3].random()
        noise = noise + self.source.random_raw() % 2
        with torch.no_grad():
            self.momentum.data = 0.9 * self.momentum + 0.1 * self.fc.weight[0]
        if torch.is_grad_enabled():
            self.fc(x.detach()).sum().backward()
        return x + self.fc(x) * self.plain.table * self.momentum + noise

    def memory(self) -> Any:
        """Return all that it changes."""
        first, *others = self.generators
        states = first.get_state().tolist(), *(str(each.bit_generator.state) for each in others[:1])
        return {
            "attributes": (self.plain.count, self.plain.table, len(self.plain.inner), list(self.recent)),
            "slots": (self.slotted.count, hasattr(self.slotted, "last")),
            "generators": (*states, str(self.generators[2].get_state()), self.generators[3].getstate()),
            "source": str(self.source.state),
            "tensors": (self.plain.inner[0].memory.tolist(), self.momentum.tolist(), self.momentum.data_ptr()),
            "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in self.parameters()],
        }


@pytest.mark.parametrize("learned", [False, True], ids=["new", "with gradients"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("numbers", [False, True], ids=["shapes", "numbers"])
def test_objects_of_any_class_are_put_back(*, training: bool, numbers: bool, learned: bool) -> None:
    """A pass leaves plain objects, slots, queues, generators, moved parameters and gradients as they were."""
    model = Remembers()
    if learned:
        model(X).sum().backward()
    before = model.memory()
    trace(model, (X,), training=training, grad=True, on_add=ignore if numbers else None)
    assert model.memory() == before
    assert type(model(X)) is Tensor


def test_what_belongs_to_training_is_not_copied() -> None:
    """Data and optimizers that a model refers to are not its own: a pass does not copy them, nor put them back."""
    model: Any = linear()
    model.data = TensorDataset(torch.zeros(3))
    with undisturbed(model):
        model.data.tensors[0].add_(1)
    assert model.data.tensors[0].all()


TABLES: dict[int, Tensor] = {}


def tabled(self: Function, x: Tensor) -> Tensor:
    if WIDTH not in TABLES:
        TABLES[WIDTH] = torch.arange(WIDTH) / WIDTH
    return x + self.fc(x) * TABLES[WIDTH]


@pytest.fixture
def no_tables() -> Iterator[None]:
    """Empty the global cache before a test and after it."""
    TABLES.clear()
    yield
    TABLES.clear()


@pytest.mark.usefixtures("no_tables")
def test_a_cache_that_can_not_be_put_back_is_refused() -> None:
    """A model that fills a global cache is told so, as long as the cache is bad, and runs if it was full before."""
    model = nn.Sequential(Function(tabled))
    with pytest.raises(UsageError, match=r"'0' keeps a tensor out of reach: .*a global.*run it once on the example"):
        trace(model, (X,))
    for on_add in (None, ignore):
        with pytest.raises(UsageError, match=r"^the model keeps a tensor out of reach: .*empty it"):
            trace(model, (X,), on_add=on_add)
    TABLES.clear()
    y = model(X)
    assert names(trace(model, (X,)))[-1].strip("_") == "add"
    assert torch.equal(model(X), y)


recorded: dict[str, Any] = {}


class Recorder:
    """Hooks that keep what they see."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def keep(self, _module: nn.Module, _args: Any, y: Tensor) -> None:
        self.seen.append(y)


def keep(where: list[Tensor], _module: nn.Module, _args: Any, y: Tensor) -> None:
    where.append(y)
    recorded["y"] = y


@pytest.mark.parametrize("hook", ["closure", "method", "partial"])
def test_hooks_keep_nothing_of_a_pass(hook: str) -> None:
    """What hooks record, in a list of theirs or a global one, is as it was before the model was traced."""
    model, seen, recorder = PreNorm(), [X], Recorder()
    recorder.seen = seen

    def closure(_module: nn.Module, _args: Any, y: Tensor) -> None:
        seen.append(y)
        recorded["y"] = y

    hooks = {"closure": closure, "method": recorder.keep, "partial": partial(keep, seen)}
    model.register_forward_hook(hooks[hook])
    recorded.clear()
    for numbers in (False, True):
        trace(model, (X,), on_add=ignore if numbers else None)
        assert len(seen) == 1
        assert seen[0] is X
        assert not recorded


@pytest.mark.usefixtures("no_tables")
def test_a_cache_that_is_full_before_serves_a_conversion() -> None:
    """A model with a global cache is converted on shapes alone if it ran once; otherwise it is left as it was."""
    model = nn.Sequential(Function(tabled))
    before = list(model.state_dict())
    with pytest.raises(UsageError, match=r"a cache outside of the model"):
        convert_(model, X, init_value=1.0, verify=False)
    assert list(model.state_dict()) == before
    TABLES.clear()
    model(X)
    assert convert_(model, X, init_value=1.0, verify=False).gates == ("0.fc.alpha",)


@pytest.mark.usefixtures("no_tables")
@pytest.mark.parametrize("options", [{"verify": False}, {"init_value": 1.0}], ids=str)
def test_a_conversion_that_runs_a_model_fills_its_cache_with_numbers(options: dict[str, Any]) -> None:
    """Where the conversion runs the model anyway, a global cache may be empty, and what it holds then is right."""
    model = nn.Sequential(Function(tabled))
    assert convert_(model, X, **options).gates == ("0.fc.alpha",)
    assert TABLES
    kept = dict(TABLES)
    y = model(X)
    TABLES.clear()
    assert torch.equal(model(X), y)
    assert all(torch.equal(TABLES[key], value) for key, value in kept.items())


@pytest.mark.usefixtures("no_tables")
def test_a_cache_without_numbers_of_a_model_without_any_is_refused() -> None:
    """On the meta device, too, a model that fills a global cache is told so, and a parameter in it is its own."""
    model = nn.Sequential(Function(tabled)).to("meta")
    with pytest.raises(UsageError, match=r"'0' keeps a tensor out of reach: .*a global.*run it once on the example"):
        trace(model, (X,))
    TABLES.clear()
    plain = Function(lambda self, x: x + self.fc(x)).to("meta")
    TABLES[WIDTH] = plain.fc.weight
    assert names(trace(plain, (X,)))[-1].strip("_") == "add"


@lru_cache(maxsize=1)
def remembered(size: int) -> Tensor:
    return torch.arange(size).float()


def test_a_full_cache_of_a_function_keeps_nothing_of_a_pass() -> None:
    """A cache that holds one tensor is emptied, too, if the pass has put its own in its place."""
    remembered(3)
    trace(Function(lambda self, x: x + self.fc(x) * remembered(WIDTH)), (X,))
    assert remembered(WIDTH).tolist() == list(range(WIDTH))


@lru_cache
def remembered_inside(size: int) -> dict[str, list[Tensor]]:
    return {"places": [torch.arange(size).float()]}


@lru_cache
def remembered_otherwise(size: int) -> list[int]:
    return [size]


def test_a_pass_that_ends_early_empties_only_the_caches_that_hold_something_of_it() -> None:
    """Where a pass on shapes ends at a number, what it left inside of a container goes; other caches stay full."""
    remembered_inside.cache_clear()
    before = remembered_otherwise(1)

    def look(self: Any, x: Tensor) -> Tensor:
        remembered_otherwise(2)
        y = x + self.fc(x) * remembered_inside(WIDTH)["places"][0]
        return y if y.sum() > 0 else -y

    assert trace(Function(look), (X,)).real
    assert remembered_inside(WIDTH)["places"][0].tolist() == list(range(WIDTH))
    assert remembered_otherwise(1) is before


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_batch_norm_on_shapes_is_like_one_on_numbers(dtype: torch.dtype, affine: bool) -> None:
    """Shape, memory, dtype and whether there is a gradient are those of the real one, in evaluation and training."""
    x = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    for training in (False, True):
        norm = nn.BatchNorm2d(3, affine=affine).train(training)
        norm = norm.to(dtype) if dtype is torch.float64 else norm
        y = norm(x)
        found = trace(norm, (x,), grad=True, training=training)
        assert found.calls[0].output is not None
        assert found.calls[0].output.shape == y.shape
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            weights = (norm.running_mean, norm.running_var, norm.weight, norm.bias, training)
            z = call_on_shapes(F.batch_norm, (mode.from_tensor(x), *weights), {})
        assert (z.shape, z.stride(), z.dtype, z.requires_grad) == (y.shape, y.stride(), y.dtype, y.requires_grad)


def test_a_model_that_looks_at_a_tensor_without_numbers_is_told_so() -> None:
    """A tensor without numbers, that something else left in a model with numbers, is not taken for the meta device."""
    model = Function(lambda self, x: self.fc(x) if self.left.sum() > 0 else x)
    with FakeTensorMode():
        left = torch.ones(1)
    model.left = left
    with pytest.raises(UsageError, match=r"a cache outside of the model.* holds a tensor without numbers"):
        trace(model, (X,))
