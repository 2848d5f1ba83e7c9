"""Sentences with numbers in words, and pictures of these numbers in real handwriting."""

# B batch, T positions, N digits of a number, P pixels of a digit

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rezero.data.digits import load_digits

__all__ = ["DIGITS", "IGNORED", "TEMPLATES", "Captions", "Pictures"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "The number is {}.\n",
    "She wrote {} on the wall.\n",
    "Room {} is on the left.\n",
    "They came on day {} of the year.\n",
    "Page {} is missing.\n",
)
DIGITS = 2  # of a number
IGNORED = -100  # what cross_entropy passes over


@dataclass(frozen=True)
class Pictures:
    """Handwritten digits, the images of which numbers are put together.

    Attributes:
        pixels: ``(M, P)``, float32.
        labels: ``(M,)``.
    """

    pixels: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> tuple["Pictures", "Pictures"]:
        """Return those for training, and others, which nothing is trained on."""
        digits = load_digits()
        return cls(digits.inputs, digits.targets), cls(digits.val_inputs, digits.val_targets)

    def numbers(self, count: int, draw: random.Random) -> tuple[Tensor, list[str]]:
        """Put digits together at random.

        Args:
            count: How many numbers.
            draw: Source of randomness.

        Returns:
            Their pictures ``(count, N, P)``, and the numbers in words.
        """
        chosen = torch.tensor([[draw.randrange(len(self.labels)) for _ in range(DIGITS)] for _ in range(count)])
        words = [" ".join(WORDS[digit] for digit in row) for row in self.labels[chosen].tolist()]
        return self.pixels[chosen], words


class Captions:
    """Rows of bytes that sentences fill.

    Args:
        length: Bytes of a row.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def rows(self, numbers: Sequence[str], draw: random.Random) -> tuple[Tensor, Tensor]:
        """Fill a row for each number with sentences that name it.

        Args:
            numbers: In words.
            draw: Source of randomness.

        Returns:
            Inputs and targets, ``(B, T)``.
        """
        rows = torch.tensor([list(self._text(number, draw).encode()[: self.length + 1]) for number in numbers])
        return rows[:, :-1], rows[:, 1:]

    def questions(self, numbers: Sequence[str], draw: random.Random) -> tuple[Tensor, Tensor]:
        """Write one sentence a row, of which the number and the byte behind it are to be told.

        Args:
            numbers: In words.
            draw: Source of randomness.

        Returns:
            Inputs and targets, ``(B, T)``; all other targets are `IGNORED`.
        """
        inputs = torch.full((len(numbers), self.length), ord("\n"))
        targets = torch.full((len(numbers), self.length), IGNORED)
        for row, number in enumerate(numbers):
            before, _, after = draw.choice(TEMPLATES).partition("{}")
            text, start = (before + number + after).encode(), len(before)
            inputs[row, : len(text) - 1] = torch.tensor(list(text[:-1]))
            end = start + len(number) + 1
            targets[row, start - 1 : end - 1] = torch.tensor(list(text[start:end]))
        return inputs, targets

    def _text(self, number: str, draw: random.Random) -> str:
        text = ""
        while len(text) <= self.length:
            text += draw.choice(TEMPLATES).format(number)
        return text
