"""The model types of transformers, each built from a small configuration and verified with real numbers."""

import importlib
from collections.abc import Callable
from typing import Any

import tests.operators  # noqa: F401 - before anything imports torchvision
from rezero.integrations.examples import Shapes, example_inputs
from tests.integration.hf_counts import expected
from tests.integration.hf_inputs import INPUTS
from tests.integration.measure import look, verify
from tests.integration.tiny import SCALES, Scale, tiny

__all__ = ["FIELDS", "measure", "model_class", "names"]

LARGEST = 400_000_000  # parameters
_SENSES = frozenset(("pixel_values", "input_features", "input_values"))


def _part(name: str) -> Callable[[Scale], Any]:
    """Make a part that a model has only when it is asked for."""
    import transformers

    return lambda scale: tiny(transformers.CONFIG_MAPPING[name](), scale, FIELDS.get(name, {}))


_TIMES = {"prediction_length": 4, "context_length": 8}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_MROPE_HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_DRUM = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}}
_HIERA = {"image_size": [256, 256], "embed_dim_per_stage": lambda scale: [96 * 2**i // scale.width for i in range(4)]}
_HIERA_VISION = {
    "backbone_config": _HIERA,
    "backbone_channel_list": lambda scale: [96 * 2**i // scale.width for i in (3, 2, 1, 0)],
    "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
}
_SPARSE = {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
_REPVIT = {"architecture": "repvit_m1"}  # the default's own name for it is misspelled
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": lambda scale: 256 // scale.features,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_CROSS: dict[str, Any] = {"reduce_channel": (1, 1, 0), "return_channel": (1, 1, 0)}
for _ratio, _long in (("long", 7), ("mid", 5), ("short", 3)):
    _CROSS[f"vertical_long_to_small_conv_{_ratio}ratio"] = ((_long, 1), 1, (_long // 2, 0))
    _CROSS[f"horizontal_small_to_long_conv_{_ratio}ratio"] = ((1, _long), 1, (0, _long // 2))
    _CROSS[f"symmetric_conv_long_{_ratio}ratio"] = (_long, 1, _long // 2)
_LETTERS = {"<image>": 900} | {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 910 + i for i in range(16)}
_DIGITS = {"<image>": 900, "<|extra_200|>": 901} | {f"<|visual token {i:06d}|>": 910 + i for i in range(16)}
_THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
_TILES = {"intermediate_layers_indices": [0, 1], "vision_output_dim": 120, "image_size": 56}
_HEADS_OF_16 = {"head_dim": 16}
_PE_CORE = {"embed_dim": 64, "depth": 2, "img_size": (56, 56), "ref_feat_shape": (4, 4), "global_pool": ""}
_FOUR_SCALES = {"kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]}
_LCNET = {
    "stem_channels": (3, 8, 8),
    "block_configs": [[[3, 8, 8, 1, True]], *([[3, 8, 8, 2, False], [3, 8, 8, 1, True]] for _ in range(3))],
    "out_indices": [1, 2, 3, 4],
}
_ONE_ROUTE = {"use_fine_route": False, "deepstack_visual_indexes": [0, 1]}
_REFORMER = {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}  # a forward seeds dropout anew
_LLAMA4_VISION = {  # four patches are shuffled into one
    "hidden_size": 64,
    "intermediate_size": 256,
    "image_size": 56,
    "vision_output_dim": lambda scale: 4096 // scale.width,
}
_QWEN2_VISION = {"hidden_size": 256, "embed_dim": 64}
_ROUNDED = {  # a factor makes the widths small: the stem's is written into the code
    "width_coefficient": 0.25,
    "depth_coefficient": 0.5,
    "in_channels": (32, 16, 24, 40, 80, 112, 192),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "hidden_dim": 320,
}
FIELDS: dict[str, dict[str, Any]] = {  # of configurations, that no rule makes small and right
    "align": {"vision_config": _ROUNDED},
    "align_vision_model": _ROUNDED,
    "aria": {"projector_patch_to_query_dict": {49: 8}},  # for images of 7 x 7 patches
    "autoformer": {**_TIMES, "label_length": 4},
    "aya_vision": {"vision_config": {"image_size": 56}},
    "chameleon": {"vocabulary_map": _LETTERS, "vq_config": {"num_embeddings": 16}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _MROPE["rope_parameters"]}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE["rope_parameters"]}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"topk_method": "greedy", "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    "depth_pro": {
        "patch_size": 64,
        "intermediate_hook_ids": [1, 0],
        **{f"{each}_model_config": {"image_size": 64} for each in ("image", "patch", "fov")},
    },
    "dots1": {"n_routed_experts": 4, "num_local_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": _HEADS_OF_16,
    "mistral_large4": {"text_config": {"kv_source_layers": None}},
    "mistral_large4_text": {"kv_source_layers": None},
    "molmo2": {
        "image_patch_id": 900,
        "adapter_config": {"vision_feature_layer": [-1, -2], "text_hidden_size": lambda scale: 4096 // scale.width},
    },
    "phi4_multimodal": {
        "vision_config": {"image_size": 56, "crop_size": 56, "feature_layer": -1},
        "audio_config": {"feature_layer": -1},
    },
    "granite_docling": {"vision_config": _ONE_ROUTE},
    "granite_docling_vision": _ONE_ROUTE,
    "nemotron": {"num_key_value_heads": 4, "head_dim": 16},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"mm_tokens_per_image": 49, "text_config": {"dropout_rate": 0.0}},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "slanext": {"out_channels": 50},
    "lightglue": {"keypoint_detector_config": {"keypoint_decoder_dim": 65}},
    "superglue": {
        "keypoint_detector_config": {"keypoint_decoder_dim": 65, "max_keypoints": 32},
        "gnn_layers_types": ["self", "cross"],
        "sinkhorn_iterations": 3,
    },
    "superpoint": {"keypoint_decoder_dim": 65},
    "seggpt": {"merge_index": 0, "image_size": (224, 112), "pretrain_image_size": 112},
    "omdet-turbo": {
        "backbone_config": {"img_size": 224, "out_indices": [1, 2, 3]},
        "image_size": 224,
        "encoder_in_channels": [192, 384, 768],
    },
    "efficientloftr": {"hidden_size": 64, "out_features": [16, 16, 32, 64]},
    "qwen2_5_omni_thinker": {"text_config": _MROPE, "vision_start_token_id": 901},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 901},
    "step3p5": {"sliding_window": 8},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "tvp": {"num_frames": 2},
    "gemma3": {"mm_tokens_per_image": 49},
    "shieldgemma2": {"mm_tokens_per_image": 49, "yes_token_index": 20, "no_token_index": 21},
    "t5gemma2": {
        "encoder": {"mm_tokens_per_image": 49, "text_config": {"dropout_rate": 0.0}},
        "decoder": {"dropout_rate": 0.0},
    },
    "idefics3": {"vision_config": {"image_size": 256}},
    "uvdoc": {"backbone_config": {"resnet_head": [[3, 32], [32, 32]], "out_indices": [1, 2, 3, 4, 5, 6]}},
    "uvdoc_backbone": {"resnet_head": [[3, 32], [32, 32]]},
    "mllama": {"vision_config": _TILES, "text_config": {"cross_attention_layers": [1]}},
    "mllama_vision_model": _TILES,
    "ovis2": {"hidden_size": 128},
    "dots3_note": {"audio_config": {"adapter_input_size": lambda scale: 1280 // scale.width}},
    "dots3_note_audio_encoder": {"adapter_input_size": lambda scale: 1280 // scale.width},
    "deepseek_ocr2_vision": {"sam_config": {"downsample_channels": [64, 128]}},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [0, 1, 0, 1],
        "vision_config": {"image_size": 256},
        "image_grid_pinpoints": [[256, 256]],
    },
    "gemma4": {"vision_config": _part("gemma4_vision"), "audio_config": _part("gemma4_audio")},
    "diffusion_gemma": {"text_config": _EXPERTS},
    "diffusion_gemma_text": _EXPERTS,
    "ernie4_5_vl_moe": {"text_config": _THREE_AXES, "vision_config": {"num_heads": 2}},
    "granite_speech": {"projector_config": {"encoder_hidden_size": 32}},
    "granite_speech_plus": {"projector_config": {"encoder_hidden_size": 32}},
    "edgetam": {
        "vision_config": {"backbone_config": _REPVIT, "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]]}
    },
    "edgetam_vision_model": {"backbone_config": _REPVIT},
    "llama4": {"vision_config": _LLAMA4_VISION},
    "llama4_vision_model": _LLAMA4_VISION,
    "modernvbert": {"vision_config": {"image_size": 64}},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "moonshine_streaming": {"num_key_value_heads": 2},
    "perception_lm": {"vision_config": {"architecture": "vit_pe_core_large_patch14_336", "model_args": _PE_CORE}},
    "sam2": {"vision_config": _HIERA_VISION},
    "sam2_hiera_det_model": _HIERA,
    "sam2_vision_model": _HIERA_VISION,
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[72, 72], [36, 36], [18, 18]]}},
    "rf_detr": {"backbone_config": {"image_size": 224}},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "univnet": {"kernel_predictor_hidden_channels": lambda scale: 64 // scale.width},
    "zoedepth": {"bottleneck_features": lambda scale: 256 // scale.width},
    "nemotron_h_omni": {"image_token_id": 900, "audio_token_id": 901, "video_token_id": 902},
    "pp_ocrv5_server_det": {
        "intraclass_block_config": _CROSS,
        **_FOUR_SCALES,
    },
    "pp_ocrv6_medium_det": {
        "intraclass_block_config": _CROSS,
        **_FOUR_SCALES,
        "backbone_config": _LCNET,
    },
    "pp_ocrv6_small_det": {
        **_FOUR_SCALES,
        "layer_list_out_channels": (8, 8, 8, 8),
        "backbone_config": _LCNET,
    },
    "pp_doclayout_v2": {"class_thresholds": [0.5] * 25, "class_order": list(range(25))},
    "janus": {
        "vq_config": {"base_channels": 32},
        "vision_config": {"projection_dim": lambda scale: 4096 // scale.width},
    },
    "janus_vqgan": {"base_channels": 32, "num_patches": 4},
    "emu3": {"vocabulary_map": _DIGITS, "vq_config": {"codebook_size": 16}},
    "clvp": {"speech_config": {"vocab_size": 1000}},
    "blt": {"use_cache": False, "encoder_hash_byte_group_vocab": 500},
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 900},
    "colmodernvbert": {"vlm_config": {"vision_config": {"image_size": 64}}},
    "colqwen2": {"vlm_config": {"vision_config": _QWEN2_VISION, "text_config": _MROPE}},
    "cvt": {"depth": (1, 2, 3)},  # a stage reads the depth of the next
    "deepseek_ocr2": {"text_config": _SPARSE, "vision_config": {"sam_config": {"downsample_channels": [64, 128]}}},
    "deepseek_ocr2_text": _SPARSE,
    "efficientnet": _ROUNDED,
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe": {"text_config": {**_MROPE_HALF, "head_dim": 16}},
    "glm4v_moe_text": {**_MROPE_HALF, "head_dim": 16},
    "glm_ocr": {"text_config": _MROPE_HALF},
    "glm_ocr_text": _MROPE_HALF,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": _HEADS_OF_16,
    "hunyuan_v1_moe": _HEADS_OF_16,
    "hunyuan_vl": {"text_config": {**_HEADS_OF_16, **_DRUM}},
    "hunyuan_vl_text": {**_HEADS_OF_16, **_DRUM},
    "informer": _TIMES,
    "instructblip": {"image_token_index": 900},
    "instructblipvideo": {"video_token_index": 900},
    "paddleocr_vl": {"text_config": _MROPE, "vision_config": {"hidden_size": 64}},
    "paddleocr_vl_text": _MROPE,
    "qwen2_5_omni_talker": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl": {"vision_config": _QWEN2_VISION, "text_config": _MROPE},
    "qwen2_vl_text": _MROPE,
    "recurrent_gemma": {"num_hidden_layers": 3},  # the third has attention
    "time_series_transformer": _TIMES,
    "xmod": {"default_language": "en_XX"},
    "yolos": {"image_size": (64, 96)},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},  # two share one
    "vipllava": {"vision_feature_layers": [-2, -1, 0, 1, 2]},
    "smolvlm": {"vision_config": {"image_size": 256}},
    "ultravbert": {"vision_config": {"image_size": 64}},
    "voxtral": {"audio_token_id": 900},
    "minicpm_ocr": {"image_token_id": 900},
    "minicpmv4_6": {"image_token_id": 900},
    "minicpmv4_7": {"image_token_id": 900},
    "reformer": {"axial_pos_shape": (2, 4), "hash_seed": 0, **_REFORMER},
    "qwen3_asr": {"audio_config": {"output_dim": lambda scale: 2048 // scale.width}},
    "qianfan_ocr": {"vision_config": {"drop_path_rate": 0.0}},
    "qianfan_ocr_vision": {"drop_path_rate": 0.0},
    "vitmatte": {
        "hidden_size": lambda scale: 768 // scale.width,
        "fusion_hidden_sizes": lambda scale: [32 * 2**i // scale.width for i in (3, 2, 1, 0)],
    },
    "timm_backbone": {"backbone": "test_resnet", "use_pretrained_backbone": False},
}


def names() -> list[str]:
    """List all model types."""
    import transformers

    return sorted(transformers.CONFIG_MAPPING)


def model_class(name: str) -> Any:
    """Return the class of a model type: the one that AutoModel builds, or one whose configuration it is.

    A configuration that only describes a part of another model belongs to no class; None then.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    config = transformers.CONFIG_MAPPING[name]
    maps = [each for key, each in vars(modeling_auto).items() if key.endswith("_MAPPING_NAMES") and name in each]
    listed = [each[name] for each in sorted(maps, key=lambda each: each is not modeling_auto.MODEL_MAPPING_NAMES)]
    flat = [each if isinstance(each, str) else each[0] for each in listed]
    found = [getattr(transformers, each) for each in flat if hasattr(getattr(transformers, each, None), "forward")]
    if found:
        return next((each for each in found if each.config_class is config), found[0])
    module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, transformers.PreTrainedModel)
        and each.config_class is config
        and "forward" in vars(each)
    ]
    return min(classes, key=lambda each: ("For" in each.__name__, len(each.__name__)), default=None)


def measure(name: str, row: dict[str, Any]) -> None:
    """Fill the row of a model type."""
    import torch

    row["family"] = name
    try:
        model_of = model_class(name)
        reason = _no_model(model_of)
    except ImportError as error:
        row |= {"status": "not installed", "reason": " ".join(str(error).split())[:100]}
        return
    if reason is not None:
        row |= {"status": "no model", "reason": reason}
        return
    problems: list[str] = []
    found = _first_that_runs(name, model_of, problems)
    if found is None:
        lacking = all(problem.startswith("ImportError") for problem in problems)
        reason = " | ".join(dict.fromkeys((problems[0], problems[-1])))
        row |= {"status": "not installed" if lacking else "not built", "reason": reason}
        return
    row["expected"] = expected(found[0].config)
    torch.manual_seed(0)
    if look(*found, row):
        verify(*found, row)


def _no_model(model_of: Any) -> str | None:
    if model_of is None:
        return "a part of another model: no class is built from this configuration alone"
    if model_of.forward.__name__ == "_forward_unimplemented":
        return f"{model_of.__name__} has no forward: it only generates, by calling models of other types"
    return None


def _first_that_runs(name: str, model_of: Any, problems: list[str]) -> tuple[Any, tuple[()], dict[str, Any]] | None:
    """Return the model in the first size in which it runs on all that it can take, or in which it runs at all."""
    import transformers

    default = transformers.CONFIG_MAPPING[name]()
    partly = None
    for scale in SCALES:
        try:
            found = _built(name, model_of, tiny(default, scale, FIELDS.get(name, {})))
        except Exception as error:
            problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:250]}")
            continue
        if name in INPUTS or _SENSES.intersection(Shapes(found[0]).parameters) <= found[2].keys():
            return found
        partly = partly or found
    return partly


def _built(name: str, model_of: Any, config: Any) -> tuple[Any, tuple[()], dict[str, Any]]:
    """Build a model that is not too large, and what it runs on."""
    import torch

    config.dtype = torch.float32
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_of(config).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} parameters, more than {LARGEST:,}")
    torch.manual_seed(0)
    model = model_of(config).eval()
    inputs = INPUTS[name](model) if name in INPUTS else example_inputs(model)
    with torch.no_grad():
        model(**inputs)
    return model, (), inputs
