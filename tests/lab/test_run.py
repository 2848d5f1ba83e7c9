"""One training run."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.data.batches import TensorData
from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import Point, Settings, Task, Trial, find_task, open_processes, run_trial

TASK = find_task("fc-digits")
DATA = load_digits()
PER_EPOCH = 3  # steps an epoch in batches of 500


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a matrix product differs in its last bits between thread counts
    yield
    torch.set_num_threads(threads)


def tiny(**changes: Any) -> Settings:
    length = {} if "steps" in changes else {"epochs": 2}
    return TASK.settings({"depth": 2, "width": 8, "batch_size": 500, "seeds": 1, **length, **changes})


def train(settings: Settings, arm: str, *, seed: int = 0, task: Task = TASK, data: TensorData = DATA) -> list[Point]:
    with open_processes(settings) as accelerator:
        trial = Trial(arm, settings.lr, seed)
        return list(run_trial(task, settings, trial, data, lambda _: None, accelerator=accelerator))


def outcome(points: list[Point]) -> list[tuple[int, float, dict[str, float], tuple[float, ...]]]:
    """Everything about the points but the time that they took."""
    kept = ("train_loss", "val_loss", "val_accuracy")
    return [(p.step, p.epoch, {name: p.metrics[name] for name in kept}, p.alphas) for p in points]


@dataclass
class Recorded:
    """What a trial's model was at the start, and what it was trained on."""

    start: dict[str, Tensor]
    batches: list[Tensor]


def record(settings: Settings, arm: str, *, seed: int = 0) -> Recorded:
    """Train an arm and keep its initial weights and its training batches."""
    recorded = Recorded({}, [])

    def keep_batch(model: nn.Module, args: tuple[Tensor]) -> None:
        if model.training:
            recorded.batches.append(args[0].clone())

    def build(data: TensorData, arm: str, settings: Settings) -> nn.Module:
        model = TASK.build(data, arm, settings)
        recorded.start = {name: value.clone() for name, value in model.state_dict().items()}
        model.register_forward_pre_hook(keep_batch)
        return model

    train(settings, arm, seed=seed, task=replace(TASK, build=build))
    return recorded


@pytest.mark.parametrize(("seed", "lr"), [(0, 0.02), (3, 0.02), (0, 0.4)], ids=["seed0", "seed3", "rate-above-1/depth"])
def test_trial_is_a_plain_training_loop(seed: int, lr: float) -> None:
    """Losses, scores and alphas are those of a ReZero network and a training loop written out in plain torch."""
    settings = tiny(depth=3, epochs=3, lr=lr)
    points = train(settings, "rezero", seed=seed)

    torch.manual_seed(seed)
    start = TASK.build(DATA, "rezero", settings).state_dict()
    w_in, b_in = start["input.weight"].clone(), start["input.bias"].clone()
    hidden = [start[f"blocks.{i}.branch.linear.{name}"].clone() for i in range(3) for name in ("weight", "bias")]
    w_out, b_out = start["output.weight"].clone(), start["output.bias"].clone()
    alphas = [torch.zeros(1) for _ in range(3)]
    parameters = [w_in, b_in, *hidden, w_out, b_out, *alphas]
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in start.values())
    for parameter in parameters:
        parameter.requires_grad_()

    def network(x: Tensor) -> Tensor:
        h = torch.relu(x @ w_in.T + b_in)
        for alpha, w, b in zip(alphas, hidden[::2], hidden[1::2], strict=True):
            h = h + alpha * torch.relu(h @ w.T + b)
        return h @ w_out.T + b_out

    optimizer = torch.optim.Adagrad(parameters, lr=lr)
    for epoch in range(3):
        losses = []
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            inputs, targets = DATA.batch(seed, step, 500)
            loss = -network(inputs).log_softmax(-1)[torch.arange(len(targets)), targets].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            output = network(DATA.val_inputs)
        point = points[epoch]
        assert (point.step, point.epoch) == ((epoch + 1) * PER_EPOCH, epoch + 1)
        assert point.metrics["train_loss"] == pytest.approx(sum(losses) / PER_EPOCH, rel=1e-6)
        assert point.metrics["val_loss"] == pytest.approx(F.cross_entropy(output, DATA.val_targets).item(), rel=1e-6)
        right = (output.argmax(-1) == DATA.val_targets).sum().item()
        assert point.metrics["val_accuracy"] == pytest.approx(right / 297, abs=1e-12)
        assert point.alphas == pytest.approx([alpha.item() for alpha in alphas], rel=1e-5)
    assert len(points) == 3
    assert min(abs(alpha) for alpha in points[-1].alphas) > 1e-3  # so the branches have learned too


