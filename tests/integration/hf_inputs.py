"""Example inputs of the models of transformers whose forward takes what no other's does."""

from collections.abc import Callable
from typing import Any

import torch

from rezero.integrations.examples import Shapes

__all__ = ["INPUTS"]

Inputs = dict[str, Any]


def _audio_latents(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {"latents": shapes.wave(1, shapes.find("hidden_size"), 8)}


def _blt(model: Any) -> Inputs:
    return {"input_ids": Shapes(model).tokens(1, 8), "patch_lengths": torch.tensor([[1, 3, 4]])}


def _blt_decoder(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    patches = shapes.wave(1, 4, config.hidden_size_global)
    return {"inputs_embeds": shapes.wave(1, 8, config.hidden_size), "patch_embeds": patches}


def _blt_encoder(model: Any) -> Inputs:
    ids = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]])
    return {"input_ids": Shapes(model).tokens(1, 8), "patch_ids": ids, "num_patches": 4}


def _clvp(model: Any) -> Inputs:
    shapes = Shapes(model)
    features = model.config.decoder_config.feature_size
    return {"input_ids": shapes.tokens(1, 8), "input_features": shapes.wave(1, features, 64)}


def _codebooks(model: Any, *, last: bool) -> Inputs:
    shapes, books = Shapes(model), model.config.num_codebooks if hasattr(model.config, "num_codebooks") else 8
    return {"input_ids": shapes.tokens(1, 8, books) if last else shapes.tokens(books, 8)}


def _decision_transformer(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    return {
        "states": shapes.wave(1, 6, config.state_dim),
        "actions": shapes.wave(1, 6, config.act_dim),
        "rewards": shapes.wave(1, 6, 1),
        "returns_to_go": shapes.wave(1, 6, 1),
        "timesteps": torch.arange(6)[None],
    }


def _flat_patches(model: Any, *, text: bool) -> Inputs:
    shapes = Shapes(model)
    side = shapes.number("patch_size", default=16)
    patches = shapes.wave(1, 12, 2 + shapes.number("num_channels", default=3) * side**2)
    patches[..., :2] = torch.arange(24.0).view(1, 12, 2) % 4 + 1  # row and column
    return {"flattened_patches": patches} | ({"decoder_input_ids": shapes.tokens()} if text else {})


def _gemma_audio(model: Any) -> Inputs:
    shapes = Shapes(model)
    sound = shapes.wave(1, 64, model.config.input_feat_size)
    return {"audio_mel": sound, "audio_mel_mask": torch.zeros(1, 64, dtype=torch.bool)}


def _gemma_vision(model: Any) -> Inputs:
    shapes = Shapes(model)
    side = model.config.pooling_kernel_size * 2
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))[None]
    return {"pixel_values": shapes.wave(1, side**2, 3 * model.config.patch_size**2), "pixel_position_ids": places}


def _idefics(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "input_ids": shapes.tokens(),
        "attention_mask": shapes.ones(1, 8),
        "pixel_values": shapes.images(1, 1),
        "image_attention_mask": shapes.ones(1, 8, 1),
    }


def _image_pair(model: Any) -> Inputs:
    return {"pixel_values": Shapes(model).wave(1, 2, 3, 64, 64).sin()}


def _kosmos_2(model: Any) -> Inputs:
    shapes, count = Shapes(model), model.config.latent_query_num
    marks = torch.cat([torch.zeros(1, 1), torch.ones(1, count), torch.zeros(1, 8)], 1).long()
    text = shapes.tokens(1, count + 9)
    return {"pixel_values": shapes.images(1), "input_ids": text, "image_embeds_position_mask": marks}


