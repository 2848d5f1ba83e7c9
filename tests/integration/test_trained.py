"""Models of transformers that were converted, trained on real text, saved, loaded, and continue a text."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import rezero
from rezero.data.locate import data_folders
from rezero.data.text import TextData, load_tiny_shakespeare, split_text
from tests.integration.answers import NEW_TOKENS, PROMPT, answers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trained")]  # one worker trains the models, once

CONTEXT, BATCH, STEPS, RATE = 64, 8, 200, 1e-2


def real_text() -> TextData:
    """Return Tiny Shakespeare where it lies, or the language reference that comes with Python."""
    if any((folder / "tinyshakespeare/input.txt").is_file() for folder in data_folders()):
        return load_tiny_shakespeare(CONTEXT)
    return split_text("python-topics", "\n".join(topics.values()).encode(), CONTEXT)


TEXT = real_text()
MODELS, NORMS = ("gpt2", "llama"), ("keep", "remove")
DTYPES = {"float32": (torch.float32, 1e-6), "float64": (torch.float64, 1e-12)}

every_model = pytest.mark.parametrize("name", MODELS, ids=[f"{name}-{TEXT.name}" for name in MODELS])
norms_too = pytest.mark.parametrize("norms", NORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        tiny = {"n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=256, **tiny))
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=256, num_key_value_heads=2, max_position_embeddings=128, **tiny)
    return transformers.LlamaForCausalLM(config)


def convert(name: str, norms: str) -> Any:
    model = build(name)
    rezero.convert_(model, kwargs={"input_ids": PROMPT, "use_cache": False}, norms=norms)
    return model


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(rezero.param_groups(model, lr=RATE, weight_decay=0.01, alpha_lr=RATE))


def loss_of(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    model.train()
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, *TEXT.batch(0, step, BATCH))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def validation_loss(model: Any) -> float:
    """Return the mean over the first 256 windows of the validation part (nats a byte)."""
    with torch.no_grad():
        return sum(loss_of(model.eval(), *TEXT.val_batch(index, 32)).item() for index in range(8)) / 8


@dataclass(frozen=True)
class Trained:
    """A trained model, in evaluation mode, and its training."""

    model: Any
    optimizer: torch.optim.Optimizer
    losses: list[float]
    end: float

    def to(self, dtype: torch.dtype) -> Any:
        """Return a copy of the model in a precision."""
        return copy.deepcopy(self.model).to(dtype)


@cache
def trained(name: str, norms: str | None) -> Trained:
    """Train a model, or with ``norms`` None an unconverted one, once for all tests, which must not change it."""
    model = build(name) if norms is None else convert(name, norms)
    optimizer = optimizer_of(model)
    torch.manual_seed(1)
    losses = train(model, optimizer, range(STEPS))
    return Trained(model, optimizer, losses, validation_loss(model))


# Training


@every_model
@norms_too
def test_the_loss_falls_below_what_single_bytes_tell(name: str, norms: str) -> None:
    """From guessing, ln 256 nats a byte, the loss falls 0.3 below the entropy of the text's bytes one by one."""
    losses = trained(name, norms).losses
    share = TEXT.train.bincount() / len(TEXT.train)
    entropy = torch.special.entr(share).sum().item()
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert sum(losses[-20:]) / 20 < entropy - 0.3


@every_model
@norms_too
def test_every_gate_has_moved_in_its_own_group(name: str, norms: str) -> None:
    """Every gate is open, none was decayed, and closing them costs 0.02 nats a byte or more."""
    run = trained(name, norms)
    gates = [gate.gate_parameter for gate in rezero.gates(run.model).values()]
    [group] = [group for group in run.optimizer.param_groups if group["name"] == "gates"]
    assert [id(each) for each in group["params"]] == [id(each) for each in gates]
    assert (len(gates), group["lr"], group["weight_decay"]) == (4, RATE, 0.0)
    assert all(gate.item() != 0 for gate in gates)
    closed = run.to(torch.float32)
    for gate in rezero.gates(closed).values():
        torch.nn.init.zeros_(gate.gate_parameter)
    print(f"{name}, norms {norms}: {run.end:.3f}, with closed gates {validation_loss(closed):.3f}")
    assert validation_loss(closed) > run.end + 0.02


# Ends on Tiny Shakespeare (nats a byte, means of seeds 0 to 2 of weights and batches) at rates 0.001, 0.003, 0.01:
#   GPT-2                    2.62 2.81 3.08     Llama                    2.39 2.30 2.59
#     alpha at the rate      3.00 2.70 2.62       alpha at the rate      2.41 2.26 2.32
#     at 3 times the rate    2.91 2.73 2.91       at 3 times the rate    2.39 2.28 2.31
#     no norms, the rate     3.04 2.74 2.62       no norms, the rate     2.56 2.52 2.30
#     no norms, 3 times      3.01 2.73 2.63       no norms, 3 times      2.57 2.52 2.32
# So with ReZero a low rate ends behind and a high one ahead. The default, 3 times the rate, is no worse but for GPT-2
# at 0.01, where two of the three seeds lose ground: 2.65, 2.94 and 3.14. These tests train alpha at the rate itself.
@every_model
def test_at_a_high_rate_it_ends_ahead_of_the_unconverted_model(name: str) -> None:
    """At a rate of 0.01 the converted models end 0.1 nats a byte or more below the original."""
    ends = {norms: trained(name, norms).end for norms in (None, *NORMS)}
    print(f"{name} on {TEXT.name}: {ends}")
    assert all(ends[norms] < ends[None] - 0.1 for norms in NORMS)


