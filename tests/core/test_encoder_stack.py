"""The stack of many equal Transformer layers: what it computes, derivatives, memory, compilers and conversions."""

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rezero
from rezero import DeepStack, Gate, ReZero
from rezero.layers import MLPBlock, TransformerEncoderLayer
from tests.kept import bytes_kept

F64 = torch.float64
D, HEADS, FF, B, T = 8, 2, 16, 2, 5

inductors_import = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
functions_import = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def layer(**options: Any) -> TransformerEncoderLayer:
    return TransformerEncoderLayer(D, HEADS, FF, **{"dropout": 0.0, "batch_first": True, **options})


def stack(depth: int = 5, *, checkpoint: Any = None, **options: Any) -> DeepStack:
    """Build a stack whose gates are open, each in its own way."""
    made = DeepStack(layer(**options), depth, checkpoint=checkpoint)
    for name, parameter in made.named_parameters():
        if name == "alpha" or name.endswith("bias"):  # biases start at zero
            nn.init.normal_(parameter, std=0.3)
    return made


def one_by_one(layers: nn.Sequential) -> Callable[..., Tensor]:
    def call(x: Tensor, **masks: Any) -> Tensor:
        for each in layers:
            x = each(x, **masks)
        return x

    return call


def gradients(made: DeepStack, layers: nn.Sequential) -> list[tuple[str, Tensor, Tensor]]:
    """The gradient of each role: the stack's, and the layers' side by side."""
    found = []
    for name, parameter in made.named_parameters():
        places = [f"gates.{i}.alpha" for i in range(parameter.shape[1])] if name == "alpha" else [name]
        rows = [torch.cat([each.get_parameter(place).grad for place in places]) for each in layers]
        assert parameter.grad is not None
        found.append((name, parameter.grad, torch.stack(rows)))
    return found


def learned(x: Tensor) -> Tensor:
    return x * x.sigmoid()


KINDS: dict[str, dict[str, Any]] = {
    "sublayer": {},
    "layer": {"share": "layer"},
    "gelu": {"activation": "gelu"},
    "function": {"activation": learned},
    "partial": {"activation": functools.partial(F.gelu, approximate="tanh")},
    "PReLU": {"activation": nn.PReLU()},
    "time first": {"batch_first": False},
    "no bias": {"bias": False},
}
MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "no mask": dict,
    "causal": lambda: {"is_causal": True},
    "padded": lambda: {"src_key_padding_mask": torch.arange(T).expand(B, T) > torch.tensor([[2], [3]])},
    "silent row": lambda: {"src_key_padding_mask": torch.tensor([[False] * T, [True] * T])},
    "both": lambda: {
        "src_mask": torch.randn(T, T, dtype=F64),
        "src_key_padding_mask": torch.arange(T).expand(B, T) > 3,
    },
    "hint": lambda: {"src_mask": torch.ones(T, T).triu(1).bool(), "is_causal": True},
}


# What it computes


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("share", ["sublayer", "layer"])
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_is_the_identity_at_the_start(share: Any, checkpoint: Any, training: bool) -> None:
    """With every alpha 0 output and gradient pass 10 layers bitwise, with dropout too; parameters get exact zeros."""
    made = DeepStack(layer(share=share, dropout=0.3), 10, checkpoint=checkpoint).train(training)
    x, g = torch.randn(B, T, D, requires_grad=True), torch.randn(B, T, D)
    y = made(x, is_causal=True)
    assert torch.equal(y, x)
    y.backward(g)
    assert torch.equal(x.grad, g)
    for name, parameter in made.named_parameters():
        assert bool(parameter.grad.any()) == (name == "alpha"), name


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_equals_a_sequence_of_layers_under_every_mask(checkpoint: Any, masks: Callable[[], dict[str, Any]]) -> None:
    """Output and gradients are those of the separate layers, each of which gets the masks."""
    made, options = stack(5, checkpoint=checkpoint, dtype=F64), masks()
    check_equal(made, torch.randn(B, T, D, dtype=F64), rtol=1e-12, **options)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("depth", [1, 4])
