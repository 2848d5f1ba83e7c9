"""Parameter groups: every parameter once, gates apart."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rezero import Gate, ReZero, gates, param_groups
from rezero.layers import MLP, TransformerDecoderLayer, TransformerEncoderLayer
from rezero.optim import count_branches
from rezero.transformer import RZTXEncoderLayer


class Odd(nn.Module):
    """Parameters of every rank, one of them called alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        self.scalar = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.zeros(2, 3))
        self.cube = nn.Parameter(torch.zeros(1, 1, 4))
        self.empty = nn.Parameter(torch.zeros(0, 2))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


TIED_GATES = [Gate(), Gate(4)]
TIED_LAYERS = [nn.Linear(4, 4), nn.Embedding(4, 4), Odd(), ReZero(nn.Linear(4, 4))]
FRESH: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(4, 4),
    lambda: frozen(nn.Linear(4, 4)),
    lambda: nn.BatchNorm1d(4),
    lambda: nn.Conv2d(4, 4, 3),
    lambda: nn.ReLU(),
    lambda: Odd(),
    lambda: ReZero(nn.Linear(4, 4)),
    lambda: ReZero(nn.Linear(4, 4), gate=Gate(4)),
    lambda: ReZero(frozen(nn.Linear(4, 4)), gate=Gate(activation="tanh")),
    lambda: frozen(ReZero(nn.Linear(4, 4))),
    lambda: ReZero(ReZero(nn.Linear(4, 4))),
    lambda: ReZero(nn.Linear(4, 4), gate=TIED_GATES[0]),
    lambda: ReZero(nn.Linear(4, 4), gate=TIED_GATES[1]),
    lambda: TransformerEncoderLayer(4, 2, 4, share="layer"),
]
PARTS = st.sampled_from(FRESH).map(lambda build: build()) | st.sampled_from(TIED_LAYERS)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=8), ends=st.booleans())
def test_every_parameter_is_in_exactly_one_group(parts: list[nn.Module], ends: bool) -> None:
    """Whatever the model, with shared weights, frozen parts and odd shapes, no parameter is lost or doubled."""
    model = nn.ModuleDict({"parts": nn.ModuleList(parts), "nested": nn.Sequential(*parts[::2])})
    if ends:
        model["input"], model["output"] = nn.Embedding(5, 4), nn.Linear(4, 5)
        model.get_submodule("output").weight = model.get_parameter("input.weight")
    parameters = {id(p): p for p in model.parameters()}
    if not parameters:
        return
    groups = param_groups(model, lr=0.1, weight_decay=0.2)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(parameters)
    alphas = {id(gate.alpha) for gate in gates(model).values()}
    for group in groups:
        assert group["params"]
        for p in group["params"]:
            kind = "gates" if id(p) in alphas else "decayed" if p.ndim >= 2 else "undecayed"
            assert group["name"] == kind
        assert group["weight_decay"] == (0.2 if group["name"] == "decayed" else 0.0)
        if group["name"] != "gates":
            assert group["lr"] == 0.1


def test_groups_of_a_small_model() -> None:
    """The three groups, their order, keys and members, spelled out."""
    model = nn.Sequential(ReZero(nn.Linear(4, 4)), nn.LayerNorm(4), ReZero(nn.Linear(4, 4), gate=Gate(4)))
    groups = param_groups(model, lr=0.1, weight_decay=0.2, alpha_lr=0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups] == [
        {"name": "decayed", "params": ["0.branch.weight", "2.branch.weight"], "lr": 0.1, "weight_decay": 0.2},
        {
            "name": "undecayed",
            "params": ["0.branch.bias", "1.weight", "1.bias", "2.branch.bias"],
            "lr": 0.1,
            "weight_decay": 0.0,
        },
        {"name": "gates", "params": ["0.gate.alpha", "2.gate.alpha"], "lr": 0.3, "weight_decay": 0.0},
    ]


