"""The tasks that come with the lab."""

import math
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rezero import gates
from rezero.data.batches import Data
from rezero.data.windows import TextData
from rezero.errors import UsageError
from rezero.lab import TASKS, Settings, Task, find_task
from rezero.lab.quality import ACCURACY, BITS
from rezero.lab.tasks import SAMPLE_MARK
from rezero.lab.trial import Trial, settings_of
from rezero.layers import MLP, LanguageModel, ResNet
from rezero.layers.residuals import RESIDUALS

SIZES = {
    "fc-digits": 2,
    "fc-table": 2,
    "fc-cifar10": 2,
    "resnet-cifar10": 8,
    "lm-text": 2,
    "lm-enwik8": 2,
}  # a depth that it takes
SMALL: dict[str, dict[str, Any]] = {
    name: {"depth": depth, "width": 8, "threads": 1} | ({"heads": 2, "context": 16} if name.startswith("lm") else {})
    for name, depth in SIZES.items()
}
STARTS = {"gpt2": "pre-norm"}  # arms that differ from another by their start alone
NEEDS = {
    "fc-cifar10": ("cifar-10-batches-py/data_batch_1",),
    "resnet-cifar10": ("cifar-10-batches-py/data_batch_1",),
    "lm-enwik8": ("enwik8", "enwik8.xz", "enwik8.zip", "enwik8.gz"),
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} and {n + 1} are {2 * n + 1}. " for n in range(1000)))
    return path


def given(name: str, text: Path, **changes: Any) -> dict[str, Any]:
    return {**SMALL[name], **({"data": str(text)} if name == "lm-text" else {}), **changes}


def load(name: str, settings: Settings) -> Data:
    """The task's data, where they are."""
    folder = os.environ.get("REZERO_DATA")
    if wanted := NEEDS.get(name):
        if not folder:
            pytest.skip(f"{name} needs REZERO_DATA, a folder with {wanted[0]}")
        if not any((Path(folder) / path).exists() for path in wanted):
            pytest.skip(f"no {wanted[0]} in REZERO_DATA")
    # One load for all arms: a second one reads and checks as much again.
    return read(name, replace(find_task(name).defaults, threads=1, context=settings.context, data=settings.data))


@cache
def read(name: str, settings: Settings) -> Data:
    return find_task(name).load(settings)


@pytest.mark.parametrize("name", TASKS, ids=str)
def test_defaults_are_settings_of_the_task(name: str) -> None:
    """Without options a task has its defaults, and its arms are its own, in the order of the registry."""
    task = find_task(name)
    if task.defaults.threads > (os.cpu_count() or 1):
        pytest.skip(f"needs {task.defaults.threads} cores")
    assert task.settings({}) == task.defaults
    assert {*task.defaults.arms} <= {*task.arms} <= {*RESIDUALS, *STARTS}
    assert [*task.arms] == [arm for arm in (*RESIDUALS, *STARTS) if arm in task.arms]
    assert "rezero" in task.defaults.arms
    assert "\n" not in task.summary


FAMILIES = {"fc-digits": MLP, "fc-table": MLP, "fc-cifar10": MLP, "resnet-cifar10": ResNet, "lm-text": LanguageModel}
FAMILIES["lm-enwik8"] = LanguageModel


@pytest.mark.parametrize("name", TASKS, ids=str)
def test_formulas_are_those_of_the_family(name: str) -> None:
    """The formula of an arm is the registry's, or where the family departs from it the one that its class states."""
    documented = FAMILIES[name].__doc__ or ""
    for arm, formula in find_task(name).arms.items():
        if arm in STARTS:
            assert formula.startswith(RESIDUALS[STARTS[arm]])
            continue
        assert formula == RESIDUALS[arm] or f"``{formula.partition(', ')[0]}``" in documented, arm


def test_every_block_of_a_resnet_has_its_own_formula() -> None:
    """No arm of the ResNet task takes its formula from the registry, which knows neither its shortcut nor its norms."""
    arms = find_task("resnet-cifar10").arms
    assert arms["residual"] == "relu(s(x) + bn conv relu bn conv x)"
    assert not {*arms.values()} & {*RESIDUALS.values()}