def test_equals_a_sequence_of_layers_of_every_kind(depth: int, options: dict[str, Any]) -> None:
    """In float32 output and gradients are bitwise those of the separate layers, whatever their options."""
    check_equal(stack(depth, **options), torch.randn(B, T, D), rtol=0, is_causal=True)


@pytest.mark.parametrize("shape", [(T, D), (0, T, D), (B, 1, D), (40, 64, D)], ids=str)
def test_takes_every_shape_that_a_layer_takes(shape: tuple[int, ...]) -> None:
    """An input without a batch, an empty, a short and a large one give what the separate layers give."""
    check_equal(stack(3, dtype=F64), torch.randn(shape, dtype=F64), rtol=1e-12)


def check_equal(made: DeepStack, x: Tensor, *, rtol: float, **masks: Any) -> None:
    layers, ends = made.to_modules(), []
    for call in (made, one_by_one(layers)):
        begin = x.clone().requires_grad_()
        y = call(begin, **masks)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) + y.square()).sum().backward()
        ends.append((y.detach(), begin.grad))
    assert not x.numel() or not torch.equal(ends[0][0], x)
    torch.testing.assert_close(ends[0], ends[1], rtol=rtol, atol=rtol)
    for name, ours, theirs in gradients(made, layers):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}")


def test_rounds_as_the_layers_in_bfloat16_and_under_autocast() -> None:
    """In a bfloat16 model and under autocast the output is bitwise that of the layers; alpha stays float32."""
    made, x = stack(4), torch.randn(B, T, D)
    for checkpoint in (None, "sqrt"):
        made.checkpoint = checkpoint
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = made(x), made.to_modules()(x)
        assert torch.equal(y, expected)
        y.sum().backward()
    made, x = made.bfloat16(), x.bfloat16()
    assert made.alpha.dtype == torch.float32
    assert torch.equal(made(x), made.to_modules()(x))
    made(x).float().square().sum().backward()
    kinds = {name: parameter.grad.dtype for name, parameter in made.named_parameters()}
    assert kinds.pop("alpha") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


# Dropout


def decode(made: Callable[[Tensor], Tensor], owner: DeepStack) -> tuple[list[Tensor], Tensor, Tensor]:
    """Read the dropout masks of all layers off one output, and which masks two gradients were taken with.

    A branch is its last bias, 1, so that layer l adds alpha_l = 2^-l where its dropout keeps an entry.
    """
    for parameter in owner.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(owner.linear2.bias)
    with torch.no_grad():
        owner.alpha[:, 1] = 0.5 ** torch.arange(len(owner.alpha))
    x = torch.randn(B, T, D, dtype=F64)
    y = made(x)
    rest, masks = (y - x).detach() / 2, []  # kept entries are divided by 1 - 0.5
    for alpha in owner.alpha[:, 1].tolist():
        masks.append((rest >= alpha - 1e-9).to(F64))
        rest -= alpha * masks[-1]
    assert rest.abs().max() < 1e-9
    return masks, *torch.autograd.grad(y.sum(), [owner.linear2.bias, owner.alpha])


def check_dropout(made: Callable[[Tensor], Tensor], owner: DeepStack) -> None:
    masks, of_bias, of_alpha = decode(made, owner)
    assert all(0.2 < each.mean() < 0.8 for each in masks)
    assert not any(torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])
    kept = torch.stack(masks)
    alpha = owner.alpha.detach()[:, 1]
    torch.testing.assert_close(of_bias, 2 * alpha.view(-1, 1) * kept.sum((1, 2)))
    torch.testing.assert_close(of_alpha[:, 1], 2 * kept.sum((1, 2, 3)))


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_each_layer_drops_entries_of_its_own(checkpoint: Any) -> None:
    """Every layer has its own dropout mask, which its gradients are taken with, recomputed or not."""
    made = stack(6, checkpoint=checkpoint, dropout=0.5, dtype=F64)
    check_dropout(made, made)


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_dropout_is_that_of_the_layers(checkpoint: Any) -> None:
    """From one seed the stack drops what the separate layers drop, in output and gradients, and nothing in eval."""
    made, x = stack(5, checkpoint=checkpoint, dropout=0.3), torch.randn(B, T, D)
    layers = made.to_modules()
    for training in (True, False):
        outputs = []
        for each in (made, layers):
            each.train(training).zero_grad()
            torch.manual_seed(5)
            outputs.append(each(x))
            torch.rand(3)  # the recomputation draws what was drawn, whatever was drawn since
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs)
        assert all(torch.equal(ours, theirs) for _, ours, theirs in gradients(made, layers))
        assert torch.equal(made(x), made(x)) != training


