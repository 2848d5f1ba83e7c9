"""The networks of the depth recipe: fully connected ones that read digits, Transformers that read English text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch.nn.functional as F
from torch import Tensor, nn

from rezero.data.batches import TensorData
from rezero.data.digits import load_digits
from rezero.data.windows import TextData
from rezero.layers import MLP, LanguageModel, MLPBlock
from rezero.papers.plain_text import load_plain_text, loss_of
from rezero.stack import DeepStack

__all__ = ["Bytes", "Digits", "Net"]


class Stack(nn.Module):
    """The fully connected network, its layers in one stack.

    Args:
        width: Of the layers.
        depth: Their number.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = DeepStack(MLPBlock(width), depth)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of digits ``(B, 64)``, ``(B, 10)``."""
        y: Tensor = self.output(self.blocks(F.relu(self.input(x))))
        return y


@cache
def _digits() -> TensorData:
    return load_digits()


_text: Callable[[int], TextData] = cache(load_plain_text)


@dataclass(frozen=True)
class Digits:
    """Fully connected networks that read digits.

    Attributes:
        depths: Optimizer to the numbers of layers.
        width: Of the layers.
        batch: Digits a step.
        rivals: Residual formulas beside, where layers are modules.
    """

    depths: Mapping[str, tuple[int, ...]]
    width: int = 16
    batch: int = 64
    rivals: tuple[str, ...] = ("pre-norm", "layerscale", "deepnorm")

    def build(self, depth: int, *, stacked: bool) -> nn.Module:
        """Make a network with gates."""
        return Stack(self.width, depth) if stacked else self.rival("rezero", depth)

    def rival(self, formula: str, depth: int) -> nn.Module:
        """Make one of another formula."""
        return MLP(64, self.width, depth, 10, residual=formula)

    def blocks(self, model: nn.Module) -> nn.Module:
        """Return what holds the layers."""
        return model.get_submodule("blocks")

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Return the loss on a batch, in nats."""
        inputs, targets = _digits().batch(seed, step, self.batch)
        return F.cross_entropy(model(inputs), targets)

    def digest(self) -> str:
        """Return what tells the data apart from others."""
        return "scikit-learn's digits"


@dataclass(frozen=True)
class Bytes:
    """Transformers that read English text.

    Attributes:
        depths: Optimizer to the numbers of layers.
        width: Of the layers.
        context: Bytes of a row.
        batch: Rows a step.
        rivals: Residual formulas beside.
    """

    depths: Mapping[str, tuple[int, ...]]
    width: int = 32
    context: int = 32
    batch: int = 4
    rivals: tuple[str, ...] = ("pre-norm", "layerscale", "deepnorm", "fixup")

    def build(self, depth: int, *, stacked: bool) -> nn.Module:
        """Make a network with gates; its layers are modules."""
        del stacked
        return self.rival("rezero", depth)

    def rival(self, formula: str, depth: int) -> nn.Module:
        """Make one of another formula; embeddings start alike in all."""
        return LanguageModel(self.width, depth, 4, residual=formula, embedding_std=self.width**-0.5)

    def blocks(self, model: nn.Module) -> nn.Module:
        """Return what holds the layers."""
        return model.get_submodule("layers")

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Return the loss on a batch, in nats a byte."""
        inputs, targets = _text(self.context).batch(seed, step, self.batch)
        return loss_of(model(inputs), targets)

    def digest(self) -> str:
        """Return what tells the data apart from others."""
        return _text(self.context).digest()


Net = Digits | Bytes
