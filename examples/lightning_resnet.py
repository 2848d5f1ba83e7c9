"""Fit a small ResNet to scikit-learn's digits with Lightning, with three lines of rezero."""

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rezero import lab
from rezero.integrations.lightning import LabCallback

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--blocks", type=int, default=4)
config = parser.parse_args()


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm_1(self.conv_1(x)))
        return x + self.norm_2(self.conv_2(y))


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        blocks = (Block(16) for _ in range(config.blocks))
        net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(16 * 64, 10))
        self.net = lab.arm(net, torch.zeros(2, 1, 8, 8))  # rezero: the arm of this run, the net itself without a lab

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        x, y = batch
        output = self.net(x)
        self.log("val_loss", F.cross_entropy(output, y))
        self.log("val_accuracy", (output.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=lab.lr(1e-3))  # rezero: a multiple of one's own rate


pl.seed_everything(lab.seed(0), verbose=False)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
data = TensorDataset(images, torch.tensor(digits.target))
train, val = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))
trainer = pl.Trainer(
    max_epochs=config.epochs,
    accelerator="cpu",
    callbacks=[LabCallback()],  # rezero: logs what the module logs, with the seed of this run
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Classifier(), DataLoader(train, 64, shuffle=True), DataLoader(val, 297))