@pytest.mark.parametrize(("name", "arm"), [(name, arm) for name, task in TASKS.items() for arm in task.arms])
def test_every_arm_of_every_task_learns(name: str, arm: str, text: Path) -> None:
    """Each arm of each task is built for its data, gives a score a class, and has a gradient for some parameter."""
    task = find_task(name)
    settings = task.settings(given(name, text, arms=(arm,)))
    data = load(name, settings)
    task.check(data, settings)
    torch.manual_seed(0)
    model = task.build(data, arm, settings)
    inputs, targets = data.batch(0, 0, 4)
    output = model(inputs)
    assert output.shape == (*targets.shape, data.classes)
    loss = torch.nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten())
    loss.backward()
    assert math.isfinite(loss.item())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert bool(gates(model)) == (arm in ("rezero", "skipinit"))
    assert task.quality is (BITS if name.startswith("lm") else ACCURACY)


@pytest.mark.parametrize("name", TASKS, ids=str)
def test_default_arms_can_be_built_in_their_size(name: str, text: Path) -> None:
    """The networks of a task's defaults, which check() builds without memory, can be built."""
    task = find_task(name)
    settings = replace(task.defaults, threads=1)
    changes: dict[str, Any] = {"data": str(text), "steps": 200, "epochs": None} if name == "lm-text" else {}
    settings = replace(settings, **changes)
    data = load(name, settings)
    task.check(data, settings)
    with torch.device("meta"):
        count = {arm: sum(p.numel() for p in task.build(data, arm, settings).parameters()) for arm in settings.arms}
    assert max(count.values()) < 1.05 * min(count.values())  # arms are of a size
    if name == "resnet-cifar10":
        assert 0.26e6 < count["residual"] < 0.28e6  # 0.27 million: table 6 of He et al. (2015), arXiv:1512.03385


PUBLISHED: dict[str, dict[str, Any]] = {
    # Bachlechner et al. (2020), the authors' notebook ReZero-Deep_Fast_NeuralNetwork.
    "fc-cifar10": {
        "width": 256,
        "batch_size": 100,
        "optimizer": "Adagrad",
        "lr": 0.01,
        "schedule": "constant",
        "warmup": 0,
        "clip": None,
        "alpha_lr": None,
    },
    # He et al. (2015), arXiv:1512.03385, section 4.2, with the rate divided by 10 at half and three quarters.
    "resnet-cifar10": {
        "depth": 20,
        "width": 16,
        "batch_size": 128,
        "epochs": 200,
        "optimizer": "SGD momentum=0.9 weight_decay=1e-4",
        "schedule": "MultiStepLR milestones=100e,150e",
        "alpha_lr": None,
    },
    "lm-text": {"depth": 12, "warmup": 100, "clip": 1.0, "batch_size": 16, "optimizer": "AdamW weight_decay=0.01"},
    "lm-enwik8": {"depth": 12, "warmup": 100, "clip": 1.0, "batch_size": 16, "optimizer": "AdamW weight_decay=0.01"},
}


@pytest.mark.parametrize("name", PUBLISHED, ids=str)
def test_defaults_are_the_published_ones(name: str) -> None:
    """Where the paper or the authors give a value it is the default."""
    defaults = asdict(find_task(name).defaults)
    assert {setting: defaults[setting] for setting in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        ({}, 0.2),
        ({"depth": 20}, 0.2),
        ({"depth": 8}, 0.2),
        ({"depth": 56}, 0.1),
        ({"depth": 110}, 0.1),
        ({"depth": 56, "lr": 0.3}, 0.3),
        ({"depth": 20, "lr": 0.3}, 0.3),
    ],
    ids=str,
)
def test_the_rate_of_a_resnet_follows_its_depth(options: dict[str, Any], lr: float) -> None:
    """A ResNet of more than 20 layers starts at half the rate, unless another is given."""
    assert find_task("resnet-cifar10").settings({"threads": 1, **options}).lr == lr


ONLY_SOME = {"heads": 2, "context": 8, "data": "text.txt"}
TAKES = {"fc-table": {"data"}, "lm-text": {"heads", "context", "data"}, "lm-enwik8": {"heads", "context"}}


