"""What AlphaRecorder writes down is what the gates were, whatever happens to the process meanwhile."""

import copy
import json
import math
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.diagnose import AlphaHistory, AlphaRecorder
from rezero.errors import UsageError

D = 8
X_BTD = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def blocks() -> tuple[nn.Module, Tensor]:
    """Make blocks of this library: with one number, one a channel, and tanh."""
    gates = [
        rezero.Gate(init_value=0.5),
        rezero.Gate(D, init_value=-0.3),
        rezero.Gate(init_value=0.4, activation="tanh"),
    ]
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D)) for _ in gates]
    parts = [rezero.ReZero(f, gate=gate) for f, gate in zip(branches, gates, strict=True)]
    return nn.Sequential(*parts, nn.Linear(D, 4)), X_BTD


def encoder() -> tuple[nn.Module, Tensor]:
    """Convert torch's encoder."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
    return rezero.convert_(nn.Sequential(*layers), X_BTD, init_value=0.5).model, X_BTD


def vit() -> tuple[nn.Module, Tensor]:
    """Convert a vision Transformer of timm."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.models.VisionTransformer(num_classes=4, **options)
    return rezero.convert_(model, IMAGE, init_value=0.5).model, IMAGE


FAMILIES = {"blocks": blocks, "encoder": encoder, "vit": vit}
Family = Callable[[], tuple[nn.Module, Tensor]]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def train(model: nn.Module, x: Tensor, after: Callable[[], object], steps: int) -> None:
    """Take steps of Adam, which move gates; call a function after each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        after()


def scales(model: nn.Module) -> list[Tensor]:
    return [gate.gate_scale.detach().double().flatten() for gate in rezero.gates(model).values()]


def tiny(count: int = 3) -> nn.Module:
    return nn.Sequential(*(rezero.ReZero(nn.Linear(4, 4)) for _ in range(count)))


def same(one: AlphaHistory, other: AlphaHistory) -> bool:
    """Return whether two histories are equal bit for bit."""
    return one.names == other.names and one.to_json() == other.to_json()


# What is recorded


@families
def test_records_are_the_gates(family: Family, tmp_path: Path) -> None:
    """Mean, smallest and largest number of each gate at each recorded step, in memory and in the file."""
    model, x = family()
    seen: list[list[Tensor]] = []
    with AlphaRecorder(model, tmp_path / "alphas.jsonl", every=2) as recorder:
        train(model, x, lambda: (recorder.step(), seen.append(scales(model))), 6)
        history = recorder.history
    assert history.names == tuple(rezero.gates(model))
    assert history.steps.tolist() == [2, 4, 6]
    for row, there in enumerate(seen[1::2]):
        torch.testing.assert_close(history.alphas[row], torch.stack([each.mean() for each in there]), rtol=1e-6, atol=0)
        single = [i for i, each in enumerate(there) if len(each) == 1]
        assert [history.alphas[row, i] for i in single] == [there[i] for i in single]
        if history.lows is not None and history.highs is not None:
            assert torch.equal(history.lows[row], torch.stack([each.min() for each in there]))
            assert torch.equal(history.highs[row], torch.stack([each.max() for each in there]))
    assert (history.lows is not None) == (family is blocks)
    assert len({row.tolist()[0] for row in history.alphas}) == 3  # they moved
    assert recorder.latest == dict(zip(history.names, history.alphas[-1].tolist(), strict=True))
    assert same(AlphaHistory.read(tmp_path / "alphas.jsonl"), history)


@families
def test_gradients_are_the_gates_own(family: Family) -> None:
    """The mean over a gate's channels of the gradient that the optimizer saw."""
    model, x = family()
    seen: list[Tensor] = []
    recorder = AlphaRecorder(model, every=1, gradients=True)
    owners = rezero.gates(model).values()

    def note() -> None:
        recorder.step()
        seen.append(torch.stack([gate.gate_parameter.grad.double().mean() for gate in owners]))

    train(model, x, note, 3)
    assert recorder.history.gradients is not None
    torch.testing.assert_close(recorder.history.gradients, torch.stack(seen), rtol=1e-5, atol=1e-9)
    assert recorder.history.gradients.abs().min() > 0


