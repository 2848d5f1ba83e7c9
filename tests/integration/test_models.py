"""Models built from a line of text, and what `rezero inspect` prints of them."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rezero.cli import run
from rezero.errors import UsageError
from rezero.integrations.models import _free_memory, build_model

OWN = """import torch
from torch import nn

def model():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)

def with_keywords():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (), {"src": torch.randn(1, 3, 8)}

def number():
    return 3

def sized(size):
    return nn.Linear(size, size)

def failing():
    return nn.Linear(8, 8)(torch.randn(1, 3))

def leaving():
    raise SystemExit(0)

def no_mapping():
    return nn.Linear(8, 8), torch.randn(1, 8), 5

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
        ("timm:vit_tiny", r"did you mean 'vit_tiny"),
        ("hf:gpt-2", r"transformers has no model type 'gpt-2'"),
        ("hf:lama", r"no model type 'lama' \(did you mean .*'llama'"),
        ("no_such_module:model", r"no_such_module can't be imported"),
        ("own_models:zzz", r"has no function 'zzz'; it has model, with_keywords, number, sized, failing$"),
        ("own_models:nothing", r"own_models has no function 'nothing'"),
        ("own_models:value", r"own_models has no function 'value'"),
        ("own_models:number", r"must return a model.*, got int"),
        ("gpt2", r"got 'gpt2'; did you mean timm:gpt2 or hf:gpt2\?"),
        ("hf:openai-community/gpt2", r"takes a model type .*, not the name of a model on the hub.*; try hf:gpt2$"),
        ("hf:meta-llama/Llama-2-7b", r"; try hf:llama$"),
        ("own_models:modl", r"has no function 'modl' \(did you mean 'model'\?\)"),
        ("own_models.py:model", r"expected the name of a module .*'own_models\.py': write own_models:model$"),
        ("./own_models.py:model", r"write own_models:model$"),
        ("parts/own.py:model", r"write parts\.own:model$"),
        ("../own_models.py:model", r"write own_models:model in the folder that holds it$"),
        (".:x", r"expected the name of a module .*got '\.'$"),
        ("..a:b", r"write a:b$"),
        (".good:build", r"write good:build$"),
        ("own_models:sized", r"own_models:sized can't be called without arguments: .*'size'$"),
        ("own_models:failing", r"own_models:failing fails: RuntimeError: .*own_models\.py:17\)$"),
        ("own_models:leaving", r"own_models:leaving fails: SystemExit: 0 "),
        ("own_models:no_mapping", r"must return .*, got Linear, Tensor, int"),
    ],
)
def test_a_bad_line_says_what_was_expected(spec: str, message: str, own: Path) -> None:
    """Each mistake gets one line."""
    with pytest.raises(UsageError, match=message):
        build_model(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def model(:", r"SyntaxError: .*broken\.py, line 1"),
        ("import sys\nunknown()", r"NameError: name 'unknown' is not defined \(.*broken\.py:2\)"),
        ("\0", r"null bytes"),
        ("import sys\nsys.exit(0)", r"SystemExit: 0 \(.*broken\.py:2\)"),
        ("import no_such_package", r"No module named 'no_such_package'"),
    ],
    ids=["syntax", "name", "nul", "exit", "import"],
)
def test_a_module_that_does_not_load_is_one_line(
    code: str, message: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in a user's file ends in one line that says where, and in code 2."""
    monkeypatch.delitem(__import__("sys").modules, "broken", raising=False)
    importlib.invalidate_caches()
    (own / "broken.py").write_text(code)
    assert run(["inspect", "broken:model"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rezero: broken can't be imported from ")
    assert re.search(message, said)


def test_the_command_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that does not exist is an error of the user's."""
    assert run(["inspect", "timm:resnet51"]) == 2
    assert "timm has no model" in capsys.readouterr().err


@pytest.mark.parametrize(("spec", "size"), [("hf:llama", "24.6"), ("timm:resnet18", "0.0")])
def test_weights_that_do_not_fit_are_not_made(spec: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their size is told before, and what to do; the free memory is read where the system tells it."""
    assert _free_memory() > 2**20
    monkeypatch.setattr("rezero.integrations.models._free_memory", lambda: 2.0**24)
    with pytest.raises(UsageError, match=rf"the weights of {spec} take {size} GiB, with 0\.0 GiB .*package\.module"):
        build_model(spec, "cpu")
    assert len(list(build_model(spec)[0].parameters())) > 2


def test_counting_weights_leaves_them_as_they_are() -> None:
    """They are those of a model that is built without."""
    torch.manual_seed(0)
    expected = timm.create_model("resnet18").state_dict()
    torch.manual_seed(0)
    found = build_model("timm:resnet18", "cpu")[0].state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in found.items())


def test_a_package_that_does_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision for another torch ends in advice, not in a stack of calls."""

    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(UsageError, match="install torchvision and torch from the same release"):
        build_model("timm:resnet50")
