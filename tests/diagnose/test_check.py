"""Each fault is built on purpose into blocks of this library, and into converted models of torch and timm."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import timm.optim
import torch
import transformers
from torch import Tensor, nn

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.diagnose import check
from rezero.errors import UsageError

D = 8
X_BTD = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def blocks() -> tuple[nn.Module, Tensor]:
    """Make blocks of this library."""
    branches = [nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D)) for _ in range(3)]
    return nn.Sequential(*map(rezero.ReZero, branches), nn.Linear(D, 4)), X_BTD


def encoder() -> tuple[nn.Module, Tensor]:
    """Convert torch's encoder."""
    layers = [nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=True) for _ in range(2)]
    return rezero.convert_(nn.Sequential(*layers), X_BTD, verify=False).model, X_BTD


def vit() -> tuple[nn.Module, Tensor]:
    """Convert a vision Transformer of timm."""
    options: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return rezero.convert_(timm.models.VisionTransformer(num_classes=4, **options), IMAGE, verify=False).model, IMAGE


FAMILIES = {"blocks": blocks, "encoder": encoder, "vit": vit}
Family = Callable[[], tuple[nn.Module, Tensor]]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [owner.gate_parameter for owner in rezero.gates(model).values()]


def names(report: Any) -> set[str]:
    return {finding.name for finding in report}


def groups(model: nn.Module) -> Any:
    return rezero.param_groups(model, lr=1e-3, weight_decay=0.1)


@families
def test_a_healthy_model_has_no_findings(family: Family) -> None:
    """At its start, and after steps."""
    model, x = family()
    optimizer = torch.optim.AdamW(groups(model))
    assert not check(model, x, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert not check(model, x, optimizer)
    assert str(check(model, x, optimizer)) == f"{len(rezero.gates(model))} gates, no findings"


@families
def test_a_frozen_gate(family: Family) -> None:
    """Is named, and thawing it helps."""
    model, x = family()
    first = next(iter(rezero.gates(model)))
    parameters(model)[0].requires_grad_(False)
    [finding] = check(model, x)
    assert (finding.name, finding.where, finding.severity) == ("frozen", (first,), "fault")
    parameters(model)[0].requires_grad_(True)
    assert not check(model, x)


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_gate_in_half_precision(family: Family, dtype: torch.dtype) -> None:
    """Is named, and making it float32 helps."""
    model, x = family()
    for parameter in parameters(model):
        parameter.data = parameter.data.to(dtype)
    assert names(check(model, x)) == {"in half precision"}
    for parameter in parameters(model):
        parameter.data = parameter.data.float()
    assert not check(model, x)


@families
def test_an_optimizer_that_does_not_know_the_gates(family: Family) -> None:
    """Is found, and adding them helps."""
    model, x = family()
    known = {id(parameter) for parameter in parameters(model)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if id(p) not in known], lr=1e-3)
    [finding] = check(model, x, optimizer)
    assert (finding.name, finding.where) == ("not in the optimizer", tuple(rezero.gates(model)))
    optimizer.add_param_group({"params": parameters(model)})
    assert not check(model, x, optimizer)


@families
def test_decayed_gates(family: Family) -> None:
    """Are found, and groups of their own help."""
    model, x = family()
    assert names(check(model, x, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))) == {"decayed"}
    assert not check(model, x, torch.optim.AdamW(groups(model)))


@families
def test_gates_that_another_initialisation_has_changed(family: Family) -> None:
    """Are found, and setting them back helps."""
    model, x = family()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(groups(model))
    assert names(check(model, x, optimizer)) == {"changed by another initialisation"}
    [note] = check(model, x).notes
    assert "are not at their start" in note
    for gate in rezero.gates(model).values():
        gate.reset_gate()
    assert not check(model, x, optimizer)


@families
def test_zero_twice(family: Family) -> None:
    """A branch that ends in zeros under a closed gate is found, and initialising its last layer helps."""
    model, x = family()
    name, owner = list(rezero.gates(model).items())[-1]
    layer: Any = owner.__class__ and (model[2].branch[2] if family is blocks else owner)
    before = {key: each.detach().clone() for key, each in layer.named_parameters()}
    for key, parameter in layer.named_parameters():
        if parameter is not owner.gate_parameter:
            nn.init.zeros_(layer.get_parameter(key))
    [finding] = check(model, x)
    assert (finding.name, finding.where) == ("zero twice", (name,))
    for key, numbers in before.items():
        layer.get_parameter(key).data.copy_(numbers)
    assert not check(model, x)


