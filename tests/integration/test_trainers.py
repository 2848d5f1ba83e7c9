"""Alphas recorded and logged by the Trainer of transformers and by Lightning, in real trainings of tiny models."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rezero
from rezero.diagnose import AlphaHistory
from rezero.errors import UsageError
from rezero.integrations import lightning as for_lightning
from rezero.integrations import transformers as for_transformers

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # Lightning's
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

STEPS, EVERY = 6, 2


@pytest.fixture(autouse=True)
def _leaves_no_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# The Trainer of transformers


def plain_gpt2() -> Any:
    torch.manual_seed(0)
    tiny = {"n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, **tiny))


@cache
def converted_gpt2() -> Any:
    model = plain_gpt2()
    rezero.convert_(model, kwargs={"input_ids": torch.arange(8)[None], "use_cache": False})
    return model


def gpt2() -> Any:
    return copy.deepcopy(converted_gpt2())


class Witness(transformers.TrainerCallback):
    """Reads the gates itself after every optimizer step."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.seen[state.global_step] = [gate.gate_scale.item() for gate in rezero.gates(model).values()]


class Breaks(transformers.TrainerCallback):
    """Cuts a training off."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError


def trainer_of(model: nn.Module, folder: Path, **arguments: Any) -> Any:
    texts = [{"input_ids": row, "labels": row} for row in torch.randint(32, (64, 8))]
    given = {"max_steps": STEPS, "learning_rate": 0.01, "per_device_train_batch_size": 2, "use_cpu": True}
    given |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 3}
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **(given | arguments)),
        train_dataset=texts,
        callbacks=[Witness()],
    )


def witness_of(trainer: Any) -> Witness:
    (witness,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, Witness))
    return witness


def logged_by(trainer: Any) -> dict[int, dict[str, float]]:
    """Return what the Trainer logged of the gates, by its step."""
    return {entry["step"]: entry for entry in trainer.state.log_history if "rezero/max_abs_alpha" in entry}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trainer_logs_the_gates_of_the_step(tmp_path: Path, accumulated: int) -> None:
    """Every second optimizer step, accumulated or not, is recorded and logged with the values that the gates have."""
    trainer = trainer_of(gpt2(), tmp_path, gradient_accumulation_steps=accumulated)
    callback = for_transformers.AlphaCallback(trainer, every=EVERY, max_gates=99)
    trainer.add_callback(callback)
    trainer.train()
    seen, logged, history = witness_of(trainer).seen, logged_by(trainer), callback.recorder.history
    assert list(logged) == [2, 4, 6]
    assert history.steps.tolist() == [0, 2, 4, 6]
    for step, entry in logged.items():
        assert [entry[f"rezero_alpha/{name}"] for name in history.names] == seen[step]
        assert entry["rezero/max_abs_alpha"] == max(map(abs, seen[step])) > 0
    assert history.alphas[1:].tolist() == [seen[step] for step in logged]
    assert history.alphas[0].tolist() == [0.0] * len(history.names)


def test_the_trainer_still_logs_its_loss(tmp_path: Path) -> None:
    """A step that logs both keeps the entry of the loss, and the summary alone is logged of the gates."""
    trainer = trainer_of(gpt2(), tmp_path, logging_steps=1)
    trainer.add_callback(for_transformers.AlphaCallback(trainer, every=1))
    trainer.train()
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == list(logged_by(trainer)) == list(range(1, STEPS + 1))
    assert not any(name.startswith("rezero_alpha") for name in logged_by(trainer)[1])


def test_the_trainer_reports_the_gates(tmp_path: Path) -> None:
    """TensorBoard, named by report_to, holds what is in the log history, as the Trainer names it."""
    trainer = trainer_of(gpt2(), tmp_path, report_to="tensorboard")
    trainer.add_callback(for_transformers.AlphaCallback(trainer, every=EVERY))
    trainer.train()
    (file,) = tmp_path.glob("runs/*/events.*")
    read = EventAccumulator(str(file))
    read.Reload()
    largest = {event.step: event.value for event in read.Scalars("train/rezero/max_abs_alpha")}
    assert largest == {step: entry["rezero/max_abs_alpha"] for step, entry in logged_by(trainer).items()}


def test_the_trainer_trains_as_without(tmp_path: Path) -> None:
    """Weights after a training with the callback are those of one without it, bit for bit."""
    models = [gpt2(), gpt2()]
    for model, recorded in zip(models, (False, True), strict=True):
        torch.manual_seed(1)
        trainer = trainer_of(model, tmp_path)
        if recorded:
            trainer.add_callback(for_transformers.AlphaCallback(trainer, every=1))
        trainer.train()
    pairs = zip(*(model.state_dict().values() for model in models), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not list(tmp_path.glob("*alpha*"))


def test_the_trainers_file_goes_on_where_a_training_is_resumed(tmp_path: Path) -> None:
    """A training that is resumed from an earlier checkpoint drops the records after it and ends with all of them."""
    file, witnesses = tmp_path / "alphas.jsonl", []
    for stop, resumed in ((5, None), (STEPS, tmp_path / "checkpoint-4")):
        trainer = trainer_of(gpt2(), tmp_path, save_strategy="steps", save_steps=4, max_steps=stop)
        trainer.add_callback(for_transformers.AlphaCallback(trainer, file, every=1))
        trainer.train(resume_from_checkpoint=resumed and str(resumed))
        witnesses.append(witness_of(trainer).seen)
    assert list(witnesses[1]) == [5, 6]
    history = AlphaHistory.read(file)
    assert history.steps.tolist() == list(range(STEPS + 1))
    seen = witnesses[0] | witnesses[1]
    assert history.alphas[1:].tolist() == [seen[step] for step in range(1, STEPS + 1)]


def test_the_trainer_names_gates_of_a_compiled_model_as_before(tmp_path: Path) -> None:
    """A Trainer that compiles the model changes no name and no value."""
    trainer = trainer_of(gpt2(), tmp_path, torch_compile=True, torch_compile_backend="eager")
    callback = for_transformers.AlphaCallback(trainer, every=EVERY)
    trainer.add_callback(callback)
    with torch.compiler.set_stance("force_eager"):
        trainer.train()
    assert callback.recorder.history.names == tuple(rezero.gates(gpt2()))
    assert callback.recorder.history.alphas[-1].tolist() == witness_of(trainer).seen[STEPS]


def test_the_trainer_trains_again_after_it_was_cut_off(tmp_path: Path) -> None:
    """A training that ends in an error leaves the file to the next one of the same Trainer, which begins it anew."""
    trainer = trainer_of(gpt2(), tmp_path)
    trainer.add_callback(for_transformers.AlphaCallback(trainer, tmp_path / "alphas.jsonl", every=1))
    trainer.add_callback(Breaks())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    trainer.remove_callback(Breaks)
    with pytest.warns(UserWarning, match=r"that one is kept as alphas\.jsonl\.1"):
        trainer.train()
    assert AlphaHistory.read(tmp_path / "alphas.jsonl").steps.tolist() == list(range(STEPS + 1))


def test_the_trainer_refuses_a_model_without_gates(tmp_path: Path) -> None:
    """The error comes when the training begins, before any step."""
    trainer = trainer_of(plain_gpt2(), tmp_path)
    trainer.add_callback(for_transformers.AlphaCallback(trainer))
    with pytest.raises(UsageError, match="no gates: put some in"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_trainers_callback_refuses_what_it_could_not_log(tmp_path: Path) -> None:
    """A path in the place of the Trainer, or a negative number of gates, is an error before the training."""
    with pytest.raises(TypeError, match="got str; make it first, then call"):
        for_transformers.AlphaCallback("alphas.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_gates must not be negative"):
        for_transformers.AlphaCallback(trainer_of(plain_gpt2(), tmp_path), max_gates=-1)
    with pytest.raises(ValueError, match="max_gates must not be negative"):
        for_lightning.AlphaCallback(max_gates=-1)


def test_the_trainers_second_process_records_nothing(tmp_path: Path) -> None:
    """Only the first process records, writes and logs."""
    trainer = trainer_of(gpt2(), tmp_path)
    callback = for_transformers.AlphaCallback(trainer, tmp_path / "alphas.jsonl", every=1)
    trainer.add_callback(callback)
    trainer.is_world_process_zero = lambda: False
    trainer.train()
    assert callback.recorder is None
    assert not (tmp_path / "alphas.jsonl").exists()
    assert logged_by(trainer) == {}


# Lightning


class Regression(pl.LightningModule):
    """Three gated blocks."""

    def __init__(self, *, gated: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4) for _ in range(3)]
        self.net = nn.Sequential(*(rezero.ReZero(layer) if gated else layer for layer in layers))
        self.seen: dict[int, list[float]] = {}

    def training_step(self, batch: Tensor, place: int) -> Tensor:
        loss = (self.net(batch) - 2 * batch).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        gates = rezero.gates(self.net).values()
        self.seen[self.trainer.global_step] = [gate.gate_scale.item() for gate in gates]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Kept(Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((metrics, step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of them."""

    def alphas(self) -> dict[int, dict[str, float]]:
        return {step: metrics for metrics, step in self.logged if "rezero/max_abs_alpha" in metrics}


