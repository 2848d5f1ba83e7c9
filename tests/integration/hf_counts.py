"""How many residual branches a model type has, from its configuration: a second opinion on what is found.

Each formula was written from the forward code of the type, most of them before it was known what is found; where that
differed, the code was read again.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

__all__ = ["COUNTS", "expected"]

Count = Callable[[Any], int]
_POOLED = ("siglip_vision_model", "siglip2_vision_model", "phi4_multimodal_vision")
_DEPTHS = ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")


def expected(config: Any) -> int | str:
    """Return how many branches a configuration stands for; nothing if neither it nor its type's formula tells.

    Where the type has no formula, a layer has two, attention and MLP, and a decoder's layer a third, which reads the
    encoder; a model of several parts has theirs.
    """
    if config.model_type in COUNTS:
        return COUNTS[config.model_type](config)
    counts = [_part(each) for each in _inner(config)]
    decoders = [getattr(config, name, None) for name in ("decoder_layers", "num_decoder_layers")]
    depth = _depth(config)
    if not counts and depth is not None:
        decoder = next((each for each in decoders if each is not None), 0) if config.is_encoder_decoder else 0
        crossed = 3 if getattr(config, "add_cross_attention", False) else 2
        return crossed * depth + 3 * decoder
    return "" if not counts or "" in counts else sum(counts)


def _inner(config: Any) -> list[Any]:
    return [each for each in vars(config).values() if hasattr(each, "to_json_string")]


def _depth(config: Any) -> int | None:
    fields = {field.name for field in dataclasses.fields(config)}
    return next((d for d in (getattr(config, n) for n in _DEPTHS if n in fields) if isinstance(d, int)), None)


def _layers(each: int, more: int = 0) -> Count:
    """Count so many a layer, and some more beside them."""
    return lambda config: each * config.num_hidden_layers + more


def _part(config: Any) -> Any:
    """Count the branches of a part: the head that pools a picture to one vector is of no use there."""
    count = expected(config)
    return count - 1 if config.model_type in _POOLED else count


def _parts(config: Any) -> int:
    return sum(_part(each) for each in _inner(config))


def _blt_local(config: Any) -> int:
    # a cross-attention adds its input to its output, and so does who called it
    return 2 * config.num_hidden_layers + 2 * (config.num_hidden_layers if config.cross_attn_all_layers else 1)


def _dense_prediction(config: Any, stages: int) -> int:
    # each stage is refined by a unit of two convolutions, and so is what is added to all but the first
    return expected(config.backbone_config) + 2 * stages - 1


def _evolla(config: Any) -> int:
    step = max(config.num_hidden_layers // config.aligner_num_add_layers, 1)
    layers = config.num_hidden_layers + config.num_hidden_layers // step + config.resampler_depth
    return 2 * layers + expected(config.protein_encoder_config)


def _fastspeech2_conformer(config: Any) -> int:
    block = 2 + config.use_macaron_style_in_conformer + config.use_cnn_in_conformer
    return block * (config.encoder_layers + config.decoder_layers) + 3  # pitch, energy, postnet


def _gemma_text(config: Any) -> int:
    # the third reads what the token says to each layer
    return (3 if config.hidden_size_per_layer_input else 2) * config.num_hidden_layers


def _granite4_vision(config: Any) -> int:
    # a Q-Former for each layer of vision that is read, and for each of four parts of every window
    readers = len(config.deepstack_layer_map) + 4
    return expected(config.text_config) + _part(config.vision_config) + readers * _qformer(config.qformer_config)


def _granite_speech_encoder(config: Any) -> int:
    return 4 * config.num_layers + (config.num_layers > 1)  # halfway, its own prediction is fed back


def _groupvit_vision(config: Any) -> int:
    # tokens are grouped by attention, MLP, assignment and MLP
    return 2 * sum(config.depths) + 4 * sum(tokens > 0 for tokens in config.num_group_tokens)


def _instructblip(config: Any) -> int:
    # the queries read the picture, and have MLPs of their own beside the text's
    towers = expected(config.vision_config) + expected(config.text_config)
    return towers + _qformer(config.qformer_config) + config.qformer_config.num_hidden_layers


def _janus_vqgan(config: Any) -> int:
    # down and up alike: the level with the most channels has attention after each block, and so has the middle
    levels, blocks = len(config.channel_multiplier), config.num_res_blocks
    return (levels + 1) * blocks + 3 + (levels + 1) * (blocks + 1) + 3


def _llava(config: Any) -> int:
    # the deepest layer of vision that is read: none above it counts
    read, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = (each if each >= 0 else depth + 1 + each for each in ([read] if isinstance(read, int) else read))
    return expected(config.text_config) + 2 * min(depth, max(layers))


def _mimi_half(config: Any) -> int:
    return 2 * config.num_hidden_layers + len(config.upsampling_ratios) * config.num_residual_layers


def _minicpm(config: Any) -> int:
    # a layer of vision may be followed by what merges its patches: attention, MLP
    merges = config.downsample_mode != "4x" and config.insert_layer_id in range(config.vision_config.num_hidden_layers)
    return _parts(config) + 2 * merges


def _mobilebert(config: Any) -> int:
    # attention, all the MLPs, and where it is used the bottleneck around them
    return (1 + config.num_feedforward_networks + config.use_bottleneck) * config.num_hidden_layers


def _neucodec(config: Any) -> int:
    # three units a downsampling, four blocks around the decoder, an adapter; the semantic encoder has no gradient
    return 3 * len(config.downsampling_ratios) + 2 * config.num_hidden_layers + 5


def _pegasus_x(config: Any) -> int:
    # the encoder's layers have two streams; nothing reads what the last adds to that of the global tokens
    return 4 * config.encoder_layers - 2 + 3 * config.decoder_layers


def _pi0(config: Any) -> int:
    # the actions read keys and values: nothing reads what the last layer of the text adds
    return expected(config.vlm_config) - 2 + expected(config.dit_config)


def _qformer(config: Any) -> int:
    return 2 * config.num_hidden_layers + math.ceil(config.num_hidden_layers / config.cross_attention_frequency)


def _videomt(config: Any) -> int:
    # of two frames: the last blocks run for each; the second's queries are added to what the first made of them
    return 2 * (config.num_hidden_layers + config.num_blocks) + 1


def _vits(config: Any) -> int:
    # lengths are whole numbers; in a coupling's layers the branch is half of what a convolution returns: no gate fits
    vocoder = len(config.upsample_rates) * sum(map(len, config.resblock_dilation_sizes))
    return 2 * config.num_hidden_layers + config.prior_encoder_num_flows + vocoder


def _xclip(config: Any) -> int:
    # a layer of vision sends messages between frames, too; frames, and text with vision, are joined with a skip around
    vision = 3 * config.vision_config.num_hidden_layers + 2 * config.vision_config.mit_num_hidden_layers + 1
    return expected(config.text_config) + vision + 2 * config.prompt_layers + 1


COUNTS: dict[str, Count] = {
    "autoformer": lambda config: 2 * config.encoder_layers + 4 * config.decoder_layers,  # the fourth adds to the trend
    "blip_2_qformer": _qformer,
    "blt": lambda config: _parts(config) - expected(config.patcher_config),  # the patcher only cuts the text
    "blt_local_decoder": _blt_local,
    "blt_local_encoder": _blt_local,
    "bridgetower": lambda config: _parts(config) + 6 * config.num_hidden_layers,  # two stacks that read each other
    "canary": lambda config: expected(config.encoder_config) + 3 * config.decoder_config.num_hidden_layers,
    "canine": _layers(2, 4),  # one layer over characters before the deep encoder, one after
    "chmv2": lambda config: _dense_prediction(config, len(config.post_process_channels)),
    "clap_audio_model": lambda config: 2 * sum(config.depths),
    "clvp": lambda config: expected(config.text_config) + expected(config.speech_config),  # speech is read as codes
    "cohere_asr": lambda config: expected(config.encoder_config) + 3 * config.num_hidden_layers,
    "csm": lambda config: 2 * config.num_hidden_layers + expected(config.depth_decoder_config),  # sound comes as codes
    "data2vec-audio": _layers(2, 1),  # positions are convolutions of the sequence
    "deepseek_v4": lambda _: 0,  # several streams are mixed by what depends on them: no plain skip
    "depth_anything": lambda config: _dense_prediction(config, len(config.neck_hidden_sizes)),
    # the field of view is seen by another class
    "depth_pro": lambda config: expected(config.image_model_config) + expected(config.patch_model_config),
    "dia_decoder": _layers(3),
    # the text is read by one stack, and denoised by another
    "diffusion_gemma": lambda config: _parts(config) + expected(config.text_config),
    "embedding_gemma2_text": _gemma_text,
    "evolla": _evolla,
    "falcon_h1": _layers(3),  # Mamba and attention side by side, MLP
    "falcon_mamba": _layers(1),
    "fastspeech2_conformer": _fastspeech2_conformer,
    "fun_asr_nano_encoder": _layers(3, -1),  # a memory in the attention, which has no skip around it in the first
    "gemma4_audio": _layers(4),  # half an MLP, attention, convolution, half an MLP
    "gemma4_text": _gemma_text,
    "git": lambda config: 2 * config.num_hidden_layers + expected(config.vision_config),
    "glm5_next": lambda config: _part(config.vision_config),
    "glm5_next_text": lambda _: 0,  # as deepseek_v4
    "granite4_vision": _granite4_vision,
    "granite_speech5_encoder": _layers(4, 1),  # halfway, its own prediction is fed back
    "granite_speech_encoder": _granite_speech_encoder,
    "granite_speech_plus_encoder": _granite_speech_encoder,
    "granitemoehybrid": _layers(3),  # experts and an MLP that all share, side by side
    "groupvit_vision_model": _groupvit_vision,
    "higgs_audio_v2": _layers(3),  # text and sound have MLPs of their own
    "hubert": _layers(2, 1),
    "inkling_vision": lambda _: 0,  # patches are merged without skips
    "instructblip": _instructblip,
    "instructblipvideo": _instructblip,
    "janus": lambda config: expected(config.text_config) + expected(config.vision_config),  # VQ: when it generates
    "janus_vqgan": _janus_vqgan,
    "kyutai_speech_to_text": _layers(2),  # reads the codes, not the sound
    "lasr_encoder": _layers(4),
    "lilt": _layers(4, -2),  # text and layout; the last layer's layout goes nowhere
    "llava": _llava,
    "llava_next": _llava,
    "llava_next_video": _llava,
    "longcat_flash": lambda config: 5 * config.num_layers,  # twice attention and MLP; the experts join late
    "mamba": _layers(1),
    "mamba2": _layers(1),
    "mimi": _mimi_half,  # the encoder only chooses codes
    "mimi_decoder": _mimi_half,
    "mimi_encoder": _mimi_half,
    "minicpm_ocr": _minicpm,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": _minicpm,
    "mllama_vision_model": lambda config: 2 * (config.num_hidden_layers + config.num_global_layers),
    "mobilebert": _mobilebert,
    "moonshine_streaming": lambda config: expected(config.encoder_config) + 3 * config.num_hidden_layers,
    "moshi": _layers(2),  # the other parts are used when it generates
    "mra": _layers(1),  # without its kernels for CUDA the attention is zero
    "muse_spark_audio": lambda config: sum(config.depths),  # a convolution and its MLP share one
    "nemotron3_5_transcribe_word_timestamp": _layers(2, 1),  # one around all layers
    "nemotron_asr_streaming_encoder": _layers(4),
    "neucodec": _neucodec,
    "parakeet_encoder": _layers(4),
    "pegasus_x": _pegasus_x,
    "phi4_multimodal_vision": _layers(2, 1),  # the head that pools
    "pi0": _pi0,
    "pix2struct": lambda config: expected(config.vision_config) + 3 * config.text_config.num_layers,
    "pocket_tts_audio_tokenizer": lambda config: 2 * _mimi_half(config),
    "pocket_tts_audio_tokenizer_decoder": _mimi_half,
    "pocket_tts_audio_tokenizer_encoder": _mimi_half,
    "pp_formulanet": lambda config: expected(config.vision_config) + 3 * config.text_config.decoder_layers,
    "pp_formulanet_text": lambda config: 2 * config.decoder_layers,  # the decoder alone
    "prompt_depth_anything": lambda config: _dense_prediction(config, len(config.neck_hidden_sizes)),
    "prophetnet": lambda config: 2 * config.num_encoder_layers + 3 * config.num_decoder_layers,
    "qwen2_5_omni_bigvgan": lambda config: len(config.upsample_rates) * sum(map(len, config.resblock_dilation_sizes)),
    "qwen2_5_omni_dit": lambda config: 2 * config.num_hidden_layers + len(config.enc_channels) - 2,  # a speaker encoder
    "rag": lambda config: expected(config.generator),  # the passages are given
    "sam3_detr_encoder": lambda config: 3 * config.num_layers,
    "sam3_lite_text_detr_encoder": lambda config: 3 * config.num_layers,
    "sew": _layers(2, 1),
    "sew-d": _layers(2, 1),
    "siglip": lambda config: _parts(config) + 1,  # here the head counts
    "siglip2": lambda config: _parts(config) + 1,
    "siglip2_vision_model": _layers(2, 1),
    "siglip_vision_model": _layers(2, 1),
    "t5gemma": lambda config: expected(config.encoder) + 3 * config.decoder.num_hidden_layers,
    "timesfm": _layers(2, 1),  # what embeds a patch has a skip, too
    "timesfm2_5": _layers(2, 1),
    "tipsv2_dpt": lambda config: _dense_prediction(config, len(config.neck_hidden_sizes)),
    "unispeech": _layers(2, 1),
    "unispeech-sat": _layers(2, 1),
    "videomt": _videomt,
    "vipllava": _llava,
    "vits": _vits,
    "vjepa2": lambda config: 2 * (config.num_hidden_layers + config.pred_num_hidden_layers),
    "wav2vec2": _layers(2, 1),
    "wav2vec2-bert": _layers(4),
    "wav2vec2-conformer": _layers(4),
    "wavlm": _layers(2, 1),
    "xclip": _xclip,
    "xclip_vision_model": _layers(3),  # messages between frames
    "xcodec2": _neucodec,
    "xmod": _layers(3),  # an adapter of the language
    "zamba": lambda config: config.num_hidden_layers + config.layer_types.count("hybrid"),  # what Mamba reads
    "zaya": _layers(3, -1),  # attention, experts, and from the second on what the router remembers
    "zoedepth": lambda config: _dense_prediction(config, len(config.neck_hidden_sizes)),
}