def _lxmert(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    return {
        "input_ids": shapes.tokens(),
        "visual_feats": shapes.wave(1, 5, config.visual_feat_dim),
        "visual_pos": shapes.wave(1, 5, config.visual_pos_dim).abs(),
    }


def _mllama_vision(model: Any) -> Inputs:
    shapes = Shapes(model)
    tiles = model.config.max_num_tiles
    mask = torch.ones(1, 1, tiles, dtype=torch.long)
    return {
        "pixel_values": shapes.images(1, 1, tiles),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": mask,
    }


def _omdet(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "pixel_values": shapes.images(1),
        "classes_input_ids": shapes.tokens(2, 8),
        "classes_attention_mask": shapes.ones(2, 8),
        "tasks_input_ids": shapes.tokens(1, 8),
        "tasks_attention_mask": shapes.ones(1, 8),
        "classes_structure": torch.tensor([2]),
    }


def _oneformer(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {"pixel_values": shapes.images(1), "task_inputs": shapes.tokens(1, model.config.task_seq_len)}


def _rag(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "input_ids": shapes.tokens(1, 8),
        "decoder_input_ids": shapes.tokens(1, 8),
        "context_input_ids": shapes.tokens(2, 8),
        "context_attention_mask": shapes.ones(2, 8),
        "doc_scores": shapes.wave(1, 2),
        "n_docs": 2,
    }


def _sam3_detr(model: Any, *, decoder: bool) -> Inputs:
    shapes, width = Shapes(model), model.config.hidden_size
    picture = shapes.wave(1, 64, width) if decoder else [shapes.wave(1, width, 8, 8)]
    inputs: Inputs = {"vision_features": picture, "text_features": shapes.wave(1, 6, width).cos()}
    if decoder:
        return inputs | {"vision_pos_encoding": shapes.wave(1, 64, width), "spatial_shapes": torch.tensor([[8, 8]])}
    return inputs | {"vision_pos_embeds": [shapes.wave(1, width, 8, 8)], "spatial_sizes": [(8, 8)]}


def _sam3_masks(model: Any) -> Inputs:
    shapes, width = Shapes(model), model.config.hidden_size
    picture = [shapes.wave(1, width, side, side) for side in (32, 16, 8)]
    queries = shapes.wave(1, 5, width)
    return {
        "decoder_queries": queries,
        "backbone_features": picture,
        "encoder_hidden_states": shapes.wave(1, 64, width),
    }


def _seggpt(model: Any) -> Inputs:
    image = Shapes(model).images(1)
    return {"pixel_values": image, "prompt_pixel_values": image.sin(), "prompt_masks": image.cos()}


def _timesfm(model: Any) -> Inputs:
    shapes, length = Shapes(model), model.config.context_length
    padding = torch.zeros(2, length + model.config.horizon_length)
    return {
        "past_values": shapes.wave(2, length),
        "past_values_padding": padding[:, :length],
        "freq": torch.zeros(2, 1).long(),
    }


INPUTS: dict[str, Callable[[Any], Inputs]] = {
    "blip_2_qformer": lambda model: (
        {"query_embeds": Shapes(model).wave(1, 8, model.config.hidden_size)}
        | {"encoder_hidden_states": Shapes(model).wave(1, 6, model.config.encoder_hidden_size)}
    ),
    "blt": _blt,
    "blt_local_decoder": _blt_decoder,
    "blt_local_encoder": _blt_encoder,
    "clvp": _clvp,
    "decision_transformer": _decision_transformer,
    "deepseek_ocr2_encoder": lambda model: {
        "inputs_embeds": Shapes(model).wave(1, 32, model.config.hidden_size),
        "num_patches": 16,
    },
    "depth_pro": lambda model: {"pixel_values": Shapes(model).wave(1, 3, 256, 256)},
    "dia_decoder": lambda model: (
        {"input_ids": Shapes(model).tokens(1, 8, model.config.num_channels)}
        | {"encoder_hidden_states": Shapes(model).wave(1, 6, model.config.cross_hidden_size)}
    ),
    "efficientloftr": _image_pair,
    "florence_vision": lambda model: {"hidden_states": Shapes(model).wave(2, 3, 64, 64)},
    "gemma3n_audio": _gemma_audio,
    "gemma4_vision": _gemma_vision,
    "idefics": _idefics,
    "idefics2_perceiver": lambda model: {
        "context": Shapes(model).wave(1, 12, model.config.hidden_size),
        "attention_mask": Shapes(model).ones(1, 12),
    },
    "inkling_audio": lambda model: {"audio_input_ids": Shapes(model).tokens(1, 8, model.config.n_mel_bins)},
    "jev": lambda model: {
        "input_ids": Shapes(model).tokens(),
        "marks": torch.tensor([[2, 5]]),
        "num_options": torch.tensor([[2, 2]]),
        "question_type_ids": torch.tensor([[0, 0]]),
    },
    "kosmos-2": _kosmos_2,
    "kosmos_2_5_vision_model": lambda model: _flat_patches(model, text=False),
    "kyutai_speech_to_text": lambda model: {"input_ids": Shapes(model).tokens(1, 8, model.config.num_codebooks + 1)},
    "lightglue": _image_pair,
    "lxmert": _lxmert,
    "mllama_vision_model": _mllama_vision,
    "molmo2_adapter": lambda model: {
        "image_features": Shapes(model).wave(1, 16, model.config.hidden_size * len(model.config.vision_feature_layer)),
        "pooled_patches_idx": torch.arange(16).view(4, 4),
    },
    "molmo2_vision": lambda model: {
        "pixel_values": Shapes(model).wave(1, model.config.num_position_embeddings, 3 * model.config.patch_size**2)
    },
    "moshi_depth": lambda model: {
        "input_ids": Shapes(model).tokens(1, model.config.num_codebooks),
        "last_hidden_state": Shapes(model).wave(1, model.config.num_codebooks, model.config.input_size),
    },
    "muse_glimmer_assistant": lambda model: {
        "noise_embeds": Shapes(model).wave(1, 8, model.config.hidden_size),
        "context_hidden_states": Shapes(model).wave(1, 8, 2 * model.config.hidden_size),
    },
    "musicgen": lambda model: {"input_ids": Shapes(model).tokens(), "decoder_input_ids": Shapes(model).tokens(4, 8)},
    "musicgen_melody": lambda model: (
        {"input_ids": Shapes(model).tokens(), "decoder_input_ids": Shapes(model).tokens(4, 8)}
        | {"input_features": Shapes(model).wave(1, 16, model.config.num_chroma)}
    ),
    "musicgen_decoder": lambda model: _codebooks(model, last=False),
    "musicgen_melody_decoder": lambda model: _codebooks(model, last=False),
    "omdet-turbo": _omdet,
    "oneformer": _oneformer,
    "perceiver": lambda model: {"inputs": Shapes(model).wave(1, 16, model.config.d_model)},
    "phi4_multimodal_audio": lambda model: {
        "hidden_states": Shapes(model).wave(1, 64, model.config.input_size),
        "mask": torch.ones(1, 64, dtype=torch.bool),
    },
    "pix2struct": lambda model: _flat_patches(model, text=True),
    "pix2struct_vision_model": lambda model: _flat_patches(model, text=False),
    "qwen2_5_omni_bigvgan": lambda model: {"mel_spectrogram": Shapes(model).wave(1, model.config.mel_dim, 16)},
    "rag": _rag,
    "sam3_detr_decoder": lambda model: _sam3_detr(model, decoder=True),
    "sam3_detr_encoder": lambda model: _sam3_detr(model, decoder=False),
    "sam3_lite_text_detr_decoder": lambda model: _sam3_detr(model, decoder=True),
    "sam3_lite_text_detr_encoder": lambda model: _sam3_detr(model, decoder=False),
    "sam3_lite_text_mask_decoder": _sam3_masks,
    "sam3_mask_decoder": _sam3_masks,
    "seggpt": _seggpt,
    "superglue": _image_pair,
    "timesfm": _timesfm,
    "unlimited_ocr_vision_encoder": lambda model: {
        "pixel_values": Shapes(model).images(1),
        "patch_embeds": Shapes(model).wave(1, model.config.hidden_size, 8, 8),
    },
}
