"""Fit a tiny GPT-2 with the Trainer of transformers on the bytes of a text file, with three lines of rezero."""

import argparse
import inspect
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from rezero import lab
from rezero.integrations.transformers import LabCallback

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, default=Path(inspect.getfile(argparse)), help="text; by default Python's own")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--layers", type=int, default=4)
config = parser.parse_args()

data = torch.tensor(list(config.data.read_bytes()))
windows = data[: len(data) // 64 * 64].view(-1, 64)
examples = [{"input_ids": row, "labels": row} for row in windows]
split = int(0.9 * len(examples))

set_seed(lab.seed(42))
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=config.layers, n_head=4, use_cache=False)
)
model = lab.arm(model, input_ids=windows[:2])  # rezero: the arm of this run, the model itself without a lab
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=config.steps,
        learning_rate=lab.lr(1e-3),  # rezero: a multiple of one's own rate
        seed=lab.seed(42),
        per_device_train_batch_size=16,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=examples[:split], eval_dataset=examples[split:])
    trainer.add_callback(LabCallback())  # rezero: logs what the Trainer logs, with the seed of this run
    trainer.train()