@families
def test_a_gate_that_is_cut_off(family: Family) -> None:
    """A hook that detaches what the last gated module returns is found, and taking it off helps."""
    model, x = family()
    name, _ = list(rezero.gates(model).items())[-1]
    last = model[2].branch if family is blocks else model.get_submodule(name)
    handle = last.register_forward_hook(lambda _module, _args, f: f.detach())
    [finding] = check(model, x)
    expected = "branch without gradient" if family is blocks else "cut off"  # a converted layer is its gate's branch
    assert (finding.name, finding.where) == (expected, (name,))
    handle.remove()
    assert not check(model, x)


@families
def test_a_branch_that_is_not_finite_behind_its_gate(family: Family) -> None:
    """Is named by its first module."""
    model, x = family()
    name, _ = list(rezero.gates(model).items())[-1]
    last = "2.branch.0" if family is blocks else name
    handle = model.get_submodule(last).register_forward_hook(lambda _module, _args, f: f / 0.0)
    [finding] = check(model, x)
    assert finding.name == "not finite"
    assert finding.where == (last,)
    handle.remove()
    assert not check(model, x)


@families
def test_a_rate_that_is_too_high_for_the_depth(family: Family) -> None:
    """Is found, with the sum of the first steps, and the groups' own rate helps."""
    model, x = family()
    count = len(rezero.gates(model))
    [finding] = check(model, x, torch.optim.Adam(model.parameters(), lr=2.0))
    assert finding.name == "learning rate of the gates"
    assert f"the first step moves all {count} branches at once, by {2 * count:g} in sum" in finding.why
    assert not check(model, x, torch.optim.Adam(rezero.param_groups(model, lr=2.0, weight_decay=0.0)))


@families
def test_gates_on_the_meta_device(family: Family) -> None:
    """Are named, and setting them back after to_empty helps."""
    model, x = family()
    state = model.state_dict()
    model.to("meta")
    [finding] = check(model, x)
    assert finding.name == "on the meta device"
    assert "load or initialise the other parameters too" in finding.advice
    model.to_empty(device="cpu")
    for name, numbers in model.state_dict().items():
        numbers.copy_(state[name]) if "alpha" not in name else numbers.fill_(math.nan)
    assert "not finite" in names(check(model, x))
    for gate in rezero.gates(model).values():
        gate.reset_gate()
    assert not check(model, x)


@families
def test_gates_that_something_sets_back(family: Family) -> None:
    """Are found after ten steps, and no earlier; without that something they learn."""
    model, x = family()
    optimizer = torch.optim.AdamW(groups(model))

    def steps(count: int, *, clamped: bool) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
            for parameter in parameters(model) if clamped else ():
                parameter.data.clamp_(0, 0)

    steps(9, clamped=True)
    assert not check(model, x, optimizer)
    steps(1, clamped=True)
    [finding] = check(model, x, optimizer)
    assert (finding.name, finding.where) == ("left at zero", tuple(rezero.gates(model)))
    steps(1, clamped=False)
    assert not check(model, x, optimizer)


def test_gates_that_something_sets_back_from_a_momentum() -> None:
    """SGD's buffer tells, which counts no steps; during a warm-up, whose first rate is zero, it does not."""
    model, x = blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        schedule.step()

    step()
    assert not check(model, x, optimizer)
    for _ in range(14):
        step()
        for gate in rezero.gates(model).values():
            gate.reset_gate()
    [finding] = check(model, x, optimizer)
    assert (finding.name, finding.where) == ("left at zero", tuple(rezero.gates(model)))
    step()
    assert not check(model, x, optimizer)


def test_gates_without_a_step_beside_others_with_many() -> None:
    """Are noted, for they may have been added just now, or lose their gradients before each step."""
    model, x = blocks()
    optimizer = torch.optim.AdamW(groups(model))

    def steps(count: int, *, lost: bool) -> Any:
        for _ in range(count):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            for parameter in parameters(model) if lost else ():
                parameter.grad = None
            optimizer.step()
        return check(model, x, optimizer)

    assert not steps(9, lost=True).notes
    report = steps(1, lost=True)
    assert not report
    assert report.notes[0].startswith("3 gates, '0.gate' first, are at their start without a step of the optimizer")
    assert not steps(1, lost=False).notes


