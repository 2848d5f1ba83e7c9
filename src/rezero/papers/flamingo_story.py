"""What Flamingo's story in small begins with: a language model that has read, an eye, and what connects them."""

# B batch, T positions, N digits of a number

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.data.windows import TextData
from rezero.layers import LanguageModel
from rezero.papers.captions import DIGITS, Captions, Pictures
from rezero.papers.plain_text import loss_of
from rezero.papers.reproduction import Work

__all__ = ["FEATURES", "Eye", "Plan", "Sight", "Story", "take_step"]

FEATURES = 64  # of the eye, for each digit


@dataclass(frozen=True)
class Plan:
    """How large and how long.

    Attributes:
        width: Of the language model.
        depth: Its layers.
        length: Bytes of a row.
        batch: Rows of a batch.
        reading: Steps of the language model's own training.
        looking: Steps of the pictures' classifier.
        steps: Steps of the grafted blocks.
        every: A measurement each how many of these.
        questions: Pictures that each measurement asks about.
        plain: Rows of plain text that its loss is measured on.
        lr: Rate of the blocks at the start, which falls to zero.
    """

    width: int = 96
    depth: int = 6
    length: int = 64
    batch: int = 32
    reading: int = 1500
    looking: int = 1500
    steps: int = 800
    every: int = 80
    questions: int = 400
    plain: int = 256
    lr: float = 5e-3


class Eye(nn.Module):
    """A small convolutional network over one digit of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, FEATURES, 3, padding=1)
        self.second = nn.Conv2d(FEATURES, FEATURES, 3, stride=2, padding=1)
        self.classes = nn.Linear(FEATURES, 10)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features of each digit, the mean over 16 places.

        Args:
            pixels: ``(*, 64)``.

        Returns:
            ``(*, FEATURES)``.
        """
        images = pixels.reshape(-1, 1, 8, 8)
        maps = F.relu(self.second(F.relu(self.first(images))))
        return maps.mean((2, 3)).reshape(*pixels.shape[:-1], -1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the ten digits, ``(*, 10)``."""
        logits: Tensor = self.classes(self.features(pixels))
        return logits


class Sight(nn.Module):
    """What is learned with the grafted blocks to hand the eye's features over: a map, and which digit is which."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(FEATURES, FEATURES)
        self.places = nn.Parameter(torch.randn(DIGITS, FEATURES))
        self.norm = nn.LayerNorm(FEATURES)

    def forward(self, features: Tensor) -> Tensor:
        """Return a context.

        Args:
            features: ``(B, N, FEATURES)``.

        Returns:
            ``(B, N, FEATURES)``.
        """
        context: Tensor = self.norm(self.map(features) + self.places)
        return context


class Story:
    """The language model, the eye and the data: what every seed starts from.

    Args:
        plan: How large and how long.
        text: What the language model reads.
        work: Where the trained weights are kept.
        tell: Is told how much of the training is done, and of what.
    """

    def __init__(self, plan: Plan, text: TextData, work: Work, tell: Callable[[float, str], object]) -> None:
        self.plan, self.text, self.captions, self.tell = plan, text, Captions(plan.length), tell
        self.pictures, self.unseen = Pictures.load()
        torch.manual_seed(0)
        self.model = LanguageModel(plan.width, plan.depth, 4, residual="pre-norm")
        self.eye = Eye()
        work.weights("model", self.model, self._read)
        work.weights("eye", self.eye, self._look)
        for module in (self.model, self.eye):
            module.eval().requires_grad_(False)
        draw = random.Random(0)
        self.plain = self.text.val_batch(0, plan.plain)
        pixels, numbers = self.unseen.numbers(plan.questions, draw)
        self.asked = (self.features(pixels), *self.captions.questions(numbers, draw))

    def features(self, pixels: Tensor) -> Tensor:
        """Return what the frozen eye sees, ``(B, N, FEATURES)``."""
        with torch.no_grad():
            return self.eye.features(pixels)

    def batch(self, seed: int, step: int, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the batch of a step: half of its rows tell of pictures, half are plain text without one.

        Args:
            seed: Of the plain text.
            step: From 0.
            draw: Source of numbers and sentences.

        Returns:
            Features, whether a row sees any, inputs and targets.
        """
        half = self.plan.batch // 2
        pixels, numbers = self.pictures.numbers(half, draw)
        features = self.features(pixels)
        inputs, targets = self._joined(self.captions.rows(numbers, draw), self.text.batch(seed, step, half))
        return torch.cat([features, features]), torch.arange(2 * half) < half, inputs, targets

    def _joined(self, *parts: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [torch.cat(each).long() for each in zip(*parts, strict=True)]

    def _read(self) -> None:
        """Train the language model on plain text, and on sentences with numbers that nothing tells it."""
        draw = random.Random(0)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.plan.reading)
        half = self.plan.batch // 2
        for step in range(self.plan.reading):
            told = self.captions.rows(self.pictures.numbers(half, draw)[1], draw)
            inputs, targets = self._joined(told, self.text.batch(0, step, half))
            take_step(optimizer, loss_of(self.model(inputs), targets))
            schedule.step()
            self.tell(0.9 * step / self.plan.reading, "the language model")

    def _look(self) -> None:
        """Train the eye on single digits, moved by up to a pixel."""
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(self.eye.parameters(), lr=6e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=self.plan.looking)
        for step in range(self.plan.looking):
            self.tell(0.9 + 0.1 * step / self.plan.looking, "the eye")
            chosen = torch.randint(len(self.pictures.labels), (64,), generator=generator)
            down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
            images = self.pictures.pixels[chosen].view(-1, 8, 8).roll((down, right), (1, 2))
            take_step(optimizer, F.cross_entropy(self.eye(images.flatten(1)), self.pictures.labels[chosen]))
            schedule.step()


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
