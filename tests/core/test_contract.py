"""The layer contract: every layer survives what other people's code does to modules, its gates closed and open."""

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rezero import DeepStack, Gate, ReZero, gates, hold_gates
from rezero.layers import (
    MLP,
    Attention,
    GatedAdapter,
    GatedCrossAttention,
    LanguageModel,
    LayerScale,
    MLPBlock,
    PerceiverResampler,
    PreActResNet18,
    Residual,
    ResNet,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from rezero.layers.residuals import RESIDUALS
from rezero.transformer import RZTXDecoderLayer, RZTXEncoderLayer

D = 4
F64 = torch.float64

# The cases


class TupleBranch(nn.Module):
    """A branch that returns its hidden state and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.linear(x)
        return f.tanh(), f.detach().mean()


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.GELU(), nn.Linear(6, D))


def is_between_the_ends(name: str) -> bool:
    return not name.startswith(("input.", "output."))


@dataclass(frozen=True)
class Case:
    """A layer, what it takes, and what it must give while its gates are closed."""

    build: Callable[[float, float], nn.Module]  # of init_value and dropout
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, D),)
    closed: Callable[[nn.Module, Tensor], Tensor] | None = None  # the output at alpha = 0; None without a gate
    starts: tuple[float, ...] = (0.0,)  # the init_value that build can give
    autocast_dtype: torch.dtype = torch.float32  # of the output for a float32 input
    behind: Callable[[str], bool] = is_between_the_ends  # whether a parameter, no alpha, has a gate after it
    vocabulary: int | None = None  # the inputs are so many tokens: integers, which have no gradient
    dormant: bool = False  # starts with zeros that hide the rest from every check: make draws random parameters instead
    large: bool = False  # thousands of parameters: gradcheck compares random projections of the Jacobian
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        if self.vocabulary is not None:
            return tuple(torch.randint(self.vocabulary, shape, generator=generator) for shape in self.shapes)
        return tuple(torch.randn(shape, generator=generator, dtype=F64).to(dtype) for shape in self.shapes)


def returns_input(_: nn.Module, x: Tensor) -> Tensor:
    return x


def returns_zeros(_: nn.Module, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def skips_the_blocks(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model.get_submodule("output")(F.relu(model.get_submodule("input")(x)))
    return y


def gated(build: Callable[[float, float], nn.Module], *shapes: tuple[int, ...], **options: Any) -> Case:
    return Case(build, shapes or ((2, 3, D),), **{"closed": returns_input, "starts": (0.0, 0.5), **options})


def mlp(residual: str) -> Case:
    closed = skips_the_blocks if residual in ("rezero", "skipinit") else None
    return Case(lambda _, __: MLP(3, D, 2, 2, residual=residual), ((5, 3),), closed, autocast_dtype=torch.bfloat16)


def image_without_branches(model: nn.Module, x: Tensor) -> Tensor:
    h = model.get_submodule("input")(x)
    for block in model.get_submodule("blocks"):
        for part in block if isinstance(block, nn.Sequential) else [block]:
            if not hasattr(part, "branch"):  # the norm and the ReLU that a projection shares with its branch
                h = part(h)
            elif hasattr(part, "skip"):
                h = part.skip(h)
    pooled = F.adaptive_avg_pool2d(model.get_submodule("final")(h), 1)
    y: Tensor = model.get_submodule("output")(pooled.flatten(1))
    return y


def text_without_branches(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model.get_submodule("output")(model.get_submodule("embedding")(x))
    return y


def resnet(residual: str) -> Case:
    return Case(
        lambda _, __: ResNet(8, 3, residual=residual, width=2, in_channels=2),
        ((3, 2, 8, 8),),
        image_without_branches if residual in ("rezero", "skipinit") else None,
        autocast_dtype=torch.bfloat16,
        behind=lambda name: ".branch." in name,
        dormant=residual == "fixup",
        large=True,
    )


def language_model(residual: str, **options: Any) -> Case:
    return Case(
        lambda _, p: LanguageModel(8, 2, 2, residual=residual, vocab_size=11, ff_mult=2, dropout=p, **options),
        ((2, 5),),
        text_without_branches if residual in ("rezero", "skipinit") else None,
        autocast_dtype=torch.bfloat16,
        behind=lambda name: name.startswith("layers."),
        vocabulary=11,
        dormant=residual == "fixup",
        large=True,
    )


SEQUENCES = ((2, 3, D), (2, 2, D))
CASES: dict[str, Case] = {
    "ReZero linear": gated(lambda a, p: ReZero(feed_forward(), gate=Gate(init_value=a), dropout=p)),
    "ReZero conv": gated(
        lambda a, p: ReZero(nn.Conv2d(2, 2, 3, padding=1), gate=Gate(init_value=a), dropout=p), (2, 2, 3, 4)
    ),
    "ReZero tuple": gated(lambda a, p: ReZero(TupleBranch(), gate=Gate(init_value=a), dropout=p)),
    "ReZero channel tanh": gated(
        lambda a, p: ReZero(feed_forward(), gate=Gate(D, init_value=a, activation="tanh"), dropout=p)
    ),
    "DeepStack": gated(lambda a, _: DeepStack(MLPBlock(D), 3, init_value=a)),
    **{
        f"DeepStack encoder {share}": gated(
            lambda a, p, share=share: DeepStack(
                TransformerEncoderLayer(D, 2, 6, p, batch_first=True, share=share, init_value=a), 3
            )
        )
        for share in ("sublayer", "layer")
    },
    "Gate": gated(lambda a, _: Gate(init_value=a), closed=returns_zeros),
    "Gate channel": gated(lambda a, _: Gate(D, init_value=a), closed=returns_zeros),
    **{
        f"{kind.__name__} {share}": gated(
            lambda a, p, kind=kind, share=share: kind(D, 2, 6, p, batch_first=True, share=share, init_value=a),
            *SEQUENCES[:count],
        )
        for kind, count in [(TransformerEncoderLayer, 1), (TransformerDecoderLayer, 2)]
        for share in ("sublayer", "layer")
    },
    "RZTXEncoderLayer": gated(lambda a, p: RZTXEncoderLayer(D, 2, 6, p, init_value=a)),
    "RZTXDecoderLayer": gated(lambda a, p: RZTXDecoderLayer(D, 2, 6, p, init_value=a), (3, 2, D), (4, 2, D)),
    "GatedCrossAttention": gated(
        lambda _, p: GatedCrossAttention(D, num_heads=2, ff_mult=2, dropout=p), *SEQUENCES, starts=(0.0,)
    ),
    "GatedCrossAttention other": gated(
        lambda _, p: GatedCrossAttention(
            D, 3, num_heads=2, ff_mult=0, gate="linear", qk_norm=True, dropout=p, bias=True
        ),
        (2, 3, D),
        (2, 5, 3),
        starts=(0.0,),
    ),
    "GatedAdapter": gated(lambda _, p: GatedAdapter(D, 2, dropout=p), starts=(0.0,)),
    "GatedAdapter linear": gated(
        lambda _, p: GatedAdapter(D, 2, activation=None, norm=False, gate="tanh", dropout=p, bias=False), starts=(0.0,)
    ),
    "PerceiverResampler": Case(
        lambda _, p: PerceiverResampler(D, depth=2, num_latents=3, num_heads=2, ff_mult=2, dropout=p, qk_norm=True)
    ),
    "MLPBlock": Case(lambda _, __: MLPBlock(D), autocast_dtype=torch.bfloat16),
    **{f"MLP {name}": mlp(name) for name in RESIDUALS if name != "fixup"},
    **{f"ResNet {name}": resnet(name) for name in ("residual", "rezero", "skipinit", "fixup")},
    "PreActResNet18 rezero": Case(
        lambda _, __: PreActResNet18(3, width=1, in_channels=2),
        ((3, 2, 16, 16),),
        image_without_branches,
        autocast_dtype=torch.bfloat16,
        behind=lambda name: ".branch." in name,
        large=True,
    ),
    **{f"LanguageModel {name}": language_model(name) for name in ("residual", "rezero", "fixup")},
    "LanguageModel rezero layer": language_model("rezero", share="layer"),
    "LanguageModel pre-norm learned": language_model("pre-norm", positions="learned", max_length=6),
    "Attention": Case(
        lambda _, p: Attention(D, 2, dropout=p, batch_first=True), SEQUENCES, autocast_dtype=torch.bfloat16
    ),
    "Residual": Case(
        lambda _, __: Residual(feed_forward(), pre_norm=nn.LayerNorm(D), post_norm=nn.RMSNorm(D), skip_scale=1.5)
    ),
    "Residual shape": Case(
        lambda _, __: Residual(nn.Linear(D, 3), skip=nn.Linear(D, 3)), autocast_dtype=torch.bfloat16
    ),
    "LayerScale": Case(lambda _, __: LayerScale(D, depth=30)),
    "LayerScale image": Case(lambda _, __: LayerScale(D, depth=30, axis=-3), ((2, D, 3, 2),)),
}
GATED = {name: case for name, case in CASES.items() if case.closed is not None}

every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_gated_layer = pytest.mark.parametrize("case", GATED.values(), ids=GATED)
every_state = pytest.mark.parametrize(
    ("case", "is_open"),
    [
        pytest.param(case, is_open, id=f"{name}-{'open' if is_open else 'closed'}" if case.closed else name)
        for name, case in CASES.items()
        for is_open in ((False, True) if case.closed else (True,))
    ],
)
every_start = pytest.mark.parametrize(
    ("case", "start"),
    [pytest.param(case, start, id=f"{name}-{start:g}") for name, case in CASES.items() for start in case.starts],
)


def open_(module: nn.Module) -> nn.Module:
    """Set each gate to a value of its own."""
    for i, gate in enumerate(gates(module).values()):
        nn.init.constant_(gate.alpha, 0.5 + 0.125 * i)
    return module


def make(case: Case, *, is_open: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(2)
    module = case.build(0.0, dropout).to(dtype)
    if case.dormant:
        scramble_(module)
    return open_(module) if is_open else module


def scramble_(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def first(output: Any) -> Tensor:
    """The tensor that a layer returns, or the first of its tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def differentiable(x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Ask for the gradient of every input that can have one: tokens can't."""
    return tuple(part.requires_grad_() if part.is_floating_point() else part for part in x)


def backward(output: Any) -> None:
    """Back-propagate a loss whose gradient differs from entry to entry."""
    y = first(output)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    (y * weights + 0.5 * y.square()).sum().backward()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    result = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        result[name] = parameter.grad.detach().clone()
    return result


def assert_open_gates_matter(module: nn.Module, case: Case, is_open: bool) -> None:
    """Keep the checks with an open gate from being vacuous."""
    if case.closed is None:
        return
    x = case.inputs(next(module.parameters()).dtype)
    same = torch.equal(first(module(*x)), case.closed(module, x[0]))
    assert same != is_open


# The identity


@every_gated_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_closed_gates_do_not_show(case: Case, training: bool) -> None:
    """With alpha = 0 the output is bitwise that without the branches, in training with dropout and in evaluation."""
    module = make(case, is_open=False, dropout=0.5).train(training)
    x = case.inputs()
    assert case.closed is not None
    for _ in range(3):
        assert torch.equal(first(module(*x)), case.closed(module, x[0]))
    assert not torch.equal(first(open_(module)(*x)), case.closed(module, x[0]))


@every_gated_layer
def test_closed_branches_have_zero_gradients(case: Case) -> None:
    """At alpha = 0 every parameter has a gradient: alphas another than zero, parameters behind them exact zeros."""
    module = make(case, is_open=False)
    backward(module(*case.inputs()))
    for name, gradient in gradients(module).items():
        behind = case.behind(name) and not name.endswith("alpha")
        assert bool(gradient.any()) != behind, name


# Derivatives


@every_state
def test_gradients_pass_gradcheck(case: Case, is_open: bool) -> None:
    """In float64 the gradients of every input and every parameter pass gradcheck."""
    module = make(case, is_open=is_open, dtype=F64)
    assert_open_gates_matter(module, case, is_open)
    x = differentiable(case.inputs(F64))
    names, values = zip(*module.named_parameters(), strict=True)

    def call(*tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors[len(x) :], strict=True))
        return first(torch.func.functional_call(module, parameters, tensors[: len(x)]))

    assert torch.autograd.gradcheck(call, (*x, *values), fast_mode=case.large)


@every_state
def test_functional_call_takes_the_given_parameters(case: Case, is_open: bool) -> None:
    """functional_call with another module's parameters gives the other module's output, and changes none."""
    module, other = make(case, is_open=not is_open), scramble_(make(case, is_open=is_open))
    x = case.inputs()
    before = {name: p.clone() for name, p in module.named_parameters()}  # batch norm's statistics may well change
    y = first(torch.func.functional_call(module, dict(other.named_parameters()), x))
    assert torch.equal(y, first(other(*x)))
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


# Initialisation


def reset_(module: nn.Module) -> None:
    """Reset as sharded trainers do: the module itself if it can, else its children."""
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
        return
    assert not list(module.parameters(recurse=False)), f"{type(module).__name__} owns parameters that it cannot reset"
    for child in module.children():
        reset_(child)


@every_layer
def test_whoever_owns_parameters_can_reset_them(case: Case) -> None:
    """Each module that holds parameters directly has a reset_parameters, which FSDP's deferred init calls."""
    for part in make(case, is_open=False).modules():
        if list(part.parameters(recurse=False)):
            assert callable(part.reset_parameters), type(part).__name__


@every_start
def test_reset_parameters_starts_anew(case: Case, start: float) -> None:
    """reset_parameters draws what a twin draws from the same seed, sets gates to init_value, and keeps the tensors."""
    module, twin = (case.build(start, 0.0) for _ in range(2))
    scramble_(module)
    tensors = dict(module.named_parameters())
    for part in (module, twin):
        torch.manual_seed(3)
        reset_(part)
    assert all(p is tensors[name] for name, p in module.named_parameters())
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in module.named_parameters())
    for gate in gates(module).values():
        assert torch.equal(gate.alpha, torch.full_like(gate.alpha, start))