@families
def test_a_rate_of_zero(family: Family) -> None:
    """Is found where other groups have another one, as they have not during a warm-up."""
    model, x = family()
    optimizer = torch.optim.AdamW(groups(model))
    gated = next(group for group in optimizer.param_groups if group["name"] == "gates")
    gated["lr"] = 0.0
    [finding] = check(model, x, optimizer)
    assert (finding.name, finding.where) == ("learning rate zero", tuple(rezero.gates(model)))
    gated["lr"] = 1e-3
    assert not check(model, x, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert not check(model, x, optimizer)


@families
def test_a_loss_scale_at_its_minimum(family: Family) -> None:
    """Is found after overflows, and one that has room is not."""
    model, x = family()
    optimizer = torch.optim.SGD(groups(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert not check(model, x, optimizer, scaler=scaler)
    for _ in range(2):
        scaler.scale(model(x).mean() * math.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    [finding] = check(model, x, optimizer, scaler=scaler)
    assert finding.name == "loss scale at its minimum"
    assert "fallen to 1," in finding.why
    assert not check(model, x, optimizer, scaler=torch.amp.GradScaler("cpu"))


@families
def test_a_branch_without_gradient(family: Family) -> None:
    """The gate learns, what it scales does not; letting the gradient through helps."""
    model, x = family()
    name, owner = list(rezero.gates(model).items())[-1]
    own = list(model.get_submodule(name.rpartition(".")[0] if family is blocks else name).parameters())
    hooks = [each.register_hook(torch.zeros_like) for each in own if each is not owner.gate_parameter]
    [finding] = check(model, x)
    assert (finding.name, finding.where) == ("branch without gradient", (name,))
    for hook in hooks:
        hook.remove()
    assert not check(model, x)


def test_copies_of_one_layer() -> None:
    """As nn.TransformerEncoder makes them; drawing their weights anew helps."""
    layer = rezero.layers.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    [finding] = check(model, X_BTD)
    assert (finding.name, finding.where) == ("copies of one layer", ("layers.1", "layers.2"))
    for each in model.layers:
        each.reset_parameters()
    assert not check(model, X_BTD)


def test_copies_in_converted_models() -> None:
    """Of torch's encoder, and of a list of blocks; building each layer by itself helps."""

    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)

    layer = build()
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    rezero.convert_(model, X_BTD)
    [finding] = check(model, X_BTD)
    assert (finding.name, finding.where) == ("copies of one layer", ("layers.1", "layers.2"))
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model.layers.extend([build(), build()])
    rezero.convert_(model, X_BTD)
    assert not check(model, X_BTD)
    block = blocks()[0][0]
    copies = nn.Sequential(block, copy.deepcopy(block))
    assert names(check(copies, X_BTD)) == {"copies of one layer"}
    copies[1].branch[0].reset_parameters()
    copies[1].branch[2].reset_parameters()
    assert not check(copies, X_BTD)


class AddsAndCuts(nn.Module):
    """A block of somebody's with an activation after the addition, or in the branch."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.linear, self.gate, self.after = nn.Linear(D, D), rezero.Gate(), after

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        if self.after:
            return torch.relu(x + self.gate(self.linear(x)))
        return x + self.gate(torch.relu(self.linear(x)))


def resnet(after: str) -> tuple[nn.Module, Tensor]:
    """Convert a ResNet of timm."""
    model = timm.create_model("resnet10t", num_classes=4)
    return rezero.convert_(model, IMAGE, activation_after=after, verify=False).model, IMAGE  # type: ignore[arg-type]


ACTIVATIONS: dict[str, Callable[[bool], tuple[nn.Module, Tensor]]] = {
    "own code": lambda after: (nn.Sequential(*(AddsAndCuts(after=after) for _ in range(3))), X_BTD),
    "blocks": lambda after: (
        nn.Sequential(rezero.ReZero(nn.Linear(D, D)), nn.ReLU() if after else nn.Identity(), rezero.ReZero(nn.Tanh())),
        X_BTD,
    ),
    "resnet": lambda after: resnet("keep" if after else "move"),
}


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_after_the_addition(make: Callable[[bool], tuple[nn.Module, Tensor]]) -> None:
    """Is found, and moving it into the branch helps."""
    places = {"own code": ("0", "1", "2"), "blocks": ("0",), "resnet": tuple(f"layer{i}.0" for i in range(1, 5))}
    [finding] = check(*make(True))
    assert finding.name == "activation after the addition"
    assert finding.where == next(places[name] for name, each in ACTIVATIONS.items() if each is make)
    assert not check(*make(False))


BOUNDED: dict[str, Family] = {
    "blocks": lambda: (
        nn.Sequential(*(rezero.ReZero(nn.Linear(D, D), gate=rezero.Gate(activation="tanh")) for _ in range(2))),
        X_BTD,
    ),
    "encoder": lambda: (
        rezero.convert_(nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), X_BTD, gate="tanh").model,
        X_BTD,
    ),
    "resnet": lambda: (
        rezero.convert_(
            timm.create_model("resnet10t"), IMAGE, gate="tanh", activation_after="move", verify=False
        ).model,
        IMAGE,
    ),
}


@families
def test_a_model_that_is_frozen_as_a_whole(family: Family) -> None:
    """Has frozen gates, and a note that nothing could be followed."""
    model, x = family()
    report = check(model.requires_grad_(False), x)
    assert names(report) == {"frozen"}
    assert report.notes == ("no parameter of the model requires gradients, so that none could be followed",)


@pytest.mark.parametrize("family", BOUNDED.values(), ids=BOUNDED)
def test_saturated_gates(family: Family) -> None:
    """Beyond the reach of tanh; setting them back helps."""
    model, x = family()
    nn.init.constant_(parameters(model)[-1], 6.0)
    [finding] = check(model, x)
    assert (finding.name, finding.where) == ("saturated", (list(rezero.gates(model))[-1],))
    for gate in rezero.gates(model).values():
        gate.reset_gate()
    assert not check(model, x)


@families
def test_an_open_gate_on_a_branch_of_zeros(family: Family) -> None:
    """Is healthy: the branch learns, and then the gate."""
    model, x = family()
    name, owner = list(rezero.gates(model).items())[-1]
    nn.init.constant_(owner.gate_parameter, 0.5)
    layer = model.get_submodule("2.branch.2" if family is blocks else name)
    for parameter in layer.parameters():
        if parameter is not owner.gate_parameter:
            nn.init.zeros_(parameter)
    assert not check(model, x)


def test_a_branch_whose_activation_is_dead() -> None:
    """Gives an open gate nothing to learn from; a bias that lets it live helps."""
    model = nn.Sequential(rezero.ReZero(nn.Sequential(nn.Linear(D, D), nn.ReLU()), gate=rezero.Gate(init_value=1.0)))
    bias = model[0].branch[0].bias
    nn.init.constant_(bias, -100.0)
    [finding] = check(model, X_BTD)
    assert (finding.name, finding.where) == ("cut off", ("0.gate",))
    nn.init.zeros_(bias)
    assert not check(model, X_BTD)


def test_what_could_not_be_looked_at_is_said() -> None:
    """A loss that goes round the model's own forward gives no sight of its additions."""
    model, x = blocks()
    [note] = check(model, lambda model: model[0](x).sum() + model[3](model[2](model[1](x))).sum()).notes
    assert note == "activations after additions were not looked for: the loss does not call the model itself"


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "plain"])
@pytest.mark.parametrize("make_loss", [False, True], ids=["batch", "loss"])
def test_gates_of_a_checkpointed_model_are_alive(reentrant: bool, make_loss: bool) -> None:
    """Neither checkpoints that torch.autograd.grad can't see through nor those that count what is saved are a fault."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks()[0]

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
            return x

    x = X_BTD.clone().requires_grad_()
    assert not check(Checkpointed(), (lambda model: model(x).square().sum()) if make_loss else x)


def test_the_checkpointing_of_timm_and_of_transformers_is_no_fault() -> None:
    """Switched on before the conversion, or after it."""
    model, x = vit()
    model.set_grad_checkpointing(True)
    assert not check(model, x)
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    text, tokens = transformers.GPT2Model(config), torch.randint(50, (2, 8))
    text.activation_checkpointing_enable()
    text.train()
    assert len(rezero.find_residuals(text, tokens)) == 4
    rezero.convert_(text, tokens)
    assert not check(text, tokens)


def test_the_model_is_left_as_it_was() -> None:
    """Numbers, gradients, random numbers and the optimizer's state."""
    model, x = vit()
    optimizer = torch.optim.AdamW(groups(model))
    model(x).square().mean().backward()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    gradients, drawn = [parameter.grad for parameter in model.parameters()], torch.get_rng_state()
    kept = [each.clone() for each in gradients]
    check(model, x, optimizer)
    check(model, lambda model: model(x).square().mean(), optimizer)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert all(a.grad is b and torch.equal(b, c) for a, b, c in zip(model.parameters(), gradients, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: check(nn.Linear(4, 4), torch.ones(2, 4)), UsageError, r"the model has no gates: .*rezero\.Gate in"),
        (lambda: check("model", X_BTD), TypeError, r"model must be an nn\.Module: got str"),
        (lambda: check(blocks()[0], lambda _: 1.0), UsageError, "expected a loss function .* got float"),
        (lambda: check(blocks()[0], lambda model: model(X_BTD)), UsageError, r"a tensor of shape \(2, 3, 4\) with"),
    ],
    ids=["no gates", "no module", "no tensor", "no scalar"],
)
def test_bad_input(call: Any, kind: Any, message: str) -> None:
    """One clear line each."""
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (None, "can't be run on the example input in 0 .*NoneType"),
        (torch.ones(2, 3, D + 1), "can't be run on the example input in .*cannot be multiplied"),
        ({"foo": X_BTD}, "can't be run on the example input.*unexpected keyword argument 'foo'"),
        (torch.ones(0, 3, D), "expected a batch of one example or more, got an empty one"),
        (lambda model: model(X_BTD).sum() + 0j, "expected a loss .*, got a complex tensor of shape"),
    ],
    ids=["none", "width", "name", "empty", "complex"],
)
def test_what_the_model_cannot_be_run_on(x: Any, error: str) -> None:
    """One line, with where it fails; an empty batch is not taken for gates that are cut off."""
    with pytest.raises(UsageError, match=error):
        check(blocks()[0], x)


