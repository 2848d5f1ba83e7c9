"""Example inputs of the models of transformers whose forward takes what no other's does."""

from collections.abc import Callable
from typing import Any

import torch

from rezero.integrations.examples import Shapes, count_tokens, example_inputs

__all__ = ["INPUTS"]

Inputs = dict[str, Any]


def _with_marks(model: Any, marker: int, count: int, **inputs: Any) -> Inputs:
    """Make a text with as many tokens that stand for parts of a picture or of a sound as its features take."""
    text = Shapes(model).tokens() + 10
    return {"input_ids": torch.cat([text, torch.full((1, count), marker), text], 1), **inputs}


def _shrinks(model: Any) -> int:
    """Return how much smaller a picture's codes are than the picture."""
    return 2 ** (len(model.config.vq_config.channel_multiplier) - 1)


def _fun_asr(model: Any) -> Inputs:
    sound = {
        "input_features": Shapes(model).wave(1, 32, 560),
        "input_features_mask": torch.ones(1, 32, dtype=torch.bool),
    }
    return _with_marks(model, model.config.audio_token_id, count_tokens(model.get_audio_features(**sound)), **sound)


def _latents(model: Any) -> Inputs:
    return {"latents": Shapes(model).wave(1, model.config.hidden_size, 8)}


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


def _evolla(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "input_ids": shapes.tokens(),
        "protein_input_ids": shapes.tokens(1, 12),
        "protein_attention_mask": shapes.ones(1, 12),
    }