def test_a_parameter_called_alpha_is_no_gate() -> None:
    """Another module's alpha learns at the common rate and is not counted as a branch."""
    groups = {group["name"]: group for group in param_groups(Odd(), lr=0.1, weight_decay=0.2)}
    assert set(groups) == {"decayed", "undecayed"}
    assert [tuple(p.shape) for p in groups["undecayed"]["params"]] == [(1,), ()]
    assert count_branches(Odd()) == 0


# The default rate


def tied(depth: int) -> nn.Module:
    gate = Gate()
    return nn.Sequential(*(ReZero(nn.Linear(2, 2), gate=gate) for _ in range(depth)))


def reused(depth: int) -> nn.Module:
    block = ReZero(nn.Linear(2, 2))
    return nn.Sequential(*(block for _ in range(depth)))


COUNTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "no gate": (lambda: nn.Linear(2, 2), 0),
    "a gate alone": (Gate, 1),
    "separate blocks": (lambda: MLP(2, 2, 7, 2), 7),
    "nested blocks": (lambda: ReZero(ReZero(nn.Linear(2, 2))), 2),
    "one gate for seven blocks": (lambda: tied(7), 7),
    "one block seven times": (lambda: reused(7), 7),
    "a reused stack of reused blocks": (lambda: nn.Sequential(*[reused(3)] * 2), 6),
    "encoder, a gate a sublayer": (lambda: TransformerEncoderLayer(4, 2, 4), 2),
    "encoder, a gate a layer": (lambda: TransformerEncoderLayer(4, 2, 4, share="layer"), 2),
    "decoder, a gate a sublayer": (lambda: TransformerDecoderLayer(4, 2, 4), 3),
    "decoder, a gate a layer": (lambda: TransformerDecoderLayer(4, 2, 4, share="layer"), 3),
    "torch's encoder of six": (
        lambda: nn.TransformerEncoder(RZTXEncoderLayer(4, 2, 4), 6, enable_nested_tensor=False),
        12,
    ),
}


@pytest.mark.parametrize(("build", "count"), COUNTS.values(), ids=COUNTS)
def test_counts_what_the_signal_passes(build: Callable[[], nn.Module], count: int) -> None:
    """L counts gated additions, with blocks that are used twice and gates that serve several branches."""
    assert count_branches(build()) == count