def test_a_loss_function_that_goes_backward_itself() -> None:
    """It is told so, and the gradients that it left are taken away."""

    def loss_fn(model: nn.Module) -> Tensor:
        loss = model(X_BTD).square().sum()
        loss.backward()
        return loss

    model = blocks()[0]
    with pytest.raises(UsageError, match="calls backward itself"):
        check(model, loss_fn)
    assert all(each.grad is None for each in model.parameters())


def test_a_loss_function_that_trains_the_model_leaves_it_as_it_was() -> None:
    """Its numbers, and what of it is trained."""

    def loss_fn(model: nn.Module) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        return model(X_BTD).square().sum()

    model = blocks()[0]
    before = copy.deepcopy(model.state_dict())
    check(model, loss_fn)
    with pytest.raises(UsageError, match="without a gradient"):
        check(model, lambda model: model.requires_grad_(False)(X_BTD).sum())
    assert all(torch.equal(before[name], each) and each.requires_grad for name, each in model.named_parameters())


def test_a_backward_pass_that_waits_is_not_disturbed() -> None:
    """Between a forward and its backward pass, though gates are opened meanwhile."""
    model, x = blocks()
    loss = model(x).square().sum()
    check(model, x)
    loss.backward()
    assert all(each.grad is not None for each in parameters(model))