def _granite_docling(model: Any) -> Inputs:
    tiles = {"pixel_values": Shapes(model).images(1, 2), "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool)}
    count = model.get_image_features(**tiles).pooler_output[0].shape[0]
    return _with_marks(model, model.config.image_token_id, count, **tiles)


def _kosmos_2_5(model: Any) -> Inputs:
    shapes, count = Shapes(model), model.config.latent_query_num
    marks = torch.cat([torch.zeros(1, 1), torch.ones(1, count), torch.zeros(1, 8)], 1).long()
    return {
        "input_ids": shapes.tokens(1, count + 9),
        "image_embeds_position_mask": marks,
        **_flat_patches(model, text=False),
    }


def _mllama(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "input_ids": shapes.tokens(),
        "cross_attention_mask": shapes.ones(1, 8, 1, shapes.find("max_num_tiles")),
        **_mllama_vision(model),
    }


def _musicflamingo(model: Any) -> Inputs:
    shapes = Shapes(model)
    sound = {"input_features": shapes.wave(1, shapes.bands, 80), "input_features_mask": shapes.ones(1, 80)}
    return _with_marks(model, model.config.audio_token_id, 20, **sound)


def _qwen2_audio(model: Any) -> Inputs:
    shapes = Shapes(model)
    sound = {"input_features": shapes.wave(1, shapes.bands, 80), "feature_attention_mask": shapes.ones(1, 80)}
    return _with_marks(model, model.config.audio_token_id, 20, **sound)


def _qwen_audio_encoder(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {
        "input_features": shapes.wave(shapes.bands, 80),
        "feature_lens": torch.tensor([80]),
        "aftercnn_lens": torch.tensor([40]),
    }


def _video_llava(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    picture, video = shapes.images(1), shapes.images(1, 8)
    count = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    text = _with_marks(model, config.image_token_id, count)["input_ids"]
    marks = torch.full((1, 8 * (count + 1)), config.video_token_id)
    return {"input_ids": torch.cat([text, marks], 1), "pixel_values": picture, "pixel_values_videos": video}


def _dit(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    return {
        "hidden_states": shapes.wave(1, 16, config.mel_dim),
        "condition_vector": shapes.wave(1, 16, config.mel_dim).cos(),
        "speaker_embedding": shapes.wave(1, 16, config.enc_emb_dim),
        "quantized_code": shapes.tokens(1, 8),
        "time_step": torch.tensor(0.5),
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
    tiles = shapes.find("max_num_tiles")
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


def _pi0(model: Any) -> Inputs:
    shapes = Shapes(model)
    count = (
        model.get_image_features(shapes.images(1)).pooler_output.shape[1]
        if hasattr(model, "get_image_features")
        else 256
    )
    inputs = _with_marks(model, model.config.vlm_config.image_token_id, count)
    width = model.config.dit_config.hidden_size
    length = inputs["input_ids"].shape[1]
    return {
        **inputs,
        "attention_mask": shapes.ones(1, length),
        "pixel_values": shapes.images(1, 1),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        "action_embeds": shapes.wave(1, 6, width),
    }


def _video_of_56(model: Any) -> torch.Tensor:
    return Shapes(model).wave(1, 2, 3, 56, 56)


def _nemotron_omni(model: Any) -> Inputs:
    shapes, config = Shapes(model), model.config
    patches = {
        "pixel_values": shapes.wave(16, 3 * config.vision_config.patch_size**2),
        "image_grid_hw": torch.tensor([[4, 4]]),
    }
    return _with_marks(
        model, config.image_token_id, model.get_image_features(**patches).pooler_output[0].shape[0], **patches
    )


def _vibevoice(model: Any) -> Inputs:
    shapes = Shapes(model)
    sound = {"input_values": shapes.wave(1, 1, 3200 * 4), "padding_mask": torch.ones(1, 3200 * 4, dtype=torch.bool)}
    return _with_marks(model, model.config.audio_token_id, 4, **sound)


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
    image = Shapes(model).wave(1, 3, 112, 112)  # half of what the model sees: the prompt is above it
    return {"pixel_values": image, "prompt_pixel_values": image.sin(), "prompt_masks": image.cos()}


def _timesfm(model: Any) -> Inputs:
    shapes, length = Shapes(model), model.config.context_length
    padding = torch.zeros(2, length + model.config.horizon_length)
    return {
        "past_values": shapes.wave(2, length),
        "past_values_padding": padding[:, :length],
        "freq": torch.zeros(2, 1).long(),
    }


def _sound(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {"input_features": shapes.wave(1, shapes.bands, 200), "input_features_mask": shapes.ones(1, 200)}


def _qwen3_asr(model: Any) -> Inputs:
    sound = _sound(model)
    return _with_marks(model, model.config.audio_token_id, count_tokens(model.get_audio_features(**sound)), **sound)


def _picture(model: Any) -> Inputs:
    shapes = Shapes(model)
    return {"pixel_values": shapes.patches(), "image_grid_thw": torch.tensor([[1, *shapes.grid]])}


def _seen_and_heard(model: Any, picture: Inputs, sound: Inputs) -> Inputs:
    """Add a text with the tokens that stand for a picture, and those that stand for a sound."""
    seen, heard = count_tokens(model.get_image_features(**picture)), count_tokens(model.get_audio_features(**sound))
    text = _with_marks(model, model.config.image_token_id, seen)["input_ids"]
    marks = torch.full((1, heard), model.config.audio_token_id)
    return {"input_ids": torch.cat([text, marks], 1), **picture, **sound}


def _gemma_picture(tower: Any) -> Inputs:
    seen = _gemma_vision(tower)
    return {"pixel_values": seen["pixel_values"], "image_position_ids": seen["pixel_position_ids"]}


def _dots3_note(model: Any) -> Inputs:
    audio = model.config.audio_config
    sound = {
        "input_features": Shapes(model).wave(1, audio.feature_size, 64),
        "chunk_sample_lengths": torch.tensor([64 * audio.hop_length]),
    }
    return _seen_and_heard(model, _picture(model), sound)


def _gemma4(model: Any) -> Inputs:
    sound = {
        "input_features": Shapes(model).wave(1, 64, model.config.audio_config.subsampling_conv_channels[0]),
        "input_features_mask": torch.ones(1, 64, dtype=torch.bool),
    }
    return _seen_and_heard(model, _gemma_picture(model.vision_tower), sound)


def _granite_speech(model: Any) -> Inputs:
    sound = Shapes(model).wave(1, 64, model.config.encoder_config.input_dim)
    count = count_tokens(model.get_audio_features(sound))
    heard = torch.ones(1, count, dtype=torch.bool)
    return _with_marks(model, model.config.audio_token_id, count, input_features=sound, input_features_mask=heard)


def _moss(model: Any) -> Inputs:
    shapes = Shapes(model)
    sound = {
        "input_features": shapes.wave(1, shapes.bands, 80),
        "input_features_mask": shapes.ones(1, 80),
        "padding_mask": shapes.ones(1, 80 * 160),
    }
    return _with_marks(model, model.config.audio_token_id, count_tokens(model.get_audio_features(**sound)), **sound)


def _video_llama_3(model: Any) -> Inputs:
    picture = _picture(model) | {"image_merge_sizes": torch.tensor([2])}
    return _with_marks(model, model.config.image_token_id, count_tokens(model.get_image_features(**picture)), **picture)


def _xcodec2(model: Any) -> Inputs:
    shapes, frames = Shapes(model), 8
    return {
        "input_values": shapes.wave(1, 1, frames * model.config.hop_length),
        "input_features": shapes.wave(1, frames, model.config.semantic_model_config.feature_projection_input_dim),
    }


def _molmo2(model: Any) -> Inputs:
    vision = model.config.vit_config if hasattr(model.config, "vit_config") else model.config.vision_config
    picture = {
        "pixel_values": Shapes(model).wave(1, vision.num_position_embeddings, 3 * vision.patch_size**2),
        "image_token_pooling": torch.arange(16).view(4, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
    }
    return _with_marks(model, model.config.image_patch_id, 4, **picture)


def _perception_lm(model: Any) -> Inputs:
    picture = {"pixel_values": Shapes(model).wave(1, 1, 3, 56, 56)}
    return _with_marks(model, model.config.image_token_id, count_tokens(model.get_image_features(**picture)), **picture)


def _diffusion_gemma(model: Any) -> Inputs:
    picture = _gemma_picture(model.encoder.vision_tower)
    count = count_tokens(model.encoder.get_image_features(**picture))
    text = {"decoder_input_ids": Shapes(model).tokens()}
    return _with_marks(model, model.config.image_token_id, count, **picture, **text)


def _granite4_vision(model: Any) -> Inputs:
    shapes, side = Shapes(model), model.config.vision_config.image_size
    picture = {
        "pixel_values": shapes.wave(1, 2, 3, side, side),  # one whole, one cut out
        "image_sizes": torch.tensor([[side, side]]),
    }
    found = model.get_image_features(**picture)
    count = sum(each.shape[0] for each in found.deepstack_features[0][1])
    return _with_marks(model, model.config.image_token_id, count, **picture)


def _phi4_multimodal(model: Any) -> Inputs:
    shapes, vision, audio = Shapes(model), model.config.vision_config, model.config.audio_config
    side = vision.image_size // vision.patch_size
    picture = {
        "image_pixel_values": shapes.wave(1, 2, 3, vision.image_size, vision.image_size),  # one whole, one cut out
        "image_sizes": torch.tensor([[vision.crop_size, vision.crop_size]]),
        "image_attention_mask": shapes.ones(1, 2, side, side),
    }
    text = _with_marks(model, vision.image_token_id, side * (side // 2 + 1) + 1)["input_ids"]
    sound = {"audio_input_features": shapes.wave(1, 64, audio.input_size), "audio_embed_sizes": torch.tensor([8])}
    marks = torch.full((1, 8), audio.audio_token_id)
    return {"input_ids": torch.cat([text, marks], 1), **picture, **sound}


def _muse_spark(model: Any) -> Inputs:
    shapes = Shapes(model)
    picture = {"pixel_values": shapes.patches(2), "image_grid_thw": torch.tensor([[1, *shapes.grid]])}
    return _seen_and_heard(model, picture, {"input_values": shapes.wave(1, 1920 * 4)})


INPUTS: dict[str, Callable[[Any], Inputs]] = {
    "dots3_note": _dots3_note,
    "diffusion_gemma": _diffusion_gemma,
    "granite4_vision": _granite4_vision,
    "molmo2": _molmo2,
    "perception_lm": _perception_lm,
    "phi4_multimodal": _phi4_multimodal,
    "pp_ocrv5_mobile_rec": lambda model: {"pixel_values": Shapes(model).wave(2, 3, 128, 320)},
    "gemma4": _gemma4,
    "granite_speech": _granite_speech,
    "granite_speech_plus": _granite_speech,
    "moss_transcribe_diarize": _moss,
    "video_llama_3": _video_llama_3,
    "vision-encoder-decoder": lambda model: {
        "pixel_values": Shapes(model).images(1),
        "decoder_input_ids": Shapes(model).tokens(),
    },
    "xcodec2": _xcodec2,
    "muse_spark": _muse_spark,
    "qwen3_asr": _qwen3_asr,
    "qwen3_asr_encoder": _sound,
    "qwen3_omni_moe_talker_text": lambda model: {"inputs_embeds": Shapes(model).wave(1, 8, model.config.hidden_size)},
    "t5gemma2_decoder": lambda model: {
        "input_ids": Shapes(model).tokens(),
        "encoder_hidden_states": Shapes(model).wave(1, 6, model.config.hidden_size),
    },
    "video_llama_3_vision": lambda model: {
        "pixel_values": Shapes(model).patches(),
        "grid_thw": torch.tensor([[1, *Shapes(model).grid]]),
        "merge_sizes": torch.tensor([2]),
    },
    "vibevoice_acoustic_tokenizer_encoder": lambda model: {"hidden_states": Shapes(model).wave(1, 1, 3200 * 4)},
    "xclip_vision_model": lambda model: {"pixel_values": Shapes(model).images(model.config.num_frames)},
    "blip_2_qformer": lambda model: (
        {"query_embeds": Shapes(model).wave(1, 8, model.config.hidden_size)}
        | {"encoder_hidden_states": Shapes(model).wave(1, 6, model.config.encoder_hidden_size)}
    ),
    "blt_local_decoder": _blt_decoder,
    "blt_local_encoder": _blt_encoder,
    "chameleon": lambda model: _with_marks(
        model, 900, 4, pixel_values=Shapes(model).wave(1, 3, 2 * _shrinks(model), 2 * _shrinks(model))
    ),
    "clvp": _clvp,
    "colqwen2": lambda model: _with_marks(
        model,
        model.config.vlm_config.image_token_id,
        4,
        pixel_values=Shapes(model).wave(1, 16, 1176),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
    ),
    "csm": lambda model: {"input_ids": Shapes(model).tokens(1, 8, 32), "labels": Shapes(model).tokens(1, 8, 32)},
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
    "granite_speech_encoder": lambda model: {"hidden_states": Shapes(model).wave(1, 64, model.config.input_dim)},
    "granite_speech_plus_encoder": lambda model: {"hidden_states": Shapes(model).wave(1, 64, model.config.input_dim)},
    "granite_speech5_encoder": lambda model: {
        "input_features": Shapes(model).wave(1, 64, 4 * model.config.num_mel_bins)
    },
    "granite_speech5_ctc": lambda model: {"input_features": Shapes(model).wave(1, 64, 320)},
    "fun_asr_nano": _fun_asr,
    "fun_asr_nano_encoder": lambda model: {
        "input_features": Shapes(model).wave(1, 32, 560),
        "input_features_mask": torch.ones(1, 32, dtype=torch.bool),
    },
    "dots3_note_audio_encoder": lambda model: {
        "input_features": Shapes(model).wave(1, model.config.feature_size, 64),
        "chunk_sample_lengths": torch.tensor([64 * model.config.hop_length]),
    },
    "evolla": _evolla,
    "EvollaModel": _evolla,
    "granite_docling": _granite_docling,
    "granite_docling_vision": lambda model: {"pixel_values": Shapes(model).images(2)},
    "inkling_vision": lambda model: {"pixel_values": Shapes(model).wave(2, 2, 40, 40, 3)},
    "inkling2_vision": lambda model: {
        "pixel_values": Shapes(model).wave(4, 40, 40, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    },
    "kosmos-2.5": _kosmos_2_5,
    "mimi_decoder": _latents,
    "mllama": _mllama,
    "musicflamingo": _musicflamingo,
    "muse_spark_audio": lambda model: {"input_values": Shapes(model).wave(1, 1920 * 4)},
    "pocket_tts_audio_tokenizer_decoder": _latents,
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_omni_audio_encoder": _qwen_audio_encoder,
    "qwen2_5_omni_dit": _dit,
    "qwen3_omni_moe_audio_encoder": _qwen_audio_encoder,
    "qwen3_omni_moe_talker_code_predictor": lambda model: {
        "inputs_embeds": Shapes(model).wave(1, 3, model.config.hidden_size)
    },
    "video_llava": _video_llava,
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
    "voxtral_realtime_text": lambda model: {
        "input_ids": Shapes(model).tokens(),
        "t_cond": Shapes(model).wave(1, 1, model.config.hidden_size),
    },
    "sam3": lambda model: example_inputs(model) | {"input_boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])},
    "sam3_detr_decoder": lambda model: _sam3_detr(model, decoder=True),
    "sam3_detr_encoder": lambda model: _sam3_detr(model, decoder=False),
    "sam3_lite_text_detr_decoder": lambda model: _sam3_detr(model, decoder=True),
    "sam3_lite_text_detr_encoder": lambda model: _sam3_detr(model, decoder=False),
    "sam3_lite_text_mask_decoder": _sam3_masks,
    "sam3_mask_decoder": _sam3_masks,
    "nemotron_h_omni": _nemotron_omni,
    "vibevoice": _vibevoice,
    "pe_video": lambda model: {"input_ids": Shapes(model).tokens(), "pixel_values_videos": _video_of_56(model)},
    "pe_video_encoder": lambda model: {"pixel_values_videos": _video_of_56(model)},
    "pe_audio_video": lambda model: {
        "input_ids": Shapes(model).tokens(),
        "pixel_values_videos": _video_of_56(model),
        "input_values": Shapes(model).wave(1, 1, 16_000),
    },
    "pe_audio_video_encoder": lambda model: {
        "pixel_values_videos": _video_of_56(model),
        "input_values": Shapes(model).wave(1, 1, 16_000),
    },
    "pi0": _pi0,
    "seggpt": _seggpt,
    "speecht5": lambda model: {
        "input_values": Shapes(model).wave(1, 12, model.config.hidden_size),
        "decoder_input_values": Shapes(model).wave(1, 8, model.config.hidden_size).cos(),
    },
    "tvp": lambda model: (
        {"input_ids": Shapes(model).tokens(), "pixel_values": Shapes(model).wave(1, 2, 3, 448, 448)}
        | {"attention_mask": Shapes(model).ones(1, 8)}
    ),
    "univnet": lambda model: {"input_features": Shapes(model).wave(1, 16, model.config.num_mel_bins)},
    "superglue": _image_pair,
    "timesfm": _timesfm,
    "unlimited_ocr_vision_encoder": lambda model: {
        "pixel_values": Shapes(model).images(1),
        "patch_embeds": Shapes(model).wave(1, model.config.hidden_size, 8, 8),
    },
}