@pytest.mark.parametrize(("build", "count"), COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("lr", [1.0, 1e-3], ids=str)
def test_default_rate_of_gates(build: Callable[[], nn.Module], count: int, lr: float) -> None:
    """By default gates learn at min(3 lr, 3 / L); an explicit alpha_lr wins, also 0 and above lr."""
    model = build()
    rate = {group["name"]: group["lr"] for group in param_groups(model, lr=lr, weight_decay=0.0)}
    assert rate.get("gates") == (min(3 * lr, 3 / count) if count else None)
    for alpha_lr in (0.0, 5.0):
        rate = {group["name"]: group["lr"] for group in param_groups(model, lr=lr, weight_decay=0.0, alpha_lr=alpha_lr)}
        assert rate.get("gates") == (alpha_lr if count else None)
        assert {value for name, value in rate.items() if name != "gates"} <= {lr}


def test_first_step_by_default_keeps_a_deep_stack_in_bounds() -> None:
    """With the default rate Adam's first step moves the sum of |alpha| by 3, where lr alone would move it by L * lr."""
    model = MLP(4, 8, 400, 2).double()
    optimizer = torch.optim.Adam(param_groups(model, lr=0.1, weight_decay=0.0))
    model(torch.randn(16, 4, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    assert sum(gate.alpha.abs().item() for gate in gates(model).values()) == pytest.approx(3.0, rel=1e-3)


def test_decay_shrinks_no_gate() -> None:
    """In 1,000 AdamW steps without a gradient an alpha of 0.5 stays 0.5 in these groups, and falls to 0.18 outside."""
    kept, lost = ReZero(nn.Linear(2, 2), gate=Gate(init_value=0.5)), Gate(init_value=0.5)
    grouped = torch.optim.AdamW(param_groups(kept, lr=0.01, weight_decay=0.1))
    plain = torch.optim.AdamW(lost.parameters(), lr=0.01, weight_decay=0.1)
    for parameter in (*kept.parameters(), *lost.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    weight = kept.get_parameter("branch.weight").detach().clone()
    for _ in range(1000):
        grouped.step()
        plain.step()
    assert kept.gate.alpha.item() == 0.5
    assert lost.alpha.item() == pytest.approx(0.5 * (1 - 0.01 * 0.1) ** 1000, rel=1e-3)
    assert round(lost.alpha.item(), 2) == 0.18
    torch.testing.assert_close(kept.get_parameter("branch.weight"), weight * (1 - 0.01 * 0.1) ** 1000)


# Every optimizer

# LBFGS takes no groups, SparseAdam no dense gradients, Muon no vectors: none trains a whole model of any kind.
UNFIT = {"LBFGS", "SparseAdam", "Muon"}
OPTIMIZERS = [
    kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and "lr" in inspect.signature(kind).parameters
    and name not in UNFIT
]


def test_the_list_of_optimizers_is_not_empty() -> None:
    """The optimizers below are torch's, the usual ones among them."""
    assert {"SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Rprop", "Adafactor"} <= {
        kind.__name__ for kind in OPTIMIZERS
    }


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_works_with_every_optimizer(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """Each torch optimizer that takes lr keeps the groups' rates and decay, and moves gates, then weights."""
    model = MLP(3, 4, 5, 2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = kind(param_groups(model, lr=0.05, weight_decay=0.01, alpha_lr=0.02))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.05, 0.01),
        (0.05, 0.0),
        (0.02, 0.0),
    ]
    x = torch.randn(64, 3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert not torch.equal(p, start[name]), name
    kind(param_groups(model, lr=1.0, weight_decay=0.0)).load_state_dict(optimizer.state_dict())


def test_muon_takes_the_matrices() -> None:
    """The decayed group of a fully connected model fits torch.optim.Muon, which takes nothing but matrices."""
    model = MLP(3, 4, 5, 2)
    matrices, *rest = param_groups(model, lr=0.01, weight_decay=0.1)
    model(torch.randn(8, 3)).square().mean().backward()
    torch.optim.Muon([matrices]).step()
    torch.optim.AdamW(rest).step()
    assert all(gate.alpha.item() != 0 for gate in gates(model).values())


def test_schedulers_scale_every_group() -> None:
    """A scheduler multiplies the gates' rate like the others, so that it keeps its ratio."""
    optimizer = torch.optim.SGD(param_groups(MLP(3, 4, 5, 2), lr=0.1, weight_decay=0.0, alpha_lr=0.01))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.005])


# Errors


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("which", ["lr", "weight_decay", "alpha_lr"])
def test_refuses_rates_that_are_none(which: str, bad: float) -> None:
    """A rate or decay that is negative or not finite is an error that names it."""
    with pytest.raises(ValueError, match=f"^{which} must be a finite number, 0 or more: got {bad}"):
        param_groups(nn.Linear(2, 2), **{"lr": 0.1, "weight_decay": 0.1, "alpha_lr": 0.1, which: bad})


def test_refuses_a_model_without_parameters() -> None:
    """A model without parameters is an error that names its class."""
    with pytest.raises(ValueError, match="expected a model with parameters, got a ReLU that has none"):
        param_groups(nn.ReLU(), lr=0.1, weight_decay=0.1)


def test_refuses_parameters_in_place_of_the_model() -> None:
    """What other libraries take, model.parameters(), is refused: gates are not to be told among bare parameters."""
    with pytest.raises(TypeError, match=r"expected the model itself, .*: got generator"):
        param_groups(nn.Linear(2, 2).parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[arg-type]


def test_leaves_the_model_alone() -> None:
    """Grouping changes no parameter and gives the parameters themselves, not copies."""
    model = MLP(3, 4, 5, 2)
    before: dict[str, Tensor] = {name: p.clone() for name, p in model.state_dict().items()}
    groups = param_groups(model, lr=0.1, weight_decay=0.1)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