def fit(
    module: pl.LightningModule, *callbacks: pl.Callback, folder: Path, ckpt_path: Any = None, **arguments: Any
) -> Kept:
    kept = Kept()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    given = {"max_steps": STEPS, "log_every_n_steps": 4, "enable_checkpointing": False} | quiet
    given |= {"logger": kept, "default_root_dir": folder, "callbacks": list(callbacks)}
    trainer = pl.Trainer(**(given | arguments))
    trainer.fit(module, DataLoader(torch.randn(64, 4), batch_size=2), ckpt_path=ckpt_path)
    return kept


@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning_logs_the_gates_of_the_step(tmp_path: Path, accumulated: int) -> None:
    """Every second optimizer step, accumulated or not, is recorded and logged with the values that the gates have."""
    module, callback = Regression(), for_lightning.AlphaCallback(every=EVERY)
    logged = fit(module, callback, folder=tmp_path, accumulate_grad_batches=accumulated).alphas()
    history = callback.recorder.history
    assert history.names == ("net.0.gate", "net.1.gate", "net.2.gate")
    assert history.steps.tolist() == [0, 2, 4, 6]
    assert list(logged) == [2, 4, 6]
    for step, metrics in logged.items():
        assert [metrics[f"rezero_alpha/{name}"] for name in history.names] == module.seen[step]
        assert metrics["rezero/max_abs_alpha"] == max(map(abs, module.seen[step])) > 0
    assert history.alphas[1:].tolist() == [module.seen[step] for step in logged]