@pytest.mark.parametrize("option", ONLY_SOME)
@pytest.mark.parametrize("name", TASKS)
def test_an_option_that_means_nothing_is_refused(name: str, option: str) -> None:
    """heads, context and data are taken by the tasks that have a use for them, and refused by name elsewhere."""
    task = find_task(name)
    changes = {"threads": 1, option: ONLY_SOME[option]}
    if option in TAKES.get(name, set()):
        assert getattr(task.settings(changes), option) == ONLY_SOME[option]
        return
    with pytest.raises(UsageError, match=rf"^{name} has no option {option}: leave --{option} out$"):
        task.settings(changes)


@pytest.mark.parametrize("name", TASKS)
def test_an_arm_has_embeddings_of_its_own(name: str) -> None:
    """One arm of a Transformer can start its embeddings elsewhere than the others; a network without any refuses."""
    task = find_task(name)
    arms = ("rezero", "rezero embedding-std=0.5")
    if not name.startswith("lm-"):
        with pytest.raises(UsageError, match=rf"^{name} has no option embedding-std: leave it out of 'rezero emb.*5'$"):
            task.settings({"threads": 1, "arms": arms})
        return
    settings = task.settings({"threads": 1, "arms": arms, "embedding_std": 2.0})
    letters = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = TextData("noise", letters, letters, settings.context or 1)
    spreads = []
    for arm in arms:
        model = task.build(text, "rezero", settings_of(settings, Trial(arm, settings.lr, seed=0)))
        assert isinstance(model, LanguageModel)
        spreads.append(float(model.embedding.weight.detach().std()))
    assert spreads == pytest.approx([2.0, 0.5], rel=0.05)
    with pytest.raises(UsageError, match=r"^embedding-std must be a finite number above 0: got -1"):
        task.settings({"threads": 1, "arms": ("rezero embedding-std=-1",)})


def test_gates_start_where_an_arm_says() -> None:
    """All of an arm's gates, and no arm without any is asked for it."""
    task = find_task("lm-text")
    letters = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    arms = ("pre-norm", "rezero", "rezero alpha=1")
    settings = task.settings(
        {"threads": 1, "arms": arms, "depth": 2, "width": 8, "heads": 2, "context": 8, "steps": 200}
    )
    text = TextData("noise", letters, letters, 8)
    task.check(text, settings)
    started = [
        {gate.gate_parameter.item() for gate in gates(model).values()}
        for arm in arms
        for model in [task.model(text, arm, settings_of(settings, Trial(arm, settings.lr, seed=0)))]
    ]
    assert started == [set(), {0.0}, {1.0}]
    with pytest.raises(
        UsageError, match="pre-norm has no gates that could start elsewhere: leave alpha out of 'pre-norm"
    ):
        task.check(text, replace(settings, arms=("pre-norm alpha=1",)))
    with pytest.raises(UsageError, match="alpha must be a finite number: got nan"):
        replace(settings, alpha=float("nan"))


