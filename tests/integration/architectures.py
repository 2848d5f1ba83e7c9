"""Twenty small architectures, each with what it is called with: text, images, sound, state spaces."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import tests.operators  # noqa: F401 - before anything imports torchvision

__all__ = ["ARCHITECTURES", "Architecture"]

VOCABULARY, LENGTH = 64, 7
_TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64}
_LLAMA = _TEXT | _SIZES | {"intermediate_size": 64, "num_key_value_heads": 2}
_VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}


class Architecture(NamedTuple):
    """A small model.

    Attributes:
        build: Makes it.
        inputs: What it is called with.
        at: Its layers, where it has several lists of them.
        generates: Whether it writes text.
    """

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    at: str | None = None
    generates: bool = False


def _of(config: str, model: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        made = getattr(transformers, model)(getattr(transformers, config)(**options))
        made.generation_config.eos_token_id = None
        return made

    return build


def _plain(config: str, model: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return build


def _timm(name: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options)

    return build


def _ids() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def _text() -> dict[str, Any]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(2, LENGTH, dtype=torch.long)}


def _sequences() -> dict[str, Any]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids()}


def _sound() -> dict[str, Any]:
    return {"input_features": _noise(2, 8, 32), "decoder_input_ids": _ids()}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _images() -> dict[str, Any]:
    return {"pixel_values": _noise(2, 3, 32, 32)}


def _decoder() -> nn.Module:
    layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerDecoder(layer, 4)


def _text_model(config: str, model: str, **options: Any) -> Architecture:
    return Architecture(_of(config, model, **options), _text, generates=True)


ARCHITECTURES = {
    "gpt2": _text_model("GPT2Config", "GPT2LMHeadModel", **_TEXT, n_embd=32, n_layer=4, n_head=4, n_positions=64),
    "llama": _text_model("LlamaConfig", "LlamaForCausalLM", **_LLAMA),
    "qwen3": _text_model("Qwen3Config", "Qwen3ForCausalLM", **_LLAMA, head_dim=8),
    "mistral": _text_model("MistralConfig", "MistralForCausalLM", **_LLAMA, sliding_window=8),
    "opt": _text_model(
        "OPTConfig", "OPTForCausalLM", **_TEXT | _SIZES, ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=True
    ),
    "neox": _text_model("GPTNeoXConfig", "GPTNeoXForCausalLM", **_TEXT | _SIZES, intermediate_size=64),
    "gptj": _text_model(
        "GPTJConfig", "GPTJForCausalLM", **_TEXT, n_embd=32, n_layer=4, n_head=4, n_positions=64, rotary_dim=4
    ),
    "falcon": _text_model(
        "FalconConfig", "FalconForCausalLM", **_TEXT, hidden_size=32, num_hidden_layers=4, num_attention_heads=4
    ),
    "bloom": _text_model("BloomConfig", "BloomForCausalLM", **_TEXT, hidden_size=32, n_layer=4, n_head=4),
    "gemma2": _text_model("Gemma2Config", "Gemma2ForCausalLM", **_LLAMA, head_dim=8, sliding_window=8),
    "phi": _text_model("PhiConfig", "PhiForCausalLM", **_TEXT | _SIZES, intermediate_size=64),
    "bert": Architecture(
        _plain("BertConfig", "BertForMaskedLM", vocab_size=VOCABULARY, **_SIZES, intermediate_size=64), _text
    ),
    "t5": Architecture(
        _of(
            "T5Config",
            "T5ForConditionalGeneration",
            **_TEXT,
            decoder_start_token_id=1,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=6,  # transformers makes the decoder's cache as long as the encoder
            num_decoder_layers=4,
            num_heads=4,
        ),
        _sequences,
        at="decoder.block.*",
        generates=True,
    ),
    "vit": Architecture(
        _plain("ViTConfig", "ViTForImageClassification", **_VISION, image_size=32, patch_size=16), _images
    ),
    "clip-text": Architecture(
        _plain("CLIPTextConfig", "CLIPTextModel", **_TEXT | _SIZES | {"eos_token_id": 63}, intermediate_size=64), _text
    ),
    "whisper": Architecture(
        _of(
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            **_TEXT,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            num_mel_bins=8,
            d_model=32,
            encoder_layers=2,
            decoder_layers=4,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=16,
            max_target_positions=64,
        ),
        _sound,
        at="model.decoder.layers.*",
        generates=True,
    ),
    "mamba": _text_model(
        "MambaConfig", "MambaForCausalLM", **_TEXT, hidden_size=32, num_hidden_layers=4, state_size=4, time_step_rank=4
    ),
    "timm-vit": Architecture(
        _timm("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=32, num_heads=4),
        lambda: {"x": _noise(2, 3, 32, 32)},
    ),
    "convnext": Architecture(
        _timm("convnext_atto", depths=(1, 1, 4, 1), dims=(8, 16, 32, 64)), lambda: {"x": _noise(2, 3, 64, 64)}
    ),
    "torch-decoder": Architecture(_decoder, lambda: {"tgt": _noise(2, LENGTH, 32), "memory": _noise(2, 5, 32)}),
}