def test_a_gate_without_a_gradient_is_nan() -> None:
    """As a frozen one is; in the file it is null."""
    model = tiny()
    rezero.gates(model)["1.gate"].gate_parameter.requires_grad_(False)
    with AlphaRecorder(model, every=1, gradients=True) as recorder:
        train(model, torch.ones(2, 4), recorder.step, 1)
    assert recorder.history.gradients is not None
    assert recorder.history.gradients.isnan().tolist() == [[False, True, False]]
    assert recorder.history.to_json()["gradients"][0][1] is None


# Ratios, each computed by hand from the parts of the model


def block_ratios(model: Any, x: Tensor) -> list[Tensor]:
    ratios = []
    for block in model[:3]:
        f = block.gate.scale * block.branch(x)
        ratios.append(f.norm() / x.norm())
        x = x + f
    return ratios


def encoder_ratios(model: Any, x: Tensor) -> list[Tensor]:
    ratios = []
    for layer in model:
        y = layer.norm1(x)
        for f in (
            lambda y, layer=layer: layer._sa_block(y, None, None),
            lambda y, layer=layer: layer._ff_block(layer.norm2(y)),
        ):
            layer.rezero_weights[0].rezero_reading = layer.rezero_weights[1].rezero_reading = True
            branch = f(y)
            layer.rezero_weights[0].rezero_reading = layer.rezero_weights[1].rezero_reading = False
            ratios.append(branch.norm() / x.norm())
            x = x + branch
            y = x
    return ratios


def vit_ratios(model: Any, x: Tensor) -> list[Tensor]:
    x, ratios = model.patch_embed(x), []
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        for norm, branch in ((block.norm1, block.attn), (block.norm2, block.mlp)):
            f = branch(norm(x))
            ratios.append(f.norm() / x.norm())
            x = x + f
    return ratios


BY_HAND = {blocks: block_ratios, encoder: encoder_ratios, vit: vit_ratios}


@families
def test_ratios_are_those_of_the_recorded_pass(family: Family) -> None:
    """The norm of the gated branch over that of its skip, in the pass before the step, at open gates."""
    model, x = family()
    by_hand: list[Tensor] = []
    recorder = AlphaRecorder(model, every=2, ratios=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(4):
        by_hand.append(torch.stack(BY_HAND[family](model, x)).detach().double())
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        recorder.step()
    ratios = recorder.history.ratios
    assert ratios is not None
    torch.testing.assert_close(ratios, torch.stack(by_hand[1::2]), rtol=1e-4, atol=0)
    assert ratios.min() > 1e-4
    assert not torch.allclose(ratios[0], ratios[1], rtol=1e-3)


def test_a_shared_gate_appears_once() -> None:
    """The squares of its branches and of their skips are summed before they are divided."""
    layer = rezero.layers.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True, share="layer", init_value=0.5)
    with AlphaRecorder(layer, every=1, ratios=True) as recorder:
        layer(X_BTD).sum().backward()
        recorder.step()
    with torch.no_grad():
        first = 0.5 * layer.self_attn(X_BTD)
        middle = X_BTD + first
        second = layer(X_BTD) - middle
    branch, skip = (
        torch.stack([a.square().sum(), b.square().sum()]).sum() for a, b in ((first, second), (X_BTD, middle))
    )
    assert recorder.history.names == ("gates.0",)
    assert recorder.history.ratios is not None
    assert recorder.history.ratios.item() == pytest.approx((branch / skip).sqrt().item(), rel=1e-4)


class Parallel(nn.Module):
    """Two branches that are summed before they are added to the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.ga, self.gb = rezero.Gate(init_value=0.5), rezero.Gate(init_value=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * (self.ga(self.a(x)) + self.gb(self.b(x)))


def test_branches_that_are_summed_first_have_ratios_of_their_own() -> None:
    """With what scales their sum; a closed one has the ratio 0, also where all are closed."""
    model = Parallel()
    recorder = AlphaRecorder(model, every=1, ratios=True)
    for _ in range(2):
        model(X_BTD).sum().backward()
        recorder.step()
        model.ga.alpha.data.zero_()
    assert recorder.history.ratios is not None
    expected = model.a(X_BTD).detach().norm() / X_BTD.norm()
    torch.testing.assert_close(
        recorder.history.ratios, torch.tensor([[expected, 0], [0, 0]], dtype=torch.float64), rtol=1e-5, atol=0
    )


class Unusual(nn.Module):
    """A gate whose branch is not added by an addition of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = rezero.Gate(init_value=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.gate.scale, x.tanh())