def test_gpt2_starts_as_gpt2() -> None:
    """Normal with 0.02, the last layer of each branch smaller by the root of the number of branches, no biases."""
    task = find_task("lm-text")
    given = {"threads": 1, "arms": ("gpt2",), "depth": 8, "width": 64, "heads": 2, "context": 8}
    settings = task.settings(given)
    letters = torch.randint(256, (600,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    model = task.model(TextData("noise", letters, letters, 8), "gpt2", settings)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            last = name.endswith(("out.weight", "linear2.weight"))
            assert float(parameter.detach().std()) == pytest.approx(0.02 / (4 if last else 1), rel=0.1), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
    assert any("norm" in name for name, _ in model.named_modules())


def images() -> Data:
    """A few images of CIFAR-10's shape."""
    from rezero.data.batches import TensorData

    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return TensorData("noise", pixels, torch.arange(8), pixels, torch.arange(8), classes=10)


@pytest.mark.parametrize("depth", [1, 2, 7, 18, 21, 109], ids=str)
def test_a_resnet_has_6n_plus_2_layers(depth: int) -> None:
    """A depth that no ResNet of the paper has is refused in one line, before anything is written."""
    task = find_task("resnet-cifar10")
    settings = task.settings({"depth": depth, "threads": 1})
    with pytest.raises(UsageError, match=rf"^depth must be 6 n \+ 2 .*: got {depth}\b") as caught:
        task.check(images(), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [8, 20, 56, 110], ids=str)
def test_a_resnet_of_the_paper_is_built(depth: int) -> None:
    """The depths of the paper are accepted, with as many layers as their name says."""
    task = find_task("resnet-cifar10")
    settings = task.settings({"depth": depth, "threads": 1})
    task.check(images(), settings)
    with torch.device("meta"):
        model = task.build(images(), "rezero", settings)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth
    assert len(gates(model)) == (depth - 2) // 2


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "odd-heads": ("lm-text", {"width": 6, "heads": 2}, r"even width.* 3"),
    "warmup-too-long": (
        "lm-text",
        {"steps": 5, "warmup": 5},
        r"^warmup must be shorter than the run of 5 steps: got 5$",
    ),
    "schedule-too-short": ("fc-digits", {"schedule": "OneCycleLR max_lr=1 total_steps=0"}, r"^schedule 'OneCycleLR"),
    "cycle-without-momentum": ("fc-digits", {"schedule": "CyclicLR base_lr=0.1 max_lr=1"}, r"^schedule 'CyclicLR"),
}


@pytest.mark.parametrize(("name", "changes", "message"), WRONG.values(), ids=WRONG)
def test_what_only_the_data_show_is_refused(name: str, changes: dict[str, Any], message: str, text: Path) -> None:
    """Settings that fit no network or no run are a UsageError of one line, from settings() or from check()."""
    task = find_task(name)
    with pytest.raises(UsageError, match=message) as caught:
        build_and_check(task, given(name, text, **changes))
    assert "\n" not in str(caught.value)


def build_and_check(task: Task, options: dict[str, Any]) -> None:
    settings = task.settings(options)
    task.check(task.load(settings), settings)


@pytest.mark.parametrize(
    ("quality", "value", "shown"),
    [
        (ACCURACY, 0.12345, "12.3 %"),
        (ACCURACY, 1.0, "100.0 %"),
        (ACCURACY, math.nan, "none"),
        (BITS, 1.23456, "1.235"),
        (BITS, math.inf, "none"),
    ],
    ids=["accuracy", "all", "no-accuracy", "bits", "no-bits"],
)
def test_a_quality_is_shown_in_its_digits(quality: Any, value: float, shown: str) -> None:
    """Accuracies are percent with one decimal, bits a byte have three; what is not finite is a word."""
    assert quality.show(value) == shown


def test_bits_are_nats_over_the_logarithm_of_two() -> None:
    """A loss of ln 2 nats a byte, that of a coin, is one bit; that of 256 equal bytes is eight."""
    assert BITS.metric == "val_loss"
    assert BITS.factor * math.log(2) == pytest.approx(1.0, rel=1e-15)
    assert BITS.factor * math.log(256) == pytest.approx(8.0, rel=1e-15)
    assert (BITS.lower_is_better, ACCURACY.lower_is_better) == (True, False)


def test_processes_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study has as many processes as torchrun says that there are, one without it."""
    task = find_task("fc-digits")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert task.settings({}).processes == 1
    started = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for variable, value in started.items():
        monkeypatch.setenv(variable, value)
    assert task.settings({}).processes == 4
    with pytest.raises(UsageError, match=r"^batch-size must be at least processes times accumulate, 8, .*: got 7$"):
        task.settings({"batch_size": 7, "accumulate": 2})


def test_the_sample_of_a_text_is_the_seeds_alone(text: Path) -> None:
    """A sample depends on the model, the text and the seed, whatever torch's generator was, and is text."""
    task = find_task("lm-text")
    assert task.sample is not None
    settings = task.settings(given("lm-text", text))
    data = task.load(settings)
    torch.manual_seed(0)
    model = task.build(data, "pre-norm", settings)
    first = task.sample(model, data, 3)
    torch.rand(5)
    assert task.sample(model, data, 3) == first
    assert task.sample(model, data, 4) != first
    assert model.training
    content = text.read_bytes()
    prompt = content[len(content) * 90 // 100 :][:64].decode()
    assert first.startswith(prompt + SAMPLE_MARK)
    assert task.sample(model, data, 4).startswith(prompt + SAMPLE_MARK)


def test_validation_is_not_said_to_be_longer_than_the_text() -> None:
    """The recipe promises no more validation bytes than a short text has."""
    assert find_task("lm-text").recipe["validation"] == "at most the first 32,768 bytes of the validation part"
