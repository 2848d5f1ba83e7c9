"""Blocks put into twenty architectures, and layers added to them: from exactly where the model stands."""

import copy
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rezero
from rezero.layers import GatedCrossAttention
from tests.integration.architectures import ARCHITECTURES, LENGTH, Architecture

MEDIA = 12
WRITERS = {name: each for name, each in ARCHITECTURES.items() if each.generates}
CACHED = {name: each for name, each in WRITERS.items() if name not in ("mamba", "t5", "whisper")}
VARIED = ("gpt2", "bert", "t5", "mamba", "convnext", "torch-decoder")  # that differ in what their layers return
NO_BRANCHES = {"bert", "torch-decoder"}  # layers that end in a norm
UNFOLDED = {"falcon", "gemma2"}  # a linear map and a norm of their own kind

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*max_new_tokens.*"),
    pytest.mark.filterwarnings("ignore:.*generation_config.*"),
]


def build(architecture: Architecture) -> Any:
    """Make the model, with weights large enough that its layers matter."""
    torch.manual_seed(0)
    model = architecture.build().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=0.15)
    return model


def block(width: int) -> nn.Module:
    """Make the block of a layer."""
    return GatedCrossAttention(width, MEDIA, num_heads=2, ff_mult=1)


def pointwise(width: int) -> nn.Module:
    """Make the block of a layer of images."""
    return rezero.ReZero(nn.Conv2d(width, width, 1))


def graft(name: str, model: Any, **options: Any) -> rezero.Graft:
    """Put blocks into a model, tried on its inputs."""
    made = pointwise if name == "convnext" else block
    architecture = ARCHITECTURES[name]
    return rezero.graft_(model, made, architecture.at, every=2, example=architecture.inputs(), **options)


def conditioned(name: str, made: rezero.Graft) -> AbstractContextManager[Any]:
    """Give the blocks something to look at."""
    if name == "convnext":
        return torch.enable_grad()
    return made.condition(torch.randn(2, 3, MEDIA, generator=torch.Generator().manual_seed(3)))


def output(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return logits or features."""
    out = model(**inputs)
    tensor: Tensor = out if isinstance(out, Tensor) else next(iter(out.values()))
    return tensor


def frozen_output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return what a model gives when none of its weights learns: torch rounds some of its products otherwise then."""
    with torch.no_grad():
        return output(copy.deepcopy(model).requires_grad_(requires_grad=False), inputs)


def written(model: Any, inputs: dict[str, Any], beams: int) -> Tensor:
    """Return what a model writes."""
    given = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    text: Tensor = model.generate(**given, max_new_tokens=6, num_beams=beams, do_sample=False)
    return text


def opened(model: nn.Module) -> None:
    """Open all gates."""
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.3)


@pytest.mark.parametrize(
    ("name", "position"),
    [*((name, "before") for name in ARCHITECTURES), *product(VARIED, ("after", "parallel"))],
)
def test_a_graft_starts_from_the_model_and_gives_it_back(name: str, position: Any) -> None:
    """Outputs are those of the frozen base model bitwise; disabled or removed, open blocks leave it, with its keys."""
    model, inputs = build(ARCHITECTURES[name]), ARCHITECTURES[name].inputs()
    keys = list(model.state_dict())
    frozen = frozen_output(model, inputs)
    with torch.no_grad():
        expected = output(model, inputs)
        torch.testing.assert_close(frozen, expected)
        made = graft(name, model, position=position)
        with conditioned(name, made), torch.no_grad():
            assert torch.equal(output(model, inputs), frozen)
        opened(model)
        with conditioned(name, made), torch.no_grad():
            assert not torch.equal(output(model, inputs), frozen)
            with made.disable():
                assert torch.equal(output(model, inputs), frozen)
        assert [key for key in model.state_dict() if ".graft." not in key] == keys
        made.remove()
        assert torch.equal(output(model, inputs), expected)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_moves_gates_only_and_the_graft_is_saved_alone(name: str, tmp_path: Path) -> None:
    """After 20 steps the base is untouched bitwise and every gate has moved; the saved graft gives the same output."""
    model, inputs = build(ARCHITECTURES[name]), ARCHITECTURES[name].inputs()
    base = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    made = graft(name, model)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        with conditioned(name, made):
            output(model, inputs).square().mean().backward()
        optimizer.step()
    model.eval()
    buffers = {key for key, _ in model.named_buffers()}
    changed = [key for key, value in before.items() if not torch.equal(model.state_dict()[key], value)]
    assert set(changed) <= buffers  # the statistics of batch norms, where there are any
    gates = rezero.gates(model)
    assert len(gates) == len(made.sites) * (1 if name == "convnext" else 2)
    assert all(gate.gate_parameter.item() for gate in gates.values())
    size = made.save(tmp_path)
    assert load_file(tmp_path / "graft.safetensors").keys() == made.state_dict().keys()
    recipe = (tmp_path / "graft.json").stat().st_size
    assert size < 4 * sum(parameter.numel() for parameter in made.parameters()) + recipe + 4000
    loaded = rezero.load_graft_(base, tmp_path, block=pointwise if name == "convnext" else None)
    with conditioned(name, made), conditioned(name, loaded), torch.no_grad():
        assert torch.equal(output(base, inputs), output(model, inputs))


