"""The tasks that come with the lab, each a declaration."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from rezero.data.batches import Data, TensorData
from rezero.data.cifar10 import load_cifar10
from rezero.data.digits import load_digits
from rezero.data.tables import TABLES, load_table
from rezero.data.text import TextData, load_enwik8, load_text, load_tiny_shakespeare
from rezero.errors import UsageError, near
from rezero.lab.quality import ACCURACY, BITS
from rezero.lab.settings import Settings
from rezero.lab.task import Task
from rezero.layers import MLP, LanguageModel, ResNet
from rezero.layers.residuals import RESIDUALS

__all__ = ["SAMPLE_MARK", "TASKS", "find_task"]

VALIDATION_BYTES = 32_768
GPT2_STD = 0.02
SAMPLE_PROMPT, SAMPLE_BYTES = 64, 400
SAMPLE_MARK = "\x1f"  # a unit separator: parts the text that was given from what the model wrote
AUTHORS_RATE = {"rate of alpha": "that of every other parameter, as in the authors' code, unless --alpha-lr is given"}


def find_task(name: str) -> Task:
    """Look a task up.

    Args:
        name: Name of a task.

    Returns:
        The task.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in TASKS:
        raise UsageError(f"no task is called {name!r}{near(name, TASKS)}; choose from {', '.join(TASKS)}")
    return TASKS[name]


def _build_mlp(data: Data, arm: str, settings: Settings) -> nn.Module:
    assert isinstance(data, TensorData)  # noqa: S101 - a task's own loader
    return MLP(data.inputs[0].numel(), settings.width, settings.depth, data.classes, residual=arm)


