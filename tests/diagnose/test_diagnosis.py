"""The command `rezero diagnose`: the check and the plots of a model that a line of text names."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rezero.cli import run

MODELS = """
import torch, rezero
from torch import nn

def plain():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)]
    return nn.Sequential(*layers), torch.randn(3, 4, 8)

def trained():
    blocks = [rezero.ReZero(nn.Linear(8, 8), gate=rezero.Gate(init_value=0.1 * i)) for i in range(1, 4)]
    return nn.Sequential(*blocks), torch.randn(1, 8)

def frozen():
    model, x = trained()
    model[1].gate.requires_grad_(False)
    return model, x

def vgg():
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))), torch.randn(3, 8)

def wide():
    return nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(2, 3000)

def meta():
    with torch.device("meta"):
        return trained()

def alone():
    return trained()[0]

def both():
    return nn.Linear(2, 2), torch.randn(2, 2), {"y": torch.randn(2, 2)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some models."""
    (tmp_path / "some_models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "some_models", raising=False)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.suffix not in (".py", ".pyc")} - {
        "__pycache__"
    }


def drawn(*names: str) -> set[str]:
    return {f"{name}.{ending}" for name in names for ending in ("svg", "png", "html")}


def test_a_model_without_gates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is looked at as it was, converted, and looked at again; its singular values are 1 then."""
    assert run(["diagnose", "some_models:plain", "-o", "out", "--singular-values", "all"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("some_models:plain has no gates of its own: 4 were put in\n4 gates, no findings\n")
    assert "with gates: 32 x 32 Jacobian, all 32 singular values, 1 example\nmean squared 1\n" in said
    assert files(folder / "out") == {"check.txt", "diagnosis.json"} | drawn("propagation", "singular_values")
    held = json.loads((folder / "out/diagnosis.json").read_text(encoding="utf-8"))
    assert held["model"] == "some_models:plain"
    assert held["check"] == {"gates": 4, "findings": [], "notes": []}
    assert held["jacobian"]["with gates"]["singular_values"] == [[1.0] * 32]
    assert [row["name"] for row in held["propagation"]["as it was"]["layers"]] == ["0", "1"]


def test_a_model_with_gates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keeps them, and they are drawn; one example is enough."""
    assert run(["diagnose", "some_models:trained", "--singular-values", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 gates, no findings\n\nwith gates: 3 layers\n")
    assert "2 of 8 singular values" in said
    out = folder / "rezero-diagnosis/some_models-trained"
    assert files(out) == {"check.txt", "diagnosis.json"} | drawn("propagation", "alphas", "singular_values")
    held = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert held["alphas"]["alphas"] == [pytest.approx([0.1, 0.2, 0.3])]


def test_a_model_without_residual_additions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Has nothing to gate, which is said, and its signals are drawn."""
    assert run(["diagnose", "some_models:vgg", "-o", "out", "--singular-values", "8", "--strict"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0 gates, no findings\nthe model has no residual additions to gate\n\nas it was: 3 layers\n")
    assert "as it was: 8 x 8 Jacobian, all 8 singular values" in said
    assert files(folder / "out") == {"check.txt", "diagnosis.json"} | drawn("propagation", "singular_values")
    assert json.loads((folder / "out/diagnosis.json").read_text(encoding="utf-8"))["alphas"] is None


@pytest.mark.parametrize(("model", "code"), [("frozen", 1), ("trained", 0)])
def test_a_fault_is_an_exit_code_on_demand(folder: Path, model: str, code: int) -> None:
    """With --strict, after the files are written."""
    assert run(["diagnose", f"some_models:{model}", "-o", "out", "--strict"]) == code
    assert (folder / "out/check.txt").exists()


def test_findings_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal and in the file."""
    assert run(["diagnose", "some_models:frozen", "-o", "out"]) == 0
    line = "fault: frozen at 1.gate: they do not require gradients; thaw them"
    assert line in capsys.readouterr().out
    assert line in (folder / "out/check.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["some_models:trainde"], r"has no function 'trainde' \(did you mean 'trained'\?\)"),
        (["some_models:meta"], "on the meta device and has no numbers"),
        (["some_models:alone"], "no example was given: let the function return the model and its example"),
        (["some_models:both"], "as arguments in order or by name, got some of both"),
        (["some_models:plain", "--singular-values", "x"], 'expected a number, or all, got "x"'),
        (["some_models:plain", "-o", "some_models.py/out"], "cannot write into some_models.py/out: it is a file, or"),
        (["some_models:plain", "--singular-values", "99"], "--singular-values up to 32, .* is 32 x 32, got 99$"),
        (
            ["some_models:wide", "--singular-values", "all"],
            "--singular-values up to 2,999, or all of up to .* got all$",
        ),
    ],
    ids=["name", "meta", "no example", "both", "no number", "file", "too many", "all of too many"],
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """One line, exit code 2, and nothing written."""
    before: Any = files(folder)
    assert run(["diagnose", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said)
    assert files(folder) == before