def test_inference_mode_around_it_changes_nothing() -> None:
    """Neither for the model nor for an input that was made in it."""
    model, _ = blocks()
    with torch.inference_mode():
        assert not check(model, torch.randn(2, 3, D))


def test_nan_in_the_input_is_not_blamed_on_the_model() -> None:
    """The finding names the data."""
    model, x = blocks()
    assert "input holds nan" in check(model, x * math.nan)[0].why


@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=str)
def test_a_loss_that_is_not_finite_is_not_blamed_on_the_model(factor: float) -> None:
    """The finding names the loss; that of a module which fails, the module, also where it is the model itself."""
    model, x = blocks()
    [finding] = check(model, lambda model: model(x).square().mean() * factor)
    assert str(finding).startswith(
        "fault: not finite: the loss is nan or infinite, and it is no module that makes it so"
    )
    model.register_forward_hook(lambda _module, _args, out: out * factor)
    [finding] = check(model, lambda model: model(x).square().mean())
    assert str(finding).startswith("fault: not finite at the model itself: its output is nan or infinite")


class ScaledTwice(nn.Module):
    """A block of somebody's with a LayerScale that is zero, in it or around it."""

    def __init__(self, *, owns: bool) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(D, D), nn.Parameter(torch.zeros(D))
        self.scaled = rezero.Gate() if owns else nn.ModuleList([rezero.Gate()])

    def forward(self, x: Tensor) -> Tensor:
        gate = self.scaled if isinstance(self.scaled, rezero.Gate) else self.scaled[0]
        out: Tensor = x + gate(self.scale * self.linear(x))
        return out