def test_dropouts_are_the_modules_of_the_stack() -> None:
    """Dropouts that a user changes or sets to training change in every layer."""
    made, x = stack(3, dropout=0.5), torch.randn(B, T, D)
    found = [module for module in made.modules() if isinstance(module, nn.Dropout)]
    assert len(found) == 3
    made.eval()
    assert torch.equal(made(x), made(x))
    made.dropout1.train()
    assert not torch.equal(made(x), made(x))
    for copied in (copy.deepcopy(made), DeepStack.from_modules(made.to_modules())):
        assert not torch.equal(copied(x), copied(x))
        copied.dropout1.p = 0.0
        assert torch.equal(copied(x), copied(x))


def test_recomputes_in_the_mode_of_the_forward_pass() -> None:
    """A stack set to evaluation between forward and backward pass still takes its gradients with dropout."""
    made, x, found = stack(4, checkpoint="sqrt", dropout=0.5), torch.randn(B, T, D), []
    for changes in (False, True):
        made.train().zero_grad()
        torch.manual_seed(1)
        y = made(x)
        made.train(not changes)
        y.sum().backward()
        found.append([each.grad.clone() for each in made.parameters()])
    assert all(map(torch.equal, *found))


# Derivatives and memory


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_passes_gradcheck_twice(checkpoint: Any) -> None:
    """First and second derivatives of input and parameters pass gradcheck in float64."""
    made = stack(3, checkpoint=checkpoint, dtype=F64, activation=F.silu)
    x = torch.randn(1, 2, D, dtype=F64, requires_grad=True)
    names, values = zip(*made.named_parameters(), strict=True)

    def call(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
        assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_checkpointing_changes_no_bit(depth: int) -> None:
    """In float32 output and gradients with checkpoint="sqrt" are bitwise those of the plain run."""
    plain = stack(depth)
    frugal = DeepStack.from_modules(plain.to_modules(), checkpoint="sqrt")
    x = torch.randn(B, T, D)
    for each in (plain, frugal):
        each(x, is_causal=True).square().sum().backward()
    assert torch.equal(plain(x), frugal(x))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), frugal.parameters(), strict=True))


def test_checkpointing_keeps_the_root_of_the_depth() -> None:
    """Kept for the backward pass is as much as the layers keep, and one input a segment with checkpoint="sqrt"."""
    x = torch.randn(4, 16, D)
    plain, frugal = (stack(25, checkpoint=checkpoint, dropout=0.1) for checkpoint in (None, "sqrt"))
    layers = plain.to_modules()
    assert bytes_kept(plain, x, plain) <= bytes_kept(layers, x, layers)
    assert bytes_kept(frugal, x, frugal) == 4 * x.nbytes  # the first segment's input is the caller's
    with torch.no_grad():
        assert bytes_kept(plain, x, plain) == 0


class Made(TorchDispatchMode):
    """The sizes of the tensors that operations make, aliases left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.detach.default:
            self.sizes += [each.numel() for each in tree_leaves(result) if isinstance(each, Tensor)]
        return result


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_no_gradient_of_full_size_is_made_a_layer(checkpoint: Any) -> None:
    """The backward pass makes a number of tensors of a stacked parameter's size that does not grow with the depth."""

    def count(depth: int) -> int:
        made = stack(depth, checkpoint=checkpoint)
        y = made(torch.randn(1, 1, D)).sum()
        with Made() as made_since:
            y.backward()
        return sum(size == made.linear1.weight.numel() for size in made_since.sizes)

    assert count(5) == count(20) == 2  # one for each weight of the feed-forward branch