@pytest.mark.parametrize("arm", TASK.arms, ids=str)
def test_two_runs_are_bit_identical(arm: str) -> None:
    """The same trial gives the same metrics and alphas, to the last bit, under any state of torch's generator."""
    settings = tiny()
    torch.manual_seed(1)
    first = train(settings, arm)
    torch.manual_seed(2)
    torch.rand(5)
    assert outcome(train(settings, arm)) == outcome(first)


def test_seeds_differ() -> None:
    """Another seed gives other weights and other batches."""
    one, two = record(tiny(), "rezero", seed=0), record(tiny(), "rezero", seed=1)
    assert not torch.equal(one.start["input.weight"], two.start["input.weight"])
    assert not torch.equal(one.batches[0], two.batches[0])


def test_seeds_are_paired() -> None:
    """All arms of a seed see the same batches in the same order and start from the same input layer."""
    recorded = {arm: record(tiny(), arm, seed=4) for arm in TASK.arms}
    reference = recorded["rezero"]
    assert len(reference.batches) == 2 * PER_EPOCH
    for step, batch in enumerate(reference.batches):
        assert torch.equal(batch, DATA.batch(4, step, 500)[0])
    for arm, other in recorded.items():
        assert len(other.batches) == len(reference.batches), arm
        assert all(torch.equal(*pair) for pair in zip(other.batches, reference.batches, strict=True)), arm
        for name in ("input.weight", "input.bias"):
            assert torch.equal(other.start[name], reference.start[name]), arm


def test_arms_start_from_the_same_hidden_weights() -> None:
    """Arms whose hidden layers have the same initialisation start from the same hidden weights and output layer."""
    starts = [record(tiny(), arm).start for arm in ("plain", "rezero", "pre-norm", "layerscale")]
    tensors = [[p for name, p in start.items() if "linear.weight" in name or "output" in name] for start in starts]
    assert len(tensors[0]) == 4
    for other in tensors[1:]:
        assert all(torch.equal(*pair) for pair in zip(tensors[0], other, strict=True))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"epochs": 2}, [(3, 1.0), (6, 2.0)]),
        ({"steps": 6}, [(3, 1.0), (6, 2.0)]),
        ({"steps": 5}, [(3, 1.0), (5, 5 / 3)]),
        ({"steps": 2}, [(2, 2 / 3)]),
        ({"steps": 7}, [(3, 1.0), (6, 2.0), (7, 7 / 3)]),
    ],
    ids=["epochs", "steps-whole", "steps-odd", "steps-short", "steps-one-over"],
)
def test_points_come_at_epoch_ends_and_at_the_end(length: dict[str, int], expected: list[tuple[int, float]]) -> None:
    """There is a point after each epoch and one after the last step, once where they coincide."""
    assert [(point.step, point.epoch) for point in train(tiny(**length), "plain")] == expected


def test_shorter_training_is_a_prefix() -> None:
    """Asking for fewer steps changes nothing about those that are made."""
    assert outcome(train(tiny(epochs=3), "rezero"))[:2] == outcome(train(tiny(epochs=2), "rezero"))


def test_train_loss_covers_the_steps_since_the_last_point() -> None:
    """The last point of an unfinished epoch averages over that epoch's steps alone."""
    first, last = (point.metrics["train_loss"] for point in train(tiny(steps=5), "plain"))
    assert first == pytest.approx(sum(step_loss(step) for step in (1, 2, 3)) / 3, rel=1e-6)
    assert last == pytest.approx(sum(step_loss(step) for step in (4, 5)) / 2, rel=1e-6)


def step_loss(number: int) -> float:
    """Loss of one step of the plain arm, counted from 1, of a model that has made the steps before it."""
    settings = tiny()
    torch.manual_seed(0)
    model = TASK.build(DATA, "plain", settings)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
    for step in range(number):
        inputs, targets = DATA.batch(0, step, 500)
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_on_step_counts_every_step() -> None:
    """on_step hears each step done, before the point that it ends with."""
    heard: list[int] = []
    settings = tiny(steps=5)
    with open_processes(settings) as accelerator:
        points = run_trial(TASK, settings, Trial("plain", 0.01, 0), DATA, heard.append, accelerator=accelerator)
        seen = [(p.step, [*heard]) for p in points]
    assert seen == [(3, [1, 2, 3]), (5, [1, 2, 3, 4, 5])]


def test_seconds_grow_with_training() -> None:
    """seconds count up from the start of the trial, and leave out what is done between two points."""
    seconds = []
    settings, trial = tiny(epochs=3), Trial("plain", 0.01, 0)
    with open_processes(settings) as accelerator:
        for point in run_trial(TASK, settings, trial, DATA, lambda _: None, accelerator=accelerator):
            seconds.append(point.metrics["seconds"])
            time_passes()
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[0] + 1.0


