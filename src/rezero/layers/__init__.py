"""Layers: torch.nn's Transformer layers without norms, some to put into a trained model, and the arms' networks."""

from rezero.layers.adapter import GatedAdapter
from rezero.layers.attention import Attention
from rezero.layers.cross_attention import GatedCrossAttention
from rezero.layers.kv_cache import KVCache
from rezero.layers.language_model import LanguageModel
from rezero.layers.media import media_mask
from rezero.layers.mlp import MLP, MLPBlock
from rezero.layers.resampler import PerceiverResampler
from rezero.layers.residuals import LayerScale, Residual, ScalarBias, ScalarScale, residual_block
from rezero.layers.resnet import PreActResNet18, ResNet
from rezero.layers.transformer import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # drop-in layers
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "Attention",
    # layers to put into a trained model
    "GatedCrossAttention",
    "media_mask",
    "PerceiverResampler",
    "GatedAdapter",
    # networks, one for every residual formula
    "MLP",
    "MLPBlock",
    "ResNet",
    "PreActResNet18",
    "LanguageModel",
    "KVCache",
    # the other residual formulas
    "Residual",
    "LayerScale",
    "ScalarBias",
    "ScalarScale",
    "residual_block",
]