def test_an_addition_that_is_not_seen_is_nan() -> None:
    """And no wrong number."""
    model = Unusual()
    with AlphaRecorder(model, every=1, ratios=True) as recorder:
        train(model, X_BTD, recorder.step, 2)
    assert recorder.history.ratios is not None
    assert recorder.history.ratios.isnan().all()


def test_numbers_that_overflow_are_no_trouble() -> None:
    """A training that diverges goes on being recorded."""
    model = nn.Sequential(rezero.ReZero(nn.Linear(4, 4)).double())
    model[0].gate.alpha.data.fill_(1e200)
    with AlphaRecorder(model, every=1, gradients=True, ratios=True) as recorder:
        model(torch.full((2, 4), 1e200, dtype=torch.float64)).sum().backward()
        recorder.step()
    assert recorder.history.ratios is not None
    assert not recorder.history.ratios.isfinite().any()


def test_only_passes_with_gradients_count() -> None:
    """An evaluation between two steps changes no ratio; a second pass with gradients does."""
    model, x = blocks()
    found = []
    for others in ([], [torch.no_grad], [torch.enable_grad]):
        with AlphaRecorder(model, every=1, ratios=True) as recorder:
            model(x).sum().backward()
            for mode in others:
                with mode():
                    model(3 * x.square())
            recorder.step()
        assert recorder.history.ratios is not None
        found.append(recorder.history.ratios)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
def test_activation_checkpointing(reentrant: bool) -> None:
    """The pass that a checkpoint runs again is not counted again, and the gradients are the same."""

    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for block in self:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    plain, x = blocks()
    model = Checkpointed(*copy.deepcopy(plain))
    x = x.clone().requires_grad_()
    histories = []
    for each in (plain, model):
        with AlphaRecorder(each, every=1, gradients=True, ratios=True) as recorder:
            train(each, x, recorder.step, 2)
            histories.append(recorder.history)
    assert same(*histories)


@pytest.mark.parametrize("fullgraph", [False, True], ids=["graph breaks", "fullgraph"])
def test_compiled_models(fullgraph: bool) -> None:
    """The compiled model has the names and numbers of the one in it; the one in it has no ratios, and no trouble."""
    plain, x = blocks()
    model = copy.deepcopy(plain)
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=fullgraph)
    inner = copy.deepcopy(plain)
    inner.compile(backend="aot_eager", fullgraph=fullgraph)
    histories = []
    for each in (model, compiled, inner):
        with AlphaRecorder(each, every=2, gradients=True, ratios=True) as recorder:
            train(each, x, recorder.step, 4)
            histories.append(recorder.history)
    ours, theirs, hidden = histories
    assert ours.names == theirs.names == hidden.names
    assert ours.ratios is not None
    torch.testing.assert_close(theirs.ratios, ours.ratios, rtol=1e-4, atol=0)
    torch.testing.assert_close(theirs.alphas, ours.alphas, rtol=1e-4, atol=1e-6)
    assert hidden.ratios is not None
    assert hidden.ratios.isnan().all()


@families
def test_the_model_is_left_as_it_was(family: Family) -> None:
    """It trains to the same numbers; its keys stay, it can be copied and pickled meanwhile, and no hook is left."""
    model, x = family()
    twin, keys = copy.deepcopy(model), list(model.state_dict())
    torch.manual_seed(0)
    train(twin, x, lambda: None, 4)
    recorder = AlphaRecorder(model, every=1, gradients=True, ratios=True)
    torch.manual_seed(0)
    train(model, x, recorder.step, 4)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own
        copied(x).sum().backward()
    recorder.close()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_a_pass_that_fails_is_no_trouble() -> None:
    """Whether it is an error or Ctrl-C, the next pass is watched as if nothing had been."""
    model, x = blocks()
    found = []
    for error in (None, ValueError, KeyboardInterrupt):
        with AlphaRecorder(model, every=1, ratios=True) as recorder:
            if error is not None:
                handle = model[3].register_forward_pre_hook(lambda *_, error=error: (_ for _ in ()).throw(error))
                with pytest.raises(error):
                    model(x)
                handle.remove()
                recorder.step()
            model(x).sum().backward()
            recorder.step()
        assert torch.overrides._get_current_function_mode_stack() == []
        assert recorder.history.ratios is not None
        found.append(recorder.history.ratios[-1])
    assert all(torch.equal(each, found[0]) for each in found)


