"""Models built from a line of text, and what `rezero inspect` prints of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rezero.cli import run
from rezero.errors import UsageError
from rezero.integrations.models import build_model

OWN = """import torch
from torch import nn

def model():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)

def with_keywords():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (), {"src": torch.randn(1, 3, 8)}

def number():
    return 3

value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go into a folder with a module of the user's own."""
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_models", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "sites"),
    [
        ("timm:vit_tiny_patch16_224", 24),
        ("timm:resnet50", 16),
        ("hf:gpt2", 24),
        ("hf:bert", 24),
        ("hf:t5", 30),
        ("own_models:model", 2),
        ("own_models:with_keywords", 2),
    ],
)
def test_inspect_counts_the_additions(spec: str, sites: int, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the table, and as JSON the same sites, without building any weights of a known model."""
    assert run(["inspect", spec]) == 0
    assert f"{spec}: {sites} residual additions" in capsys.readouterr().out
    assert run(["inspect", spec, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sites"]) == sites
    assert found["counts"]["gained"] == sites


def test_a_model_is_built_without_weights() -> None:
    """Every parameter of a model that is inspected lies on the meta device."""
    model, _, inputs = build_model("hf:gpt2")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(tensor.is_meta for tensor in inputs.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", r"expected timm:NAME, hf:TYPE or package\.module:function, got 'resnet50'"),
        ("timm:", r"expected timm:NAME"),
        ("timm:resnet51", r"timm has no model 'resnet51'"),
        ("timm:vit_tiny", r"did you mean vit_tiny"),
        ("hf:gpt-2", r"transformers has no model type 'gpt-2'"),
        ("hf:lama", r"no model type 'lama'; did you mean .*llama"),
        ("no_such_module:model", r"no_such_module can't be imported"),
        ("own_models:nothing", r"own_models has no function 'nothing'"),
        ("own_models:value", r"own_models has no function 'value'"),
        ("own_models:number", r"must return a model"),
    ],
)
def test_a_bad_line_says_what_was_expected(spec: str, message: str, own: Path) -> None:
    """Each mistake gets one line."""
    with pytest.raises(UsageError, match=message):
        build_model(spec)


def test_the_command_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that does not exist is an error of the user's."""
    assert run(["inspect", "timm:resnet51"]) == 2
    assert "timm has no model" in capsys.readouterr().err


def test_a_package_that_does_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision for another torch ends in advice, not in a stack of calls."""

    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(UsageError, match="install torchvision and torch from the same release"):
        build_model("timm:resnet50")
