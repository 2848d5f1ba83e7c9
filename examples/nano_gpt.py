"""Train a small GPT on the characters of a text file: a loop as people write it, with four lines of rezero."""

import argparse
import inspect
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from rezero import lab

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, default=Path(inspect.getfile(argparse)), help="text; by default Python's own")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--context", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--eval-every", type=int, default=50)
config = parser.parse_args()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.places = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config.width, 4) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


torch.manual_seed(lab.seed(1337))  # rezero: the seed of this run, 1337 without a lab
text = config.data.read_text(encoding="utf-8")
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train, val = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]


def batch(part: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(part) - config.context - 1, (config.batch_size,), generator=generator)
    windows = part[starts[:, None] + torch.arange(config.context + 1)]
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    fixed = torch.Generator().manual_seed(0)
    losses = [loss_of(model, *batch(val, fixed)).item() for _ in range(8)]
    return sum(losses) / len(losses)


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


model = lab.arm(GPT(len(letters)), batch(train)[0])  # rezero: the arm of this run, the model itself without a lab
optimizer = torch.optim.AdamW(model.parameters(), lr=lab.lr(config.lr))  # rezero: a multiple of one's own rate
for step in range(1, config.steps + 1):
    for group in optimizer.param_groups:
        group["lr"] = lab.lr(config.lr) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    loss = loss_of(model, *batch(train))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % config.eval_every == 0:
        val_loss = evaluate(model)
        print(f"step {step}: train {loss.item():.3f}, val {val_loss:.3f}")
        lab.log(step, train_loss=loss, val_loss=val_loss)  # rezero: what decides