@every_start
def test_meta_device_then_empty_then_reset(case: Case, start: float) -> None:
    """A layer built on the meta device, emptied onto the CPU and reset equals one that was built there."""
    with torch.device("meta"):
        module = case.build(start, 0.0)
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.constant_(tensor, torch.nan)  # empty memory may hold zeros by luck
    twin = case.build(start, 0.0)
    for part in (module, twin):
        torch.manual_seed(3)
        reset_(part)
    assert dict(module.named_parameters()).keys() == dict(twin.named_parameters()).keys()
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in module.named_parameters())
    x = case.inputs()
    assert torch.equal(first(module(*x)), first(twin(*x)))


# Copies and checkpoints


@every_state
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_apart(case: Case, is_open: bool, way: str, tmp_path: Path) -> None:
    """A deep copy, a pickle and a saved module give the same output and gradients, and share no memory."""
    module = make(case, is_open=is_open)
    if way == "deepcopy":
        twin = copy.deepcopy(module)
    elif way == "pickle":
        if any(callable(f) and f.__name__ == "<lambda>" for f in vars(module).values() if hasattr(f, "__name__")):
            raise AssertionError("a layer holds a lambda")
        twin = pickle.loads(pickle.dumps(module))  # noqa: S301
    else:
        torch.save(module, tmp_path / "module.pt")
        twin = torch.load(tmp_path / "module.pt", weights_only=False)
    x = case.inputs()
    outputs = [part(*x) for part in (module, twin)]
    assert torch.equal(first(outputs[0]), first(outputs[1]))
    for output in outputs:
        backward(output)
    expected, got = gradients(module), gradients(twin)
    assert list(expected) == list(got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert {name: gate.init_value for name, gate in gates(twin).items()} == dict.fromkeys(gates(module), 0.0)
    scramble_(twin)
    assert torch.equal(first(module(*x)), first(outputs[0]))


@every_layer
def test_state_dict_round_trips(case: Case, tmp_path: Path) -> None:
    """A state dict saved to disk loads strictly, with weights_only, into a fresh layer, which then is the same."""
    module, fresh = scramble_(make(case, is_open=True)), case.build(0.0, 0.0)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    result = fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    x = case.inputs()
    assert torch.equal(first(fresh(*x)), first(module(*x)))
    assert sum(key.endswith("alpha") for key in module.state_dict()) == len(gates(module))


@every_state
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_activation_checkpointing_changes_nothing(case: Case, is_open: bool, training: bool) -> None:
    """Recomputing the layer in the backward pass gives the same output and gradients, dropout included."""
    results = []
    for through_checkpoint in (False, True):
        module = make(case, is_open=is_open, dropout=0.5).train(training)
        x = differentiable(case.inputs())
        torch.manual_seed(4)
        output = checkpoint(module, *x, use_reentrant=False) if through_checkpoint else module(*x)
        backward(output)
        results.append((first(output).detach(), [part.grad for part in x], gradients(module)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


# Compilers


def reset_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def check_compiled(case: Case, backend: str) -> None:
    """Hold a compiled layer against itself, its gates closed and then open, without a second compilation."""
    module = make(case, is_open=False, dtype=F64)
    x = case.inputs(F64)
    reset_compiler()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for state in (module, open_(module)):
        results = []
        for call in (state, compiled):
            module.zero_grad()
            output = call(*x)
            backward(output)
            results.append((first(output).detach(), gradients(module)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own import
@every_layer
def test_compiles_to_one_graph(case: Case) -> None:
    """torch.compile(fullgraph=True) gives the same output and gradients; opening the gates does not recompile."""
    check_compiled(case, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own import
def test_compiles_to_machine_code() -> None:
    """The default compiler gives the same for a Transformer layer."""
    check_compiled(CASES["TransformerEncoderLayer sublayer"], "inductor")


def test_compiles_with_masks_of_changing_lengths() -> None:
    """One dynamic graph of a Transformer layer with masks serves sequences of every length."""
    layer = TransformerEncoderLayer(D, 2, 6, 0.0, batch_first=True, init_value=0.5)
    reset_compiler()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for batch, length in [(2, 5), (3, 7), (4, 6)]:
        x = torch.randn(batch, length, D)
        masks = {
            "src_mask": torch.ones(length, length).triu(1).bool(),
            "src_key_padding_mask": torch.arange(length).expand(batch, length) > 3,
        }
        torch.testing.assert_close(compiled(x, **masks), layer(x, **masks))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# Strict export goes through what compiles to one graph, then through the other export: here one of a family is enough.
ALIKE = {
    *(f"ResNet {name}" for name in ("residual", "skipinit", "fixup")),
    *(f"LanguageModel {name}" for name in ("residual", "fixup", "rezero layer")),
    *(f"{kind}Layer layer" for kind in ("TransformerEncoder", "TransformerDecoder")),
}


@pytest.mark.parametrize(
    ("case", "strict"),
    [
        pytest.param(case, strict, id=f"{name}-{'strict' if strict else 'non-strict'}")
        for name, case in CASES.items()
        for strict in ((False,) if name in ALIKE else (False, True))
    ],
)
def test_exports(case: Case, strict: bool) -> None:
    """torch.export gives a program with the layer's parameters by name and its output, gates closed and open."""
    module = make(case, is_open=False, dropout=0.5).eval()
    x = case.inputs()
    program = torch.export.export(module, x, strict=strict)
    assert set(program.state_dict) == set(module.state_dict())
    exported = program.module()
    torch.testing.assert_close(first(exported(*x)), first(module(*x)))
    opened, kept = open_(module).state_dict(), exported.state_dict()
    # Strict export drops what evaluation never reads: the counter of batches of a batch norm.
    assert all(name in kept or name.endswith("num_batches_tracked") for name in opened)
    exported.load_state_dict({name: opened[name] for name in kept})
    torch.testing.assert_close(first(exported(*x)), first(module(*x)))


@pytest.mark.parametrize("masks", [(), ("src_mask",), ("src_key_padding_mask",), ("src_mask", "src_key_padding_mask")])
def test_exports_with_dynamic_shapes(masks: tuple[str, ...]) -> None:
    """A Transformer layer exports with batch and length left open, whatever masks it is given."""
    layer = TransformerEncoderLayer(D, 2, 6, batch_first=True, init_value=0.5).eval()
    batch, length = torch.export.Dim("batch", min=2, max=32), torch.export.Dim("length", min=2, max=32)
    axes = {"src_mask": {0: length, 1: length}, "src_key_padding_mask": {0: batch, 1: length}}

    def arguments(b: int, t: int) -> dict[str, Tensor]:
        every = {"src_mask": torch.ones(t, t).triu(1).bool(), "src_key_padding_mask": torch.arange(t).expand(b, t) > 1}
        return {"src": torch.randn(b, t, D), **{name: every[name] for name in masks}}

    shapes = {"src": {0: batch, 1: length}, **{name: axes[name] for name in masks}}
    program = torch.export.export(layer, (), arguments(3, 5), dynamic_shapes=shapes, strict=False)
    given = arguments(4, 7)
    torch.testing.assert_close(program.module()(**given), layer(**given))


# Precision


@every_state
def test_autocast_keeps_the_dtype_rule(case: Case, is_open: bool) -> None:
    """Under bfloat16 autocast the output has the dtype of x + branch(x), alpha stays float32, gradients are finite."""
    module = make(case, is_open=is_open)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*case.inputs())
    assert first(output).dtype == case.autocast_dtype
    backward(output)
    for name, gradient in gradients(module).items():
        assert gradient.isfinite().all(), name
        assert gradient.dtype == torch.float32, name
    for name, gate in gates(module).items():
        assert gate.alpha.dtype == torch.float32, name
        assert gate.alpha.grad is not None
        assert gate.alpha.grad.any(), name


@pytest.mark.parametrize("residual", ["plain", "residual", "rezero", "skipinit"])
def test_gates_do_not_widen_the_stream_under_autocast(residual: str) -> None:
    """Under autocast the residual stream of a gated network is as narrow as that of the same network without gates."""
    model, dtypes = open_(MLP(3, D, 3, 2, residual=residual)), []
    for block in model.get_submodule("blocks"):
        block.register_forward_hook(lambda _, __, y: dtypes.append(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(5, 3))
    assert dtypes == [torch.bfloat16] * 3


@every_state
def test_half_models_run_and_learn(case: Case, is_open: bool) -> None:
    """Cast to bfloat16, a layer gives bfloat16 from bfloat16, keeps alpha in float32, and gets finite gradients."""
    module = make(case, is_open=is_open).to(torch.bfloat16)
    output = module(*case.inputs(torch.bfloat16))
    assert first(output).dtype == torch.bfloat16
    backward(output)
    for name, gradient in gradients(module).items():
        assert gradient.isfinite().all(), name
        assert gradient.dtype == (torch.float32 if name.endswith("alpha") else torch.bfloat16), name


# Other people's trainers


def shard_and_check(case: Case, *, is_open: bool, world_size: int) -> None:
    """Shard a layer with FSDP2 and hold output and gradients against the whole one's."""
    whole, sharded = make(case, is_open=is_open), make(case, is_open=is_open)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world_size,)))
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    x = case.inputs()
    expected, output = whole(*x), sharded(*x)
    torch.testing.assert_close(first(output), first(expected))
    backward(expected)
    backward(output)
    reference = gradients(whole)
    for name, gradient in gradients(sharded).items():
        assert isinstance(gradient, DTensor), name
        torch.testing.assert_close(gradient.full_tensor(), reference[name], msg=name)
    for module in (whole, sharded):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        if gates(module):
            hold_gates(optimizer, module, most=0.03)
        optimizer.step()
    for name, gate in gates(sharded).items():
        torch.testing.assert_close(gate.alpha.full_tensor(), gates(whole)[name].alpha)


def parallelise_and_check(case: Case, *, is_open: bool) -> None:
    """Train a layer two steps under DDP, which fails in the second if a gradient was missing in the first."""
    alone = make(case, is_open=is_open)
    replica = DistributedDataParallel(make(case, is_open=is_open))
    x = case.inputs()
    for _ in range(2):
        for module in (alone, replica):
            module.zero_grad()
            backward(module(*x))
            torch.optim.SGD(module.parameters(), lr=0.01).step()
        torch.testing.assert_close(gradients(replica.module), gradients(alone))


# torch's advice to whoever changes the output in place: a linear layer's output is a view to it.
@pytest.mark.filterwarnings(r"ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
@pytest.mark.usefixtures("process_group")
@every_state
def test_fsdp2_shards_every_parameter(case: Case, is_open: bool) -> None:
    """Under fully_shard every parameter is a DTensor, and output, gradients and an AdamW step are the whole layer's."""
    shard_and_check(case, is_open=is_open, world_size=1)


@pytest.mark.usefixtures("process_group")
@every_state
def test_ddp_finds_every_gradient(case: Case, is_open: bool) -> None:
    """Under DDP no gradient is None, at the start either, and gradients are those of the layer alone."""
    parallelise_and_check(case, is_open=is_open)


def work(rank: int, folder: str) -> None:
    """Run what one of two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for name, case in CASES.items():
            for is_open in (False, True) if case.closed else (True,):
                with naming(f"{name}, {'open' if is_open else 'closed'}"):
                    shard_and_check(case, is_open=is_open, world_size=2)
                    parallelise_and_check(case, is_open=is_open)
        gc.collect()  # replicas hold the group in cycles, and gloo aborts if it is freed with the interpreter
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def naming(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(what) from error


@pytest.mark.slow
def test_two_processes_shard_and_replicate(tmp_path: Path) -> None:
    """Two processes with gloo train every layer under FSDP2, where a scalar gate lies on one of them, and under DDP."""
    preload = ["tests.core.test_contract"]  # once for both
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    torch.multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="forkserver")


def pretrained(build: Callable[[], nn.Module], *, knows_gates: bool = False) -> Any:
    """Build a tiny PreTrainedModel class around a layer; transformers is slow to import, hence inside."""
    from transformers import PretrainedConfig, PreTrainedModel

    class TinyConfig(PretrainedConfig):
        model_type = "tiny-rezero"

    class TinyModel(PreTrainedModel):
        config_class = TinyConfig

        def __init__(self, config: TinyConfig) -> None:
            super().__init__(config)
            self.embedding = nn.Linear(500, 500)
            self.layer = build()
            self.post_init()

        def forward(self, *x: Tensor) -> Any:
            return self.layer(*x)

        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if knows_gates and isinstance(module, Gate):
                module.reset_parameters()

    return TinyModel


@every_start
def test_hugging_face_init_and_checkpoints_keep_alpha(case: Case, start: float, tmp_path: Path) -> None:
    """A PreTrainedModel's weight init leaves alpha at init_value, and save_pretrained brings a learned one back."""
    kind = pretrained(lambda: case.build(start, 0.0))
    model = kind(kind.config_class())
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)  # the init did run
    assert len(gates(model)) == len(gates(case.build(start, 0.0)))
    for gate in gates(model).values():
        assert torch.equal(gate.alpha, torch.full_like(gate.alpha, start))
    scramble_(model)
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in model.named_parameters())
    assert torch.equal(first(loaded(*case.inputs())), first(model.eval()(*case.inputs())))


@every_gated_layer
def test_hugging_face_loads_alpha_in_float32(case: Case, tmp_path: Path) -> None:
    """from_pretrained(dtype=bfloat16) loads the weights in bfloat16 and every alpha in float32, unrounded."""
    kind = pretrained(lambda: case.build(0.0, 0.0))
    model = kind(kind.config_class())
    for gate in gates(model).values():
        nn.init.constant_(gate.alpha, 0.1234567)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.embedding.weight.dtype == torch.bfloat16
    assert gates(loaded)
    for name, gate in gates(loaded).items():
        assert torch.equal(gate.alpha, torch.full_like(gate.alpha, 0.1234567)), name
        assert gate.alpha.dtype == torch.float32, name


@pytest.mark.parametrize("saved", [False, True], ids=["missing", "saved"])
def test_hugging_face_init_weights_may_reset_gates(saved: bool, tmp_path: Path) -> None:
    """Where _init_weights resets gates, alphas that a checkpoint lacks start at init_value and saved ones stay."""
    gated = pretrained(lambda: ReZero(nn.Linear(D, D), gate=Gate(D, init_value=0.25)), knows_gates=True)
    plain = pretrained(lambda: nn.ModuleDict({"branch": nn.Linear(D, D)}))
    model = (gated if saved else plain)(plain.config_class())
    for gate in gates(model).values():
        nn.init.constant_(gate.alpha, 0.75)
    model.save_pretrained(tmp_path)
    loaded, info = gated.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == (set() if saved else {"layer.gate.alpha"})
    assert torch.equal(loaded.layer.gate.alpha, torch.full((D,), 0.75 if saved else 0.25))
    assert torch.equal(loaded.layer.branch.weight, model.get_parameter("layer.branch.weight"))


# A CUDA device


@pytest.mark.gpu
@every_state
def test_cuda_gives_what_the_cpu_gives(case: Case, is_open: bool) -> None:
    """On a GPU output and gradients are the CPU's in float64, and closed gates are bitwise closed."""
    results = []
    for device in ("cpu", "cuda"):
        module = make(case, is_open=is_open, dtype=F64).to(device)
        x = tuple(part.to(device) for part in case.inputs(F64))
        output = module(*x)
        backward(output)
        results.append((first(output).detach().cpu(), {k: g.cpu() for k, g in gradients(module).items()}))
        if case.closed is not None and not is_open:
            assert torch.equal(first(output), case.closed(module, x[0]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_gated_layer
def test_cuda_autocast_keeps_closed_gates_closed(case: Case, dtype: torch.dtype) -> None:
    """Under CUDA autocast closed gates are bitwise closed, the dtype rule holds and alpha gets a float32 gradient."""
    module = make(case, is_open=False, dropout=0.5).cuda()
    x = tuple(part.cuda() for part in case.inputs())
    assert case.closed is not None
    with torch.autocast("cuda", dtype=dtype):
        output = module(*x)
        expected = case.closed(module, x[0])
    assert first(output).dtype == (dtype if case.autocast_dtype == torch.bfloat16 else torch.float32)
    assert torch.equal(first(output), expected)
    backward(output)
    for gate in gates(module).values():
        assert gate.alpha.grad is not None
        assert gate.alpha.grad.dtype == torch.float32
        assert gate.alpha.grad.isfinite().all()