def test_lightning_trains_as_without(tmp_path: Path) -> None:
    """Weights after a training with the callback are those of one without it, bit for bit."""
    modules = [Regression(), Regression()]
    for module, callbacks in zip(modules, ([], [for_lightning.AlphaCallback(every=1)]), strict=True):
        torch.manual_seed(1)
        fit(module, *callbacks, folder=tmp_path)
    pairs = zip(*(module.state_dict().values() for module in modules), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert modules[0].seen == modules[1].seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_lightnings_file_goes_on_where_a_training_is_resumed(tmp_path: Path) -> None:
    """A training that is resumed from an earlier checkpoint drops the records after it and ends with all of them."""
    file, seen = tmp_path / "alphas.jsonl", {}
    for stop, resumed in ((5, None), (STEPS, tmp_path / "step=4.ckpt")):
        module, saves = Regression(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4)
        given = {"max_steps": stop, "enable_checkpointing": True, "ckpt_path": resumed}
        fit(module, for_lightning.AlphaCallback(file, every=1), saves, folder=tmp_path, **given)
        seen |= module.seen
    assert list(module.seen) == [5, 6]
    history = AlphaHistory.read(file)
    assert history.steps.tolist() == list(range(STEPS + 1))
    assert history.alphas[1:].tolist() == [seen[step] for step in range(1, STEPS + 1)]


def test_lightning_names_gates_of_a_compiled_module_as_before(tmp_path: Path) -> None:
    """torch.compile around the module changes no name and no value."""
    module, callback = Regression(), for_lightning.AlphaCallback(every=EVERY)
    with torch.compiler.set_stance("force_eager"):
        fit(torch.compile(module, backend="eager"), callback, folder=tmp_path)
    assert callback.recorder.history.names == ("net.0.gate", "net.1.gate", "net.2.gate")
    assert callback.recorder.history.alphas[-1].tolist() == module.seen[STEPS]


def test_lightning_refuses_a_module_without_gates(tmp_path: Path) -> None:
    """The error comes when the training begins, before any step."""
    module = Regression(gated=False)
    with pytest.raises(UsageError, match="no gates: put some in"):
        fit(module, for_lightning.AlphaCallback(), folder=tmp_path)
    assert module.seen == {}


def test_lightning_gives_the_file_back_after_an_error(tmp_path: Path) -> None:
    """A training that ends in an error lets the next one have the file."""
    file, module = tmp_path / "alphas.jsonl", Regression()
    callback = for_lightning.AlphaCallback(file, every=1)
    broken = LambdaCallback(on_train_batch_end=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(module, callback, broken, folder=tmp_path)
    with pytest.warns(UserWarning, match=r"that one is kept as alphas\.jsonl\.1"):
        fit(Regression(), for_lightning.AlphaCallback(file, every=1), folder=tmp_path)
    assert AlphaHistory.read(file).steps.tolist() == list(range(STEPS + 1))
    assert AlphaHistory.read(file.with_name("alphas.jsonl.1")).steps.tolist() == [0, 1]


def test_lightnings_second_process_records_nothing(tmp_path: Path) -> None:
    """Only the first process records and writes."""
    module, callback = Regression(), for_lightning.AlphaCallback(tmp_path / "alphas.jsonl", every=1)
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=False)
    callback.on_train_start(trainer, module)
    trainer.global_step = 1
    callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.on_train_end(trainer, module)
    assert callback.recorder is None
    assert not (tmp_path / "alphas.jsonl").exists()
