"""The example scripts: by themselves, and compared by the lab, as a user would start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rezero.cli import run
from rezero.lab import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "nano_gpt": (["--steps", "20", "--eval-every", "10", "--layers", "2"], {"train_loss", "val_loss"}, 4),
    "trainer_gpt2": (["--steps", "40", "--layers", "2"], {"train_loss", "eval_loss"}, 4),
    "lightning_resnet": (
        ["--epochs", "2", "--blocks", "2"],
        {"train_loss", "val_loss", "val_accuracy"},
        2,
    ),
}
VARIABLES = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "shim"), str(ROOT / "src")]),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Both arms log all that the script measures, at the same steps; rezero has a gate a residual, and they move."""
    arguments, metrics, gates = EXAMPLES[name]
    script = str(ROOT / "examples" / f"{name}.py")
    options = ["--script", script, "--arms", "original,rezero", "--seeds", "1", "--output", "study"]
    monkeypatch.chdir(tmp_path)
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    assert run(["compare", *options, "--", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "rezero against original, 1 paired seed" in " ".join(printed.split())
    with Store.open(tmp_path / "study") as store:
        original, rezero = store.results()
    assert (original.status, rezero.status) == ("finished", "finished"), (original.note, rezero.note)
    for each in (original, rezero):
        assert {name for point in each.points for name in point.metrics} == {*metrics, "seconds"}
        assert not each.note
    assert [point.step for point in original.points] == [point.step for point in rezero.points]
    assert len(original.points) >= 2
    assert original.last.alphas == ()
    assert len(rezero.last.alphas) == gates
    assert all(abs(alpha) > 1e-5 for alpha in rezero.last.alphas)


def test_an_example_by_itself(tmp_path: Path) -> None:
    """It trains, and leaves nothing behind."""
    command = [sys.executable, str(ROOT / "examples" / "nano_gpt.py"), "--steps", "20", "--eval-every", "10"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **VARIABLES}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = (float(line.split()[-1]) for line in done.stdout.splitlines())
    assert last < first < 6
    assert not [*tmp_path.iterdir()]