@every_model
def test_generating_between_steps_changes_nothing(name: str) -> None:
    """A training that stops to write text ends bitwise as one that does not."""
    ends = []
    for writes in (False, True):
        model = convert(name, "keep")
        optimizer = optimizer_of(model)
        torch.manual_seed(1)
        for step in range(8):
            train(model, optimizer, range(step, step + 1))
            if writes and step % 4 == 3:
                model.eval().generate(PROMPT, max_new_tokens=4, do_sample=False, pad_token_id=0)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


# Saving, loading, and going on with a text


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save every model, gated and folded, in both precisions, and let a process of its own load them."""
    root = tmp_path_factory.mktemp("trained")
    for name, norms, (dtype, (number, _)) in product(MODELS, NORMS, DTYPES.items()):
        model = trained(name, norms).to(number)
        model.save_pretrained(root / "converted" / f"{name} {norms} {dtype}")
        assert not rezero.fold_(model).left
        model.save_pretrained(root / ("plain" if norms == "keep" else "converted") / f"{name} {norms} {dtype} folded")
    command = [sys.executable, "-m", "tests.integration.answers", str(root / "plain"), str(root / "converted")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=240)
    return root


@cache
def expected(name: str, norms: str, dtype: str) -> dict[str, Tensor]:
    """Return what a trained and gated model says in a precision."""
    return answers(trained(name, norms).to(DTYPES[dtype][0]))


def check_text(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for way in ("greedy", "beams", "no cache"):
        assert got[way].shape == (1, PROMPT.shape[1] + NEW_TOKENS)
        assert torch.equal(got[way], wanted[way]), way
    assert torch.equal(got["greedy"], got["no cache"])


def check_logits(got: Tensor, wanted: Tensor, dtype: str) -> None:
    assert got.dtype == wanted.dtype == DTYPES[dtype][0]
    error = (got - wanted).abs().max() / wanted.abs().max()
    print(f"{dtype}: {error:.1e}")
    assert error <= DTYPES[dtype][1]


@every_model
@every_dtype
def test_plain_transformers_loads_the_folded_model(name: str, dtype: str, folders: Path) -> None:
    """Without rezero, with no key too many or too few; the logits are equal to rounding, the text is the same."""
    folder = folders / "plain" / f"{name} keep {dtype} folded"
    keys = json.loads((folder / "keys.json").read_text())
    assert (keys["missing_keys"], keys["unexpected_keys"], keys["mismatched_keys"]) == ([], [], [])
    got, wanted = load_file(folder / "answers.safetensors"), expected(name, "keep", dtype)
    check_logits(got["logits"], wanted["logits"], dtype)
    check_text(got, wanted)


@every_model
@norms_too
@every_dtype
def test_rezero_loads_the_gated_model(name: str, norms: str, dtype: str, folders: Path) -> None:
    """In another process rezero.from_pretrained gives the very logits and the same text."""
    got = load_file(folders / "converted" / f"{name} {norms} {dtype}/answers.safetensors")
    wanted = expected(name, norms, dtype)
    assert torch.equal(got["logits"], wanted["logits"])
    check_text(got, wanted)


@every_model
@every_dtype
def test_rezero_loads_the_folded_model_without_norms(name: str, dtype: str, folders: Path) -> None:
    """Where norms are removed a folded model is still rebuilt, and says what the gated one says."""
    got = load_file(folders / "converted" / f"{name} remove {dtype} folded/answers.safetensors")
    wanted = expected(name, "remove", dtype)
    check_logits(got["logits"], wanted["logits"], dtype)
    check_text(got, wanted)


# Hugging Face's Trainer


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The first windows of the training text, as Trainer takes them."""

    def __len__(self) -> int:
        return 20 * BATCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = TEXT.train[index * CONTEXT : (index + 1) * CONTEXT].long()
        return {"input_ids": tokens, "labels": tokens}


def trainer_of(model: Any, folder: Path) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=20,
        save_steps=10,
        per_device_train_batch_size=BATCH,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(model, arguments, train_dataset=Windows(), optimizers=(optimizer_of(model), None))


@every_model
def test_trainer_saves_and_resumes(name: str, tmp_path: Path) -> None:
    """Hugging Face's Trainer resumes a converted model at its checkpoint, and ends bitwise as without the break."""
    model, resumed = convert(name, "remove"), convert(name, "remove")
    assert trainer_of(model, tmp_path).train().global_step == 20
    assert all(gate.gate_parameter.item() != 0 for gate in rezero.gates(model).values())
    trainer_of(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    loaded = rezero.from_pretrained(tmp_path / "checkpoint-20")
    with torch.no_grad():
        assert torch.equal(loaded(PROMPT).logits, model.eval()(PROMPT).logits)