@functions_import
def test_transforms_of_torch_func_see_through() -> None:
    """vmap, jvp, grad, jacrev and forward-mode duals give what the separate layers give, checkpointed or not."""
    x, v, func = torch.randn(B, T, D, dtype=F64), torch.randn(B, T, D, dtype=F64), torch.func
    ways: list[Callable[[Any], Any]] = [
        lambda f: func.vmap(f)(x),
        lambda f: func.jvp(f, (x,), (v,)),
        lambda f: func.grad(lambda x: f(x).square().sum())(x),
        lambda f: func.vmap(func.jacrev(f))(x[:, :2]),
        lambda f: torch.autograd.functional.jvp(f, x, v),
    ]
    for checkpoint in (None, "sqrt"):
        made = stack(3, checkpoint=checkpoint, dtype=F64)
        layers = made.to_modules()
        for way in ways:
            with sdpa_kernel(SDPBackend.MATH):  # the only one with forward mode and a batching rule
                torch.testing.assert_close(way(made), way(layers), rtol=1e-10, atol=1e-10)


def test_threads_do_not_meet() -> None:
    """Calls of one stack in several threads give each its own output."""
    made = stack(10).eval()
    inputs = [torch.randn(B, T, D) for _ in range(4)]
    expected, got = [made(x) for x in inputs], {}

    def work(i: int) -> None:
        got[i] = [made(inputs[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(torch.equal(y, expected[i]) for i in range(4) for y in got[i])


# Compilers


@pytest.mark.slow
@inductors_import
@pytest.mark.parametrize("options", [{}, {"share": "layer", "bias": False, "activation": nn.PReLU()}], ids=str)
def test_compiles_without_unrolling(options: dict[str, Any]) -> None:
    """torch.compile makes one graph, as large for 40 layers as for 2, with the eager output and gradients."""
    sizes = []

    def look(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        sizes.append(sum(len(each.graph.nodes) for each in graph.modules() if isinstance(each, torch.fx.GraphModule)))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for depth in (2, 40):
        torch._dynamo.reset()
        made, masks = stack(depth, **options).double(), MASKS["both"]()
        compiled = torch.compile(made, backend=look, fullgraph=True)
        found = []
        for call in (compiled, made):
            made.zero_grad()
            x = torch.randn(B, T, D, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
            y = call(x, **masks)
            y.square().sum().backward()
            found.append((y.detach(), x.grad, *(each.grad.clone() for each in made.parameters())))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, **masks), made(x, **masks))
    assert len(sizes) == 4
    assert sizes[:2] == sizes[2:]


@pytest.mark.slow
@inductors_import
def test_compiles_to_machine_code() -> None:
    """The default compiler gives the eager output and gradients, each layer with a dropout mask of its own."""
    torch._dynamo.reset()
    made = stack(4, dropout=0.5, dtype=F64)
    compiled = torch.compile(made, fullgraph=True)
    check_dropout(compiled, made)
    made.eval()
    nn.init.normal_(made.alpha)
    x = torch.randn(B, T, D, dtype=F64)
    torch.testing.assert_close(compiled(x), made(x))


@inductors_import
def test_attention_drops_the_same_in_a_compiled_backward_pass() -> None:
    """Compiled, the gradients of attention are taken with the entries that the forward pass dropped."""
    torch._dynamo.reset()
    made = stack(4, dropout=0.5, dtype=F64)
    with torch.no_grad():
        for each in (made.self_attn.in_proj_weight, made.self_attn.out_proj.bias, made.alpha[:, 1]):
            each.zero_()
    x = torch.randn(B, T, D, dtype=F64)
    change = (torch.compile(made, fullgraph=True, backend="aot_eager")(x) - x).sum()
    bias = made.self_attn.in_proj_bias
    (gradient,) = torch.autograd.grad(change, [bias])
    assert change.abs() > 0.1
    torch.testing.assert_close((gradient * bias).sum(), change)  # which is linear in the values, all of them biases


@pytest.mark.slow
@inductors_import
@pytest.mark.parametrize(("dynamic", "graphs"), [(None, 2), (True, 1)], ids=["by default", "dynamic"])
def test_compiles_with_masks_of_changing_lengths(dynamic: bool | None, graphs: int) -> None:
    """A second graph, or the first where it is asked for, serves sequences of every length."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = stack(3)
    with torch._dynamo.config.patch(specialize_float=True):  # or scan refuses the probability of a dropout
        compiled = torch.compile(made, fullgraph=True, backend="eager", dynamic=dynamic)
        for batch, length in ((2, 5), (3, 7), (4, 6)):
            x = torch.randn(batch, length, D)
            masks = {"src_key_padding_mask": torch.arange(length).expand(batch, length) > 3, "is_causal": True}
            torch.testing.assert_close(compiled(x, **masks), made(x, **masks))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@inductors_import
def test_compiles_under_autocast() -> None:
    """Compiled under autocast, output and gradients are those of eager mode as far as bfloat16 goes."""
    torch._dynamo.reset()
    made, x, found = stack(4), torch.randn(B, T, D), []
    for call in (made, torch.compile(made, fullgraph=True, backend="aot_eager")):
        made.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = call(x)
        y.square().mean().backward()
        found.append((y.detach(), *(each.grad for each in made.parameters())))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.01)


@pytest.mark.slow
@functions_import
@inductors_import
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap over attention
def test_compiled_transforms_see_through() -> None:
    """Under torch.compile too, grad and vmap of a stack are what they are without."""
    made, x = stack(2, dtype=F64), torch.randn(B, T, D, dtype=F64)
    for way in (torch.func.vmap(lambda x: made(x)), torch.func.grad(lambda x: made(x).square().sum())):
        torch._dynamo.reset()
        compiled = torch.compile(way, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), way(x))


# Conversions


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_layers_survive_the_way_there_and_back(options: dict[str, Any]) -> None:
    """Layers stacked and taken apart have the same state dict, bitwise; so has a stack, taken apart and stacked."""
    layers = nn.Sequential(*(layer(init_value=0.25, dropout=0.1, **copy.deepcopy(options)) for _ in range(3)))
    for each in layers.parameters():
        nn.init.normal_(each)
    layers.eval().requires_grad_(False)
    made = DeepStack.from_modules(layers, checkpoint="sqrt")
    assert equal_states(made.to_modules(), layers)
    assert equal_states(DeepStack.from_modules(made.to_modules()), made)
    assert str(made.to_modules()) == str(layers)
    assert (made.init_value, made.training, made.checkpoint) == (0.25, False, "sqrt")
    assert not any(each.requires_grad for each in (*made.parameters(), *made.to_modules().parameters()))
    assert {each.data_ptr() for each in made.parameters()}.isdisjoint(each.data_ptr() for each in layers.parameters())


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(map(torch.equal, states[0].values(), states[1].values()))


def test_names_are_those_of_a_layer() -> None:
    """Each role is one parameter under its name in a layer, with the axis of layers in front; the gates are alpha."""
    shapes = {name: tuple(each.shape) for name, each in DeepStack(layer(), 7).named_parameters()}
    assert shapes == {
        "alpha": (7, 2),
        "self_attn.in_proj_weight": (7, 3 * D, D),
        "self_attn.in_proj_bias": (7, 3 * D),
        "self_attn.out_proj.weight": (7, D, D),
        "self_attn.out_proj.bias": (7, D),
        "linear1.weight": (7, FF, D),
        "linear1.bias": (7, FF),
        "linear2.weight": (7, D, FF),
        "linear2.bias": (7, D),
    }
    assert DeepStack(layer(share="layer"), 7).alpha.shape == (7, 1)
    assert DeepStack(layer(activation=nn.PReLU(init=0.1)), 7).activation.weight.tolist() == [[pytest.approx(0.1)]] * 7


def test_stacks_the_layers_of_a_torch_encoder() -> None:
    """The layers of an nn.TransformerEncoder, deep copies of one, can be stacked."""
    options = {"activation": functools.partial(F.gelu, approximate="tanh")}
    encoder = nn.TransformerEncoder(layer(**options, init_value=0.5), 3, enable_nested_tensor=False)
    x = torch.randn(B, T, D)
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    made = DeepStack.from_modules(encoder.layers)
    assert torch.equal(made(x, causal), encoder(x, causal))


def hooked() -> TransformerEncoderLayer:
    made = layer()
    made.linear1.register_forward_hook(lambda *_: None)
    return made


def with_part(name: str, part: nn.Module) -> TransformerEncoderLayer:
    made = layer()
    setattr(made, name, part)
    return made


def tied() -> list[nn.Module]:
    one, other = layer(), layer()
    other.linear1.weight = one.linear1.weight
    return [one, other]


def tied_inside() -> TransformerEncoderLayer:
    made = TransformerEncoderLayer(D, HEADS, D)
    made.linear1.weight = made.linear2.weight
    return made


class Counting(nn.Module):
    """An activation with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


class Sub(TransformerEncoderLayer):
    """A layer that could do anything."""


def with_frozen_gate(made: TransformerEncoderLayer) -> TransformerEncoderLayer:
    made.gates[0].requires_grad_(False)
    return made


@pytest.mark.parametrize("place", ["self_attn", "linear1", "linear2", "self_attn.out_proj"])
def test_hooks_on_a_part_run_in_every_layer(place: str) -> None:
    """Forward hooks change what each layer passes on, as in layers one by one, and can be removed."""
    made = DeepStack(layer(init_value=0.1), 3)
    layers, x = made.to_modules(), torch.randn(2, 5, D)
    seen: list[Any] = []

    def double(_: nn.Module, __: Any, y: Any) -> Any:
        seen.append(y)
        return (2 * y[0], *y[1:]) if isinstance(y, tuple) else 2 * y

    parts = [each.get_submodule(place) for each in layers]
    hooks = [part.register_forward_hook(double) for part in parts]
    own = made.get_submodule(place).register_forward_hook(double)
    expected = layers(x)
    times = len(seen)
    torch.testing.assert_close(made(x), expected)
    assert len(seen) == 2 * times
    own.remove()
    for hook in hooks:
        hook.remove()
    assert torch.equal(made(x), layers(x))
    assert len(seen) == 2 * times


def test_backward_hooks_on_a_part_run_in_every_layer() -> None:
    """Before and behind the gradients of a part, once a layer."""
    made, seen = DeepStack(layer(init_value=0.1), 3), []
    made.linear1.register_full_backward_pre_hook(lambda *_: seen.append("before"))
    made.linear1.register_full_backward_hook(lambda *_: seen.append("behind"))
    made(torch.randn(2, 5, D, requires_grad=True)).sum().backward()
    assert seen == ["before", "behind"] * 3


def test_a_setting_of_a_part_is_that_of_every_layer() -> None:
    """Attributes of a stacked part are read and set like those of the layers' own part."""
    made = DeepStack(layer(init_value=1.0, dropout=0.5), 3)
    assert made.self_attn.dropout == 0.5
    assert made.linear1.in_features == D
    made.self_attn.dropout = 0.0
    for name, module in made.named_modules():
        if isinstance(module, nn.Dropout):
            made.get_submodule(name).p = 0.0
    x = torch.randn(2, 5, D)
    assert torch.equal(made(x), made.eval()(x))
    assert all(each.self_attn.dropout == 0.0 for each in made.to_modules())
    assert copy.deepcopy(made).self_attn.dropout == 0.0
    with pytest.raises(AttributeError, match="no attribute 'dropouts'"):
        _ = made.self_attn.dropouts


def test_a_part_has_a_mode_of_its_own() -> None:
    """The attention of all layers is told to drop nothing, as that of the separate layers is."""
    stacked, x = DeepStack(layer(dropout=0.5, init_value=0.5), 2), torch.randn(1, 4, D)
    for name, module in stacked.named_modules():
        if name:
            module.eval()
    assert torch.equal(stacked(x), stacked(x))
    stacked.get_submodule("self_attn").train()
    assert not torch.equal(stacked(x), stacked(x))


BAD_BLOCKS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "torch's own": (
        lambda: [nn.TransformerEncoderLayer(D, HEADS)],
        TypeError,
        "(is|got) torch.nn.TransformerEncoderLayer; torch's own layer has norms: build rezero.layers",
    ),
    "an encoder": (
        lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False),
        TypeError,
        "got one torch.nn.TransformerEncoder; .* pass its layers",
    ),
    "frozen gate": (
        lambda: [with_frozen_gate(layer()) for _ in range(2)],
        ValueError,
        "gates.0.alpha and gates.1.alpha to learn both or neither",
    ),
    "subclass": (lambda: [Sub(D, HEADS)], TypeError, "unchanged .*: got Sub|block 0 is Sub"),
    "mixed": (lambda: [layer(), ReZero(MLPBlock(D))], ValueError, "but for their values: .* and missing in block 1"),
    "wrapped": (lambda: [ReZero(layer())], TypeError, "without ReZero around it"),
    "hook": (lambda: [hooked()], TypeError, "linear1 of block 0 has one"),
    "part": (
        lambda: [with_part("dropout2", nn.Identity())],
        TypeError,
        "whose dropout2 is a Dropout: in block 0 it is a Identity",
    ),
    "buffer": (lambda: [layer(activation=Counting())], ValueError, "block 0 has activation.calls"),
    "gate": (lambda: [layer(activation=ReZero(nn.Linear(FF, FF)))], TypeError, "block 0 has activation.gate"),
    "tanh": (
        lambda: [with_part("gates", nn.ModuleList([Gate(activation="tanh"), Gate()]))],
        ValueError,
        "without an activation",
    ),
    "starts": (
        lambda: [with_part("gates", nn.ModuleList([Gate(), Gate(init_value=1.0)]))],
        ValueError,
        "that start alike",
    ),
    "shared": (tied, ValueError, "must not share parameters"),
    "shared inside": (lambda: [tied_inside()], ValueError, "block 0 has one in two places"),
    "widths": (
        lambda: [layer(), TransformerEncoderLayer(D, HEADS, 5, 0.0, batch_first=True)],
        ValueError,
        r"linear1.weight.shape is torch.Size\(\[16, 8\]\) in block 0 and torch.Size\(\[5, 8\]\) in block 1",
    ),
    "heads": (
        lambda: [layer(), TransformerEncoderLayer(D, 4, FF, 0.0, batch_first=True)],
        ValueError,
        "self_attn.num_heads is 2 in block 0 and 4 in block 1",
    ),
    "dropouts": (lambda: [layer(), layer(dropout=0.1)], ValueError, r"self_attn.dropout is 0.0 in block 0 and 0.1 in"),
    "layouts": (lambda: [layer(), layer(batch_first=False)], ValueError, "batch_first is True in block 0 and False in"),
    "activations": (lambda: [layer(), layer(activation="gelu")], ValueError, "activation is .* in block 0 and .*gelu"),
    "biases": (lambda: [layer(), layer(bias=False)], ValueError, "in block 0 and missing in block 1; stack those"),
    "share": (lambda: [layer(), layer(share="layer")], ValueError, "gates.1.alpha.shape is .* and missing in block 1"),
    "init": (lambda: [layer(), layer(init_value=1.0)], ValueError, "gates.0.init_value is 0.0 in block 0 and 1.0 in"),
    "mode": (lambda: [layer(), layer().eval()], ValueError, "training is True in block 0 and False in block 1"),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD_BLOCKS.values(), ids=BAD_BLOCKS)
def test_layers_that_cannot_be_stacked_are_refused(
    make: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    """from_modules says which layer is not as the others, or can't be stacked at all."""
    with pytest.raises(kind, match=message):
        DeepStack.from_modules(make())


BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "gated": (lambda: DeepStack(ReZero(layer()), 3), TypeError, "without ReZero around it"),  # type: ignore[arg-type]
    "subclass": (lambda: DeepStack(Sub(D, HEADS), 3), TypeError, "so far: got Sub"),
    "hook": (lambda: DeepStack(hooked(), 3), TypeError, "linear1 of the block has one; remove it"),
    "init_value": (lambda: DeepStack(layer(), 3, init_value=float("inf")), ValueError, "must be a finite number"),
    "depth": (lambda: DeepStack(layer(), 0), ValueError, "depth must be at least 1: got 0"),
    "width": (lambda: stack()(torch.ones(B, T, 5)), ValueError, r"width 8, \(\*, 8\): got \(2, 5, 5\)"),
    "dtype": (lambda: stack()(torch.ones(B, T, D, dtype=F64)), ValueError, "torch.float32: got torch.float64; convert"),
    "mask": (
        lambda: stack()(torch.ones(B, T, D), src_key_padding_mask=torch.ones(B, 3).bool()),
        ValueError,
        r"key padding mask: expected shape \(2, 5\), got \(2, 3\)",
    ),
    "masked MLP": (
        lambda: DeepStack(MLPBlock(4), 3)(torch.ones(2, 4), is_causal=True),
        TypeError,
        "no attention to mask: got is_causal; stack TransformerEncoderLayer",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_arguments_are_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    """What is wrong is said with what was expected and what came."""
    with pytest.raises(kind, match=message):
        call()


# The module


def test_each_layer_draws_as_a_layer_draws() -> None:
    """From one seed a stack starts with what layers draw that are reset one after the other; the template stays."""
    block = layer(init_value=0.5)
    before = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)
    made = DeepStack(block, 4)
    layers = [layer(init_value=0.5) for _ in range(4)]
    torch.manual_seed(3)
    for each in layers:
        each.reset_parameters()
    assert equal_states(made, DeepStack.from_modules(layers))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert DeepStack(block, 2, init_value=0.0).to_modules()[0].gates[0].init_value == 0.0


def test_its_parts_draw_what_is_theirs() -> None:
    """Reset alone, a part draws its parameters as in a layer and leaves the others."""
    made = stack(30)
    before = copy.deepcopy(made.state_dict())
    nn.init.zeros_(made.linear1.weight)
    made.linear1.reset_parameters()
    assert made.linear1.weight.std().item() == pytest.approx(before["linear1.weight"].std().item(), rel=0.1)
    assert made.linear1.weight.abs().max().item() <= D**-0.5
    assert all(torch.equal(each, before[name]) for name, each in made.named_parameters() if "linear1" not in name)


def test_is_one_gate_of_two_branches_a_layer() -> None:
    """gates finds the stack, param_groups gives alpha the rate of its branches and decays the weights alone."""
    for share in ("sublayer", "layer"):
        model = nn.Sequential(nn.Linear(D, D), DeepStack(layer(share=share), 500))
        assert rezero.gates(model) == {"1": model[1]}
        groups = {each["name"]: each for each in rezero.param_groups(model, lr=0.1, weight_decay=0.1)}
        assert groups["gates"]["params"] == [model[1].alpha]
        assert groups["gates"]["lr"] == 3 / 1000
        assert {each.ndim for each in groups["decayed"]["params"][1:]} == {3}
        assert {each.ndim for each in groups["undecayed"]["params"][1:]} == {2}
        assert sum(len(each["params"]) for each in groups.values()) == 2 + 9


def test_diagnoses_look_at_it() -> None:
    """check finds a stack healthy, and AlphaRecorder records the mean of its gates."""
    made = stack(4)
    assert list(rezero.diagnose.check(made, torch.randn(8, T, D))) == []
    with rezero.diagnose.AlphaRecorder(made, every=1) as recorder:
        recorder.step()
    assert list(recorder.latest.values()) == [pytest.approx(made.alpha.mean().item())]


def test_conversion_leaves_it_alone() -> None:
    """convert_ gates the additions around a stack, and finds those inside gated already."""
    made, x = stack(3), torch.randn(B, T, D)
    around = rezero.layers.Residual(nn.Linear(D, D))
    model = nn.Sequential(around, made)
    found = rezero.find_residuals(model, (x,))
    assert len(found) == 1
    assert [each.reason for each in found.left_out] == ["gated already"] * 6
    rezero.convert_(model, (x,))
    assert torch.equal(model(x), made(x))


def test_learns() -> None:
    """A few fused steps of AdamW lower the loss."""
    torch.manual_seed(1)
    made, x = DeepStack(layer(dropout=0.1), 16), torch.randn(4, T, D)
    update = torch.optim.AdamW(rezero.param_groups(made, lr=3e-3, weight_decay=0.0), fused=True)
    target, losses = x.roll(1, dims=1), []
    for _ in range(30):
        loss = (made(x) - target).square().mean()
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