@pytest.mark.parametrize("name", WRITERS)
def test_a_graft_writes_what_the_model_wrote(name: str) -> None:
    """Greedy and by beams, with closed gates; with open ones beams of one row are those of a batch of it alone."""
    model, inputs = build(WRITERS[name]), WRITERS[name].inputs()
    expected = {beams: written(model, inputs, beams) for beams in (1, 3)}
    made = graft(name, model)
    with conditioned(name, made):
        for beams, text in expected.items():
            assert torch.equal(written(model, inputs, beams), text)
    opened(model)
    media = torch.randn(2, 3, MEDIA, generator=torch.Generator().manual_seed(3))
    first = {key: value[:1] for key, value in inputs.items()}
    with made.condition(media):
        both = written(model, inputs, 3)
    with made.condition(media[:1]):
        alone = written(model, first, 3)
    assert torch.equal(both[:1], alone)


@pytest.mark.parametrize("grown", [False, True], ids=["grafted", "grown"])
@pytest.mark.parametrize("name", CACHED)
def test_logits_with_a_cache_are_those_without(name: str, *, grown: bool) -> None:
    """With open gates, and a mask whose rows follow the positions, to rounding."""
    model, ids = build(CACHED[name]), CACHED[name].inputs()["input_ids"]
    mask = torch.rand(2, LENGTH, 3, generator=torch.Generator().manual_seed(4)) < 0.5
    media = torch.randn(2, 3, MEDIA)
    if grown:
        rezero.grow_(model)
        held: Any = torch.no_grad()
    else:
        held = graft(name, model).condition(media, mask)
    opened(model)
    with held, torch.no_grad():
        whole = model(ids, use_cache=False).logits
        start = model(ids[:, :4], use_cache=True)
        rest = [start.logits]
        cache = start.past_key_values
        for place in range(4, LENGTH):
            step = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            rest.append(step.logits)
    torch.testing.assert_close(torch.cat(rest, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_grown_model_starts_from_the_shallow_one(name: str, tmp_path: Path) -> None:
    """Outputs and texts are equal; all that is new learns; folded, it comes back through from_pretrained."""
    architecture = ARCHITECTURES[name]
    model, inputs = build(architecture), architecture.inputs()
    texts = {beams: written(model, inputs, beams) for beams in (1, 3) if architecture.generates}
    frozen = frozen_output(model, inputs)
    growth = rezero.grow_(model, at=architecture.at, train="new", example=inputs)
    assert growth.gated == ("layers" if name in NO_BRANCHES else "branches")
    with torch.no_grad():
        assert torch.equal(output(model, inputs), frozen)
    for beams, text in texts.items():
        assert torch.equal(written(model, inputs, beams), text)
    old = {key: value.clone() for key, value in model.state_dict().items() if not _is_new(key, growth)}
    optimizer = torch.optim.AdamW(growth.parameters(), lr=0.01)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        output(model, inputs).square().mean().backward()
        optimizer.step()
    model.eval()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in old.items())
    assert all(model.get_parameter(gate).item() for gate in growth.gates)
    if name in NO_BRANCHES | UNFOLDED or not hasattr(model, "save_pretrained"):
        return
    with torch.no_grad():
        trained = output(model, inputs)
    assert not rezero.fold_(model).left
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(output(again, inputs), trained, atol=1e-4, rtol=1e-4)


def _is_new(key: str, growth: rezero.Growth) -> bool:
    return key.startswith(tuple(f"{layer}." for layer in growth.layers))