def time_passes() -> None:
    torch.linalg.svd(torch.rand(700, 700))


@pytest.mark.parametrize("arm", ["residual", "rezero"], ids=str)
def test_divergence_ends_the_trial(arm: str) -> None:
    """A trial whose loss leaves the finite numbers ends at the point that says so."""
    (point,) = train(tiny(epochs=4, lr=1e30), arm)
    assert point.step == PER_EPOCH
    assert not math.isfinite(point.metrics["train_loss"])
    assert point.diverged
    assert math.isnan(point.metrics["val_accuracy"])


@pytest.mark.parametrize(
    ("loss", "diverged"), [(1.0, False), (1e38, False), (math.inf, True), (math.nan, True)], ids=str
)
def test_diverged_means_not_finite(loss: float, diverged: bool) -> None:
    """A point is diverged where its training or validation loss is inf or nan, and not where it is large."""
    assert Point(1, 1.0, {"train_loss": loss, "val_loss": 1.0}, ()).diverged is diverged
    assert Point(1, 1.0, {"train_loss": 1.0, "val_loss": loss}, ()).diverged is diverged


@pytest.mark.parametrize("batch_size", [500, 297, 100], ids=["one-batch", "exactly-one", "three-batches"])
def test_measuring_is_in_eval_mode_and_returns_to_training(batch_size: int) -> None:
    """A point's scores are those of the model without dropout on all validation examples; steps are with dropout."""
    linear = nn.Linear(64, 10)
    model = nn.Sequential(nn.Dropout(0.5), linear)
    modes: list[tuple[bool, bool, int]] = []
    model.register_forward_pre_hook(
        lambda _, args: modes.append((model.training and model[0].training, torch.is_grad_enabled(), len(args[0])))
    )
    task = replace(TASK, build=lambda *_: model)
    settings = tiny(steps=4, measure_every=3, batch_size=batch_size)
    points = train(settings, "plain", task=task)
    assert [point.step for point in points] == [3, 4]
    sizes = [len(part) for part in DATA.val_inputs.split(batch_size)]
    measuring = [(False, False, size) for size in sizes]
    assert modes == [*3 * [(True, True, batch_size)], *measuring, (True, True, batch_size), *measuring]
    with torch.no_grad():
        output = linear(DATA.val_inputs)
    metrics = points[-1].metrics
    assert metrics["val_loss"] == pytest.approx(F.cross_entropy(output, DATA.val_targets).item(), rel=1e-6)
    assert metrics["val_accuracy"] == (output.argmax(-1) == DATA.val_targets).double().mean().item()


@pytest.mark.parametrize("parts", [2, 3, 7, 500], ids=str)
@pytest.mark.parametrize("arm", ["rezero", "pre-norm"])
def test_parts_of_a_batch_add_up(arm: str, parts: int) -> None:
    """A batch that is computed in parts, equal or not, trains as the whole batch does.

    At this rate; at 0.1 the rounding, which differs from machine to machine, grows a hundredfold in seven steps.
    """
    settings = tiny(steps=12, measure_every=1, optimizer="SGD momentum=0.9", lr=0.03, clip=0.5)
    whole, split = (train(replace(settings, accumulate=count), arm) for count in (1, parts))
    for one, other in zip(whole, split, strict=True):
        assert one.step == other.step
        for name in ("train_loss", "val_loss"):
            assert other.metrics[name] == pytest.approx(one.metrics[name], rel=1e-6)
        assert other.alphas == pytest.approx(one.alphas, rel=1e-4, abs=1e-7)
    assert whole[-1].metrics["train_loss"] < 0.9 * whole[0].metrics["train_loss"]


def test_parts_see_the_batch_once() -> None:
    """The parts of a batch, one after another, are the rows of the whole batch in their order."""
    parts = record(tiny(steps=2, accumulate=3), "plain").batches
    assert [len(part) for part in parts] == [166, 167, 167] * 2
    for step in range(2):
        assert torch.equal(torch.cat(parts[3 * step : 3 * step + 3]), DATA.batch(0, step, 500)[0])


@pytest.mark.parametrize(("batch_size", "parts", "fits"), [(499, 3, True), (499, 4, False), (4, 4, True)], ids=str)
def test_a_last_batch_too_small_for_its_parts_is_refused(batch_size: int, parts: int, fits: bool) -> None:
    """Where an epoch's last batch has fewer examples than parts nothing is trained, and the line says how many."""
    settings = tiny(steps=4, measure_every=4, batch_size=batch_size, accumulate=parts)
    if fits:
        assert len(train(settings, "plain")) == 1
        return
    with pytest.raises(UsageError, match=r"last batch of an epoch has 3 examples for 4 parts .*another batch-size$"):
        train(settings, "plain")