def _build_resnet(data: Data, arm: str, settings: Settings) -> nn.Module:
    try:
        return ResNet(settings.depth, data.classes, residual=arm, width=settings.width)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _build_language_model(data: Data, arm: str, settings: Settings) -> nn.Module:
    share: Literal["sublayer", "layer"] = "layer" if arm in ("rezero", "skipinit") else "sublayer"
    try:
        model = LanguageModel(
            settings.width,
            settings.depth,
            settings.heads or 1,
            residual="pre-norm" if arm == "gpt2" else arm,
            vocab_size=data.classes,
            embedding_std=settings.embedding_std,
            share=share,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arm == "gpt2":
        _start_as_gpt2(model, settings)
    return model


def _start_as_gpt2(model: LanguageModel, settings: Settings) -> None:
    """Draw weights as GPT-2 does: normal with 0.02, the last of each branch smaller by the root of their number."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            last = name.endswith(("out.weight", "linear2.weight"))
            std = GPT2_STD / (2 * settings.depth) ** 0.5 if last else GPT2_STD
            if name.startswith("embedding"):
                std = settings.embedding_std or std
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _sample_text(model: nn.Module, data: Data, seed: int) -> str:
    """Continue the beginning of the validation part, the same for every arm."""
    assert isinstance(model, LanguageModel)  # noqa: S101 - a task's own model
    assert isinstance(data, TextData)  # noqa: S101
    prompt = data.val[:SAMPLE_PROMPT].long()
    generator = torch.Generator(data.val.device).manual_seed(seed)
    written = model.generate(prompt[None], SAMPLE_BYTES, temperature=0.8, generator=generator)[0]
    halves = bytes(prompt.tolist()), bytes(written[len(prompt) :].tolist())
    return SAMPLE_MARK.join(half.decode("utf-8", errors="replace") for half in halves)


_MLP_ARMS = {name: formula for name, formula in RESIDUALS.items() if name != "fixup"}

_FC_DIGITS = Task(
    name="fc-digits",
    summary="a fully connected network on 8 x 8 handwritten digits that come with scikit-learn; half a minute",
    arms=_MLP_ARMS,
    defaults=Settings(
        arms=("plain", "residual", "post-norm", "pre-norm", "rezero"),
        depth=64,
        width=64,
        epochs=10,
        steps=None,
        batch_size=128,
        lr=0.01,
        optimizer="Adagrad",
        seeds=3,
        threads=1,
    ),
    load=lambda _: load_digits(),
    build=_build_mlp,
    quality=ACCURACY,
    standard="pre-norm",
    recipe=AUTHORS_RATE,
)

_FC_TABLE = Task(
    name="fc-table",
    summary=f"a fully connected network on a small data set, --data {', '.join(TABLES)}",
    arms=_MLP_ARMS,
    defaults=Settings(
        arms=("post-norm", "pre-norm", "rezero"),
        depth=16,
        width=64,
        epochs=None,
        steps=400,
        batch_size=32,
        data="breast_cancer",
        lr=0.01,
        optimizer="Adagrad",
        measure_every=40,
        seeds=5,
        threads=1,
    ),
    load=lambda settings: load_table(settings.data or "breast_cancer"),
    build=_build_mlp,
    quality=ACCURACY,
    standard="pre-norm",
    recipe={
        **AUTHORS_RATE,
        "validation": "30% of each class, or the first 2,000 test images; nothing was selected on it",
    },
    takes=frozenset({"data"}),
)

_FC_CIFAR10 = Task(
    name="fc-cifar10",
    summary="the paper's fully connected network on CIFAR-10",
    arms=_MLP_ARMS,
    defaults=Settings(
        arms=("plain", "residual", "plain-norm", "rezero"),
        depth=64,
        width=256,
        epochs=10,
        steps=None,
        batch_size=100,
        lr=0.01,
        optimizer="Adagrad",
        seeds=3,
        threads=2,
    ),
    load=lambda _: load_cifar10(layout="flat"),
    build=_build_mlp,
    quality=ACCURACY,
    standard="pre-norm",
    recipe={**AUTHORS_RATE, "validation": "the 10,000 test images; nothing was selected on them"},
)


def _resnet_rate(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": 0.1} if given.get("depth", 20) > 20 else {}


# Layers apply from right to left; s is the shortcut and bn batch norm.
_RESNET_ARMS = {
    "plain": "relu bn conv relu bn conv x",
    "residual": "relu(s(x) + bn conv relu bn conv x)",
    "post-norm": "relu bn(s(x) + conv relu bn conv x)",
    "pre-norm": "s(x) + conv relu bn conv relu bn x",
    "rezero": "s(x) + alpha * relu bn conv relu bn conv x, alpha = 0 at the start",
    "skipinit": "s(x) + alpha * conv relu conv relu x, alpha = 0 at the start",
    "layerscale": "s(x) + scale * conv relu bn conv relu bn x, one small scale a channel",
    "fixup": "relu(s(x) + m * conv(relu(conv(x + b1) + b2) + b3) + b4), rescaled by depth and zero at the start",
}

_RESNET_CIFAR10 = Task(
    name="resnet-cifar10",
    summary="the paper's ResNet-20, -56 or -110 on CIFAR-10",
    arms=_RESNET_ARMS,
    defaults=Settings(
        arms=("residual", "rezero"),
        depth=20,
        width=16,
        epochs=200,
        steps=None,
        batch_size=128,
        lr=0.2,
        optimizer="SGD momentum=0.9 weight_decay=1e-4",
        schedule="MultiStepLR milestones=100e,150e",
        seeds=3,
        threads=2,
    ),
    load=lambda _: load_cifar10(layout="image"),
    build=_build_resnet,
    quality=ACCURACY,
    standard="residual",
    recipe={
        **AUTHORS_RATE,
        "weight decay": "on weights with two or more axes; biases, norms and alpha are not decayed",
        "augmentation": "random crop with 4 black pixels around, random flip",
        "validation": "the 10,000 test images; nothing was selected on them",
    },
    derive=_resnet_rate,
)

_LM_ARMS = {
    **RESIDUALS,
    "fixup": "x + m * f(x + b) + c, f rescaled by depth and zero at the start",
    "gpt2": "x + f(norm(x)), weights normal with 0.02, the last of each branch smaller by the root of their number",
}
_LM = Settings(
    arms=("post-norm", "pre-norm", "rezero"),
    depth=12,
    width=128,
    heads=4,
    context=128,
    epochs=None,
    steps=700,
    batch_size=16,
    lr=1e-3,
    optimizer="AdamW weight_decay=0.01",
    warmup=100,
    clip=1.0,
    measure_every=50,
    seeds=1,
    threads=2,
)
_LM_RECIPE = {
    **AUTHORS_RATE,
    "embeddings": "of rezero and skipinit uniform in +-1/width, as its authors advise, unless --embedding-std is given",
    "gates": "one alpha for both branches of a layer, as in the paper",
    "weight decay": "on weights with two or more axes; biases, norms and alpha are not decayed",
    "validation": f"at most the first {VALIDATION_BYTES:,} bytes of the validation part",
}


def _load_text(settings: Settings) -> TextData:
    context = settings.context or 1
    if settings.data is None:
        return load_tiny_shakespeare(context, val_limit=VALIDATION_BYTES)
    return load_text(settings.data, context, val_limit=VALIDATION_BYTES)


_LM_TEXT = Task(
    name="lm-text",
    summary="a byte-level Transformer on Tiny Shakespeare, or on your own text with --data",
    arms=_LM_ARMS,
    defaults=_LM,
    load=_load_text,
    build=_build_language_model,
    quality=BITS,
    standard="pre-norm",
    recipe=_LM_RECIPE,
    takes=frozenset({"heads", "context", "embedding_std", "data"}),
    sample=_sample_text,
)

_LM_ENWIK8 = Task(
    name="lm-enwik8",
    summary="a byte-level Transformer on the first 100 MB of Wikipedia",
    arms=_LM_ARMS,
    defaults=_LM,
    load=lambda settings: load_enwik8(settings.context or 1, val_limit=VALIDATION_BYTES),
    build=_build_language_model,
    quality=BITS,
    standard="pre-norm",
    recipe=_LM_RECIPE,
    takes=frozenset({"heads", "context", "embedding_std"}),
    sample=_sample_text,
)

TASKS: dict[str, Task] = {
    task.name: task for task in (_FC_DIGITS, _FC_TABLE, _FC_CIFAR10, _RESNET_CIFAR10, _LM_TEXT, _LM_ENWIK8)
}
"""Every task by name."""
