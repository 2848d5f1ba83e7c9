"""Layers and networks: torch.nn's Transformer layers without norms, and the families that arms are compared in."""

from rezero.layers.attention import Attention
from rezero.layers.mlp import MLP, MLPBlock
from rezero.layers.residuals import LayerScale, Residual, residual_block
from rezero.layers.transformer import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # drop-in layers
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "Attention",
    # networks and their branches
    "MLP",
    "MLPBlock",
    # the other residual formulas
    "Residual",
    "LayerScale",
    "residual_block",
]