@pytest.mark.parametrize("optimizer", ["SGD", "SGD momentum=0.9", "AdamW weight_decay=0.1"], ids=str)
def test_recipe_is_a_plain_training_loop(optimizer: str) -> None:
    """Optimizer, rate of the gates, warm-up, schedule and clipping are those of a loop written out in plain torch."""
    settings = tiny(
        steps=8,
        measure_every=1,
        optimizer=optimizer,
        lr=0.2,
        alpha_lr=0.05,
        clip=0.3,
        warmup=3,
        schedule="StepLR step_size=2",
    )
    points = train(settings, "rezero", seed=5)
    torch.manual_seed(5)
    model = TASK.build(DATA, "rezero", settings)
    name, *options = optimizer.split()
    given = {key: float(value) for key, value in (option.split("=") for option in options)}
    decay = given.pop("weight_decay", 0.0)
    alphas = [parameter for key, parameter in model.named_parameters() if key.endswith("gate.alpha")]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [p for key, p in model.named_parameters() if key.endswith("bias")]
    assert (len(alphas), len(matrices), len(others)) == (2, 4, 4)
    twin = getattr(torch.optim, name)(
        [
            {"params": matrices, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
            {"params": alphas, "weight_decay": 0.0},
        ],
        lr=0.2,
        **given,
    )
    clipped = 0
    for step, share in enumerate([1 / 4, 2 / 4, 3 / 4, 1, 1, 0.1, 0.1, 0.01]):
        inputs, targets = DATA.batch(5, step, 500)
        loss = F.cross_entropy(model(inputs), targets)
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
        clipped += norm > 0.3
        for group, rate in zip(twin.param_groups, (0.2, 0.2, 0.05), strict=True):
            group["lr"] = rate * share
            for parameter in group["params"]:
                parameter.grad *= min(1.0, 0.3 / (norm + 1e-6))
        twin.step()
        assert points[step].metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert points[step].alphas == pytest.approx([alpha.item() for alpha in alphas], rel=1e-3, abs=1e-6)
    assert clipped > 4


def test_bf16_computes_in_bfloat16_and_keeps_float32() -> None:
    """Under bf16 linear layers compute in bfloat16, in training and in measuring; the weights stay float32."""
    kinds: set[tuple[bool, torch.dtype]] = set()
    models: list[nn.Module] = []

    def build(data: TensorData, arm: str, settings: Settings) -> nn.Module:
        models.append(TASK.build(data, arm, settings))
        for module in models[-1].modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda m, _, output: kinds.add((m.training, output.dtype)))
        return models[-1]

    task = replace(TASK, build=build)
    rounded = train(tiny(precision="bf16"), "rezero", task=task)
    assert kinds == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {value.dtype for value in models[-1].state_dict().values()} == {torch.float32}
    kinds.clear()
    exact = train(tiny(), "rezero", task=task)  # one precision does not stick to the next trial
    assert kinds == {(True, torch.float32), (False, torch.float32)}
    assert rounded[0].metrics["train_loss"] != exact[0].metrics["train_loss"]
    assert rounded[0].metrics["train_loss"] == pytest.approx(exact[0].metrics["train_loss"], rel=0.02)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])], ids=["1", "2", "5", "9"]
)
def test_points_come_as_often_as_asked(every: int, expected: list[int]) -> None:
    """measure_every counts steps across the ends of epochs, and there is always a point at the end."""
    points = train(tiny(steps=5, measure_every=every), "plain")
    assert [point.step for point in points] == expected
    assert [point.epoch for point in points] == [step / PER_EPOCH for step in expected]


def test_more_processes_than_there_are_is_refused() -> None:
    """Settings of two processes do not quietly run in one."""
    settings = replace(tiny(), processes=2)
    with pytest.raises(UsageError, match=r"^expected 2 processes on cpu, got 1 on cpu: .*torchrun --nproc-per-node 2"):
        train(settings, "plain")


def test_rezero_ends_below_half_of_every_other_arm() -> None:
    """At depth 64 and width 64, after 8 epochs, ReZero's training loss is below half of every other arm's."""
    settings = TASK.settings({"epochs": 8, "seeds": 1})
    assert (settings.depth, settings.width, settings.lr) == (64, 64, 0.01)
    losses = {arm: train(settings, arm)[-1].metrics["train_loss"] for arm in settings.arms}
    rezero = losses.pop("rezero")
    assert sorted(losses) == ["plain", "post-norm", "pre-norm", "residual"]
    assert {arm: loss for arm, loss in losses.items() if not rezero < loss / 2} == {}