# The file


def test_resumed_training_is_the_same_file(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint, twice, ends with the bytes of one that was never stopped."""

    def run(path: Path, first: int, last: int, start: dict[str, Any] | None) -> dict[str, Any]:
        model, x = blocks()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if start is not None:
            model.load_state_dict(start)
        saved = {}
        with AlphaRecorder(model, path, every=2, gradients=True, ratios=True) as recorder:
            for step in range(first, last + 1):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                recorder.step(step)
                saved[step] = copy.deepcopy(model.state_dict())
        return saved

    whole, pieces = tmp_path / "whole.jsonl", tmp_path / "pieces.jsonl"
    run(whole, 1, 12, None)
    saved = run(pieces, 1, 7, None)
    run(pieces, 6, 9, saved[5])  # from the checkpoint of step 5: 6 is recorded again
    with pytest.warns(UserWarning, match=r"steps 2 to 8, and this one begins anew: that one is kept as pieces.jsonl.1"):
        saved |= run(pieces, 2, 4, saved[1])  # from before the first record
    run(pieces, 5, 12, saved[4])
    assert pieces.read_bytes() == whole.read_bytes()
    assert AlphaHistory.read(whole).steps.tolist() == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "file"])
def test_an_earlier_step_drops_the_later_records(tmp_path: Path, on_disk: bool) -> None:
    """Also if it is not recorded itself; counting goes on from it."""
    path = tmp_path / "alphas.jsonl" if on_disk else None
    with AlphaRecorder(tiny(), path, every=2) as recorder:
        for _ in range(8):
            recorder.step()
        assert recorder.history.steps.tolist() == [2, 4, 6, 8]
        recorder.step(5)
        assert recorder.history.steps.tolist() == [2, 4]
        recorder.step()
        recorder.step(6)
        assert recorder.history.steps.tolist() == [2, 4, 6]
        recorder.step(0)
        assert recorder.history.steps.tolist() == [0]
    if path is not None:
        assert AlphaHistory.read(path).steps.tolist() == [0]


def test_a_run_that_begins_anew_keeps_the_file_of_the_one_before(tmp_path: Path) -> None:
    """The same path given to a second training, and to a third, loses no record of the first."""
    path = tmp_path / "alphas.jsonl"
    contents = []
    for number, steps in enumerate((9, 4, 5)):
        with AlphaRecorder(tiny(), path, every=1) as recorder:
            with (
                nullcontext() if number == 0 else pytest.warns(UserWarning, match=rf"is kept as alphas.jsonl.{number}$")
            ):
                recorder.step(1)
            for step in range(2, steps):
                recorder.step(step)
        contents.append(path.read_bytes())
    assert [(tmp_path / f"alphas.jsonl.{number}").read_bytes() for number in (1, 2)] == contents[:2]
    assert AlphaHistory.read(path).steps.tolist() == [1, 2, 3, 4]


def test_counting_goes_on_with_the_file(tmp_path: Path) -> None:
    """From its last record."""
    for _ in range(3):
        with AlphaRecorder(tiny(), tmp_path / "alphas.jsonl", every=2) as recorder:
            for _ in range(5):
                recorder.step()
    assert recorder.history.steps.tolist() == [2, 4, 6, 8, 10, 12]


# Records as fast as it can, each step announced before and after.
FAST = """
import sys, torch, rezero
from torch import nn
from rezero.diagnose import AlphaRecorder
model = nn.Sequential(*(rezero.ReZero(nn.Linear(4, 4)) for _ in range(3)))
recorder = AlphaRecorder(model, sys.argv[1], every=3)
start = recorder.history.steps[-1].item() if len(recorder.history.steps) else 0
for step in range(start + 1, 10**9):
    for gate in rezero.gates(model).values():
        gate.gate_parameter.data.fill_(step)
    recorder.step(step)
    sys.stdout.buffer.write(b"%d\\n" % step)
    sys.stdout.buffer.flush()
"""


def start_process(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    source = str(Path(rezero.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_kills_at_random_moments_lose_at_most_the_last_steps(tmp_path: Path) -> None:
    """After kill -9 the file holds every record but those of the last steps, whole, and the same call goes on."""
    path, chance = tmp_path / "alphas.jsonl", random.Random(0)
    last = 0
    for _ in range(3):
        process = start_process(FAST, str(path))
        assert process.stdout is not None
        first = int(process.stdout.readline())  # the lock that the killed one left is no hindrance
        assert first == last + 1
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        rest, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = int(rest.split(b"\n")[-2]) if b"\n" in rest else first
        history = AlphaHistory.read(path)
        last = int(history.steps[-1])
        assert last > done - 3
        assert history.steps.tolist() == list(range(3, last + 1, 3))
        assert torch.equal(history.alphas, history.steps.double()[:, None].expand(-1, 3))
    with AlphaRecorder(tiny(), path, every=3) as recorder:
        recorder.step(last + 3)
    assert AlphaHistory.read(path).steps[-1] == last + 3


def test_a_torn_line_is_dropped_and_mended(tmp_path: Path) -> None:
    """Wherever the file ends within its last line, or within its first, it is read without it and goes on whole."""
    path = tmp_path / "alphas.jsonl"

    def record(last: int) -> bytes:
        with AlphaRecorder(tiny(), path, every=1) as recorder:
            for step in range(len(recorder.history.steps) + 1, last + 1):
                recorder.step(step)
        return path.read_bytes()

    two = record(2)
    three = record(3)
    for cut in range(len(two) + 1, len(three), 7):
        path.write_bytes(three[:cut])
        assert AlphaHistory.read(path).steps.tolist() == [1, 2]
        assert record(3) == three
    for cut in range(0, three.index(b"\n"), 7):
        path.write_bytes(three[:cut])
        with pytest.raises(UsageError, match="is no record of gates"):
            AlphaHistory.read(path)
        assert record(3) == three


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """A gate that overflowed is read as nan, and the file is JSON for other readers too."""
    model = tiny()
    rezero.gates(model)["1.gate"].gate_parameter.data.fill_(math.inf)
    with AlphaRecorder(model, tmp_path / "alphas.jsonl", every=1) as recorder:
        recorder.step()
    lines = (tmp_path / "alphas.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {"step": 1, "alpha": [0.0, None, 0.0]}
    assert AlphaHistory.read(tmp_path / "alphas.jsonl").alphas.isnan().tolist() == [[False, True, False]]


def test_a_second_recorder_in_this_process(tmp_path: Path) -> None:
    """Is refused, by whatever name it calls the file, until the first is closed; that one is undisturbed."""
    path, other = tmp_path / "alphas.jsonl", tmp_path / "link.jsonl"
    other.symlink_to(path)
    with AlphaRecorder(tiny(), path, every=1) as recorder:
        recorder.step()
        for name in (path, other):
            with pytest.raises(UsageError, match="another recorder writes to"):
                AlphaRecorder(tiny(), name)
        recorder.step()
    AlphaRecorder(tiny(), other).close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["alphas.jsonl", "link.jsonl"]
    assert AlphaHistory.read(path).steps.tolist() == [1, 2]


def test_a_second_recorder_in_another_process(tmp_path: Path) -> None:
    """Is refused while the first runs; once it is killed, the lock that it left does not block."""
    path = tmp_path / "alphas.jsonl"
    process = start_process(FAST, str(path))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(UsageError, match=r"another recorder writes to .*alphas\.jsonl: close it"):
            AlphaRecorder(tiny(), path)
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "alphas.jsonl.lock").exists()
    AlphaRecorder(tiny(), path).close()


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    """One line says so, the file stays whole, and recording goes on once there is room."""
    path = tmp_path / "alphas.jsonl"
    with AlphaRecorder(tiny(), path, every=1) as recorder:
        recorder.step()
        before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(UsageError, match=r"cannot write to .*alphas.jsonl .*the 1 records before are kept"):
                recorder.step()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        recorder.step()
    assert AlphaHistory.read(path).steps.tolist() == [1, 3]


# Bad input


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda path: AlphaRecorder("model", path), TypeError, r"model must be an nn\.Module: got str"),
        (lambda path: AlphaRecorder(nn.Linear(4, 4), path), UsageError, "the model has no gates: put some in"),
        (lambda path: AlphaRecorder(tiny(), path, every=0), ValueError, "every must be a whole number .* got 0"),
        (lambda path: AlphaRecorder(tiny(), path, every=1.5), ValueError, "every must be a whole number .* got 1.5"),
        (lambda path: AlphaRecorder(tiny().to("meta"), path), UsageError, "'0.gate' has no numbers, it is on the meta"),
        (lambda path: AlphaHistory.read(path), UsageError, "cannot read .*alphas.jsonl"),
        (lambda path: AlphaRecorder(tiny(), path.parent), UsageError, "expected a file .* got something else"),
        (lambda _: AlphaRecorder(tiny(), "/proc/alphas.jsonl"), UsageError, "cannot write to /proc/alphas.jsonl"),
    ],
    ids=["no module", "no gates", "every 0", "every 1.5", "meta", "no file", "folder", "unwritable"],
)
def test_bad_input(tmp_path: Path, call: Any, kind: Any, message: str) -> None:
    """One clear line each, before anything is written."""
    with pytest.raises(kind, match=message):
        call(tmp_path / "alphas.jsonl")
    assert list(tmp_path.iterdir()) == []


HEADER = '{"format": "rezero alphas", "version": %s, "every": 1, "gates": {"0.gate": 1, "1.gate": 1, "2.gate": 1}}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\n", "is no record of gates, which AlphaRecorder writes"),
        ('{"format": "rezero alphas"}\n', "is no record of gates"),
        ("{}", "is no record of gates"),
        ("\x80\x04\n", "is no record of gates"),
        (HEADER % 2, "has version 2 of its format, expected 1: use the rezero it is from"),
        (HEADER % 1 + '{"step": 1}\n', r"is damaged in line 2 \(.*\): choose another file"),
        (HEADER % 1 + '{"step": 1, "alpha": [0]}\n', r"is damaged in line 2 \(expected 3 numbers of each kind\)"),
        (HEADER % 1 + 2 * '{"step": 1, "alpha": [0, 0, 0]}\n', r"is damaged in line 3 \(step 1 comes after 1\)"),
        (HEADER % 1 + 'x\n{"step": 1, "alpha": [0, 0, 0]}\n', "is damaged in line 2"),
    ],
    ids=["text", "half a header", "other", "bytes", "version", "no alpha", "too few", "twice", "no json"],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: str, message: str) -> None:
    """Is refused by the recorder and the reader, and left as it is."""
    path = tmp_path / "alphas.jsonl"
    path.write_text(content, encoding="latin-1")
    for use in (AlphaHistory.read, lambda path: AlphaRecorder(tiny(), path)):
        with pytest.raises(UsageError, match=message):
            use(path)
    assert path.read_text(encoding="latin-1") == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny(2), r"it has 3 gates, this one 2, and the first that differs is '2.gate' there and none here"),
        (lambda: nn.Sequential(nn.ReLU(), *tiny()), r"has 3 gates, this one 3, .* '0.gate' there and '1.gate' here"),
        (
            lambda: nn.Sequential(rezero.ReZero(nn.Linear(4, 4), gate=rezero.Gate(4)), *tiny(2)),
            r"differs is '0.gate' there and '0.gate' \(4 numbers\) here",
        ),
    ],
    ids=["fewer", "other names", "other sizes"],
)
def test_the_record_of_another_model(tmp_path: Path, other: Any, message: str) -> None:
    """Is refused, and says where the two differ."""
    path = tmp_path / "alphas.jsonl"
    AlphaRecorder(tiny(), path).close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match=message):
        AlphaRecorder(other(), path)
    assert path.read_bytes() == before


def test_a_closed_recorder_can_be_read() -> None:
    """And not written to."""
    recorder = AlphaRecorder(tiny(), every=1)
    assert recorder.latest == {}
    assert recorder.history.alphas.shape == (0, 3)
    recorder.step()
    recorder.close()
    recorder.close()
    assert recorder.latest == {"0.gate": 0.0, "1.gate": 0.0, "2.gate": 0.0}
    with pytest.raises(UsageError, match="the recorder is closed: make a new one"):
        recorder.step()
    with pytest.raises(ValueError, match="step must be 0 or more: got -1"):
        AlphaRecorder(tiny()).step(-1)


def test_a_step_number_that_no_history_could_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    """The file can still be read."""
    with AlphaRecorder(blocks()[0], tmp_path / "a.jsonl", every=1) as recorder:
        recorder.step(2**63 - 1)
        with pytest.raises(ValueError, match="step must fit into 64 bits: got 9223372036854775808"):
            recorder.step(2**63)
    assert AlphaHistory.read(tmp_path / "a.jsonl").steps.tolist() == [2**63 - 1]


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    """As for ``every`` so for ``step``."""
    recorder = AlphaRecorder(blocks()[0], every=np.int64(2))
    recorder.step(np.int64(4))
    assert recorder.history.steps.tolist() == [4]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (Path.unlink, "deleted"),
        (lambda path: os.truncate(path, 5), "changed"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "changed"),
    ],
    ids=["deleted", "cut", "grown"],
)
def test_a_file_that_others_change_is_not_written_to(tmp_path: Path, change: Any, what: str) -> None:
    """The next record says so, rather than being lost or making the file unreadable; the history is whole."""
    path = tmp_path / "a.jsonl"
    with AlphaRecorder(blocks()[0], path, every=1) as recorder:
        recorder.step()
        change(path)
        left = path.read_bytes() if path.exists() else None
        with pytest.raises(UsageError, match=f"was {what} by something else since the last record; the 1 records"):
            recorder.step()
        with pytest.raises(UsageError, match=f"was {what} by something else"):
            recorder.step(1)
        assert recorder.history.steps.tolist() == [1]
    assert left == (path.read_bytes() if path.exists() else None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"step": 1', b'"step": 1.5'),
        (b'"step": 1', b'"step": -1'),
        (b'"step": 1', b'"step": ' + b"9" * 30),
        (b"0.5", b"9" * 400),
        (b"[0.5", b"[" * 100_000),
    ],
    ids=["half step", "negative step", "large step", "large number", "deep"],
)
def test_a_damaged_number_is_told(tmp_path: Path, old: bytes, new: bytes) -> None:
    """With its line, whether the file is read or gone on with."""
    path = tmp_path / "a.jsonl"
    with AlphaRecorder(blocks()[0], path, every=1) as recorder:
        recorder.step()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(UsageError, match="damaged in line 2"):
        AlphaHistory.read(path)
    with pytest.raises(UsageError, match="damaged in line 2"):
        AlphaRecorder(blocks()[0], path, every=1)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    """Links in a circle and names with a zero are refused in one line."""
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for path in (tmp_path / "one", tmp_path / "a\0b"):
        with pytest.raises(UsageError, match="cannot write to"):
            AlphaRecorder(blocks()[0], path)
        with pytest.raises(UsageError, match="cannot read"):
            AlphaHistory.read(path)


def test_a_gate_of_another_shape_is_noticed() -> None:
    """Rather than its numbers being taken for those of the gates behind it."""
    model = nn.Sequential(*(rezero.ReZero(nn.Linear(4, 4)) for _ in range(3)))
    recorder = AlphaRecorder(model, every=1)
    recorder.step()
    model[0].gate.alpha = nn.Parameter(torch.ones(4))
    with pytest.raises(UsageError, match="had 3 numbers when the recorder was made, and have 6 now"):
        recorder.step()
    assert recorder.history.steps.tolist() == [1]


@pytest.mark.parametrize("copies", [copy.deepcopy, pickle.dumps], ids=["copy", "pickle"])
def test_a_recorder_with_a_file_or_ratios_is_not_copied(tmp_path: Path, copies: Any) -> None:
    """It says what can be; one in memory can."""
    model = blocks()[0]
    with AlphaRecorder(model, tmp_path / "a.jsonl") as filed, AlphaRecorder(model, ratios=True) as watching:
        for recorder in (filed, watching):
            with pytest.raises(TypeError, match="copy its history"):
                copies(recorder)
    copies(AlphaRecorder(model))