@pytest.mark.parametrize("owns", [True, False], ids=["zero twice", "cut off"])
def test_a_second_scale_of_zeros(owns: bool) -> None:
    """Is named in what to do, whether the check sees to whom it belongs or not; initialising it helps."""
    model = ScaledTwice(owns=owns)
    [finding] = check(model, X_BTD)
    assert finding.name == ("zero twice" if owns else "cut off")
    assert ("or its scale" if owns else "a second scale that is zero") in finding.advice
    nn.init.ones_(model.scale)
    assert not check(model, X_BTD)


def test_another_start_of_a_gate() -> None:
    """Made with init_value, as is advised for a branch of zeros; a number written into it is told to do the same."""
    model = nn.Sequential(rezero.ReZero(nn.Linear(D, D)))
    for parameter in model[0].branch.parameters():
        nn.init.zeros_(parameter)
    [finding] = check(model, X_BTD, torch.optim.Adam(model.parameters()))
    assert "rezero.Gate(init_value=0.1)" in finding.advice
    parameters(model)[0].data.fill_(0.1)
    [finding] = check(model, X_BTD, torch.optim.Adam(model.parameters()))
    assert "init_value of rezero.Gate" in finding.advice
    model = nn.Sequential(rezero.ReZero(model[0].branch, gate=rezero.Gate(init_value=0.1)))
    assert not check(model, X_BTD, torch.optim.Adam(model.parameters()))


def test_frozen_branches_are_no_fault() -> None:
    """As of adapters: only a branch that is to learn, and can't, is found."""
    model, x = blocks()
    for block in model[:3]:
        block.branch.requires_grad_(False)
    assert not check(model, x)


def test_a_compiled_model_is_checked_as_the_one_in_it() -> None:
    """With its names, and without torch's warning of hooks."""
    model, x = blocks()
    parameters(model)[0].requires_grad_(False)
    compiled = torch.compile(model, backend="eager")
    for each in (x, lambda model: model(x).square().mean(), lambda _: compiled(x).square().mean()):
        [finding] = check(compiled, each)
        assert finding.where == ("0.gate",)


@pytest.mark.parametrize(
    "made", [lambda p: torch.optim.LBFGS(p), lambda p: timm.optim.Lion(p, lr=1e-3)], ids=["L-BFGS", "Lion"]
)
def test_steps_of_optimizers_that_count_none_are_no_other_initialisation(made: Any) -> None:
    """L-BFGS keeps its state beside the first parameter only, Lion keeps a momentum without a count."""
    model, x = blocks()
    optimizer = made(list(model.parameters()))

    def again() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(again)
    assert any(each.any() for each in parameters(model))
    assert not check(model, x, optimizer)


def test_a_scheduler_in_place_of_its_optimizer_is_read_as_that() -> None:
    """And so is the optimizer inside a wrapper, whose class says how it steps."""
    model, x = blocks()
    optimizer = torch.optim.Adam(model.parameters(), lr=5.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert names(check(model, x, scheduler)) == names(check(model, x, optimizer)) == {"learning rate of the gates"}


def test_several_optimizers() -> None:
    """Matrices that have one of their own are no trouble, and gates that are in none of them are."""
    model, x = blocks()
    matrices = [each for each in model.parameters() if each.ndim > 1]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0)
    others = torch.optim.Adam([each for each in model.parameters() if each.ndim < 2], lr=1e-3)
    assert not check(model, x, [muon, others])
    others.param_groups[0]["lr"] = 2.0
    assert names(check(model, x, (muon, others))) == {"learning rate of the gates"}
    assert names(check(model, x, [muon])) == {"not in the optimizer"}


@pytest.mark.parametrize(
    "optimizer",
    ["adam", torch.optim.Adam, [], [torch.optim.Adam], nn.Linear(1, 1)],
    ids=["name", "class", "none", "list of a class", "module"],
)
def test_what_is_no_optimizer(optimizer: Any) -> None:
    """One clear line."""
    with pytest.raises(TypeError, match="optimizer must be a torch optimizer that has been made: got"):
        check(*blocks(), optimizer)


def test_what_is_no_scaler() -> None:
    """One clear line."""
    with pytest.raises(TypeError, match=r"scaler must be a torch\.amp\.GradScaler: got float"):
        check(*blocks(), scaler=2.0)
