"""The residual branches of well-known models, counted by their papers and configurations.

A case says which classes own the additions and how many branches each of them adds: a wrong addition that makes up for
a missed one does not pass.
"""

import importlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero.surgery.find import find_residuals
from rezero.surgery.sites import Residuals

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries deprecate is not ours to mend

# timm. A depth (a, b, c, d) is the number of blocks of each stage, as the paper's table of architectures has it.
TIMM: dict[str, dict[str, int]] = {
    # He et al. 2015, table 1: one branch a block.
    "resnet18": {"BasicBlock": 2 + 2 + 2 + 2},
    "resnet34": {"BasicBlock": 3 + 4 + 6 + 3},
    "resnet50": {"Bottleneck": 3 + 4 + 6 + 3},
    "resnet101": {"Bottleneck": 3 + 4 + 23 + 3},
    "resnext50_32x4d": {"Bottleneck": 3 + 4 + 6 + 3},
    "wide_resnet50_2": {"Bottleneck": 3 + 4 + 6 + 3},
    "resnetv2_50": {"PreActBottleneck": 3 + 4 + 6 + 3},
    "seresnet50": {"Bottleneck": 3 + 4 + 6 + 3},
    "res2net50_26w_4s": {"Bottle2neck": 3 + 4 + 6 + 3},  # the additions inside a block, of its scales, aren't residual
    # Cao et al. 2019 (GCNet): the context is added inside every bottleneck, which is one more branch each.
    "gcresnet33ts": {"BottleneckBlock": 2 + 3 + 3 + 2, "GlobalContext": 2 + 3 + 3 + 2},
    "regnety_002": {"Bottleneck": 1 + 1 + 4 + 7},  # Radosavovic et al. 2020, d_i of RegNetY-200MF
    "nfnet_f0": {"NormFreeBlock": 1 + 2 + 6 + 3},  # Brock et al. 2021, table 1
    "dla34": {"DlaBasic": 2 * (1 + 2 + 2 + 1)},  # Yu et al. 2018: 1, 2, 2, 1 pairs of blocks; roots without residual
    # Wang et al. 2019, W18-C-Small-V1: one bottleneck, then 2 blocks on each of 2, 3, 4 branches; the head widens each
    # of the four with a bottleneck. The sums that fuse resolutions have no skip.
    "hrnet_w18_small": {"Bottleneck": 1 + 4, "BasicBlock": 2 * (2 + 3 + 4)},
    "inception_resnet_v2": {"Block35": 10, "Block17": 20, "Block8": 9 + 1},  # Szegedy et al. 2016; the last has no ReLU
    "legacy_xception": {"Block": 12},  # Chollet 2017: 14 modules, the first and last without a skip
    "xception41": {"XceptionModule": 3 + 8 + 1},  # Chen et al. 2018: entry, middle, exit flow; the last module has none
    "darknet53": {"DarkBlock": 1 + 2 + 8 + 8 + 4},  # Redmon and Farhadi 2018, table 1
    # Mobile networks: a branch where the stride is 1 and the width stays, so not in the first block of most stages.
    "mobilenetv2_100": {"InvertedResidual": 0 + 1 + 2 + 3 + 2 + 2 + 0},  # Sandler et al. 2018, table 2: n - 1
    "mobilenetv3_large_100": {"DepthwiseSeparableConv": 1, "InvertedResidual": 1 + 2 + 3 + 1 + 2},  # Howard 2019
    "mnasnet_100": {"InvertedResidual": 2 + 2 + 2 + 1 + 3 + 0},  # Tan et al. 2018, MnasNet-B1: n - 1
    "efficientnet_b0": {"InvertedResidual": 0 + 1 + 1 + 2 + 2 + 3 + 0},  # Tan and Le 2019, table 1: n - 1
    # Tan and Le 2021: EfficientNetV2-B0 has 1, 2, 2, 3, 5, 8 blocks; the fifth stage has stride 1, but widens.
    "tf_efficientnetv2_b0": {"EdgeResidual": 1 + 1, "InvertedResidual": 2 + 4 + 7},
    "ghostnet_100": {"GhostBottleneck": 16},  # Han et al. 2019, table 1: a shortcut in every G-bneck
    "ghostnetv2_100": {"GhostBottleneck": 16},  # Tang et al. 2022: as before, with an attention inside the branch
    # Convolutional networks in the manner of Transformers.
    "convnext_tiny": {"ConvNeXtBlock": 3 + 3 + 9 + 3},  # Liu et al. 2022
    "convnextv2_atto": {"ConvNeXtBlock": 2 + 2 + 6 + 2},  # Woo et al. 2023; GRN has no layer, so its sum is no branch
    "convmixer_768_32": {"Residual": 32},  # Trockman and Kolter 2022: only around the depthwise convolution
    "poolformer_s12": {"MetaFormerBlock": 2 * (2 + 2 + 6 + 2)},  # Yu et al. 2021
    "caformer_s18": {"MetaFormerBlock": 2 * (3 + 3 + 9 + 3)},  # Yu et al. 2022
    "focalnet_tiny_srf": {"FocalNetBlock": 2 * (2 + 2 + 6 + 2)},  # Yang et al. 2022
    # MLPs: tokens and channels.
    "mixer_s16_224": {"MixerBlock": 2 * 8},  # Tolstikhin et al. 2021, table 1
    "resmlp_12_224": {"ResBlock": 2 * 12},  # Touvron et al. 2021
    "gmlp_s16_224": {"SpatialGatingBlock": 30},  # Liu et al. 2021: one a block
    # Vision Transformers: attention and MLP.
    "vit_tiny_patch16_224": {"Block": 2 * 12},
    "vit_base_patch16_224": {"Block": 2 * 12},
    "vit_large_patch16_224": {"Block": 2 * 24},
    "vit_small_patch16_18x2_224": {"ParallelThingsBlock": 2 * 2 * 18},  # Touvron et al. 2022: two of each in parallel
    "deit_tiny_distilled_patch16_224": {"Block": 2 * 12},  # the average of the two heads is no residual
    "beit_base_patch16_224": {"Block": 2 * 12},
    "cait_xxs24_224": {"LayerScaleBlock": 2 * 24, "LayerScaleBlockClassAttn": 2 * 2},  # Touvron et al. 2021, table 1
    "volo_d1_224": {"Outlooker": 2 * 4, "Transformer": 2 * (4 + 8 + 2), "ClassBlock": 2 * 2},  # Yuan et al. 2021
    # Han et al. 2021: 12 pairs of an inner and an outer Transformer; the inner one's result widens into the outer.
    "tnt_s_patch16_224": {"Block": 2 * 2 * 12},
    # Chen et al. 2021: 3 times 1 small and 4 large blocks, then one cross-attention each way, without an MLP.
    "crossvit_tiny_240": {"Block": 2 * 3 * (1 + 4), "CrossAttentionBlock": 3 * 2},
    "swin_tiny_patch4_window7_224": {"SwinTransformerBlock": 2 * (2 + 2 + 6 + 2)},
    "swinv2_tiny_window8_256": {"SwinTransformerV2Block": 2 * (2 + 2 + 6 + 2)},
    "twins_svt_small": {"Block": 2 * (2 + 2 + 10 + 4), "PosConv": 4},  # Chu et al. 2021: x + conv(x) once a stage
    "twins_pcpvt_small": {"Block": 2 * (3 + 4 + 6 + 3), "PosConv": 4},
    "pvt_v2_b0": {"Block": 2 * (2 + 2 + 2 + 2)},  # Wang et al. 2021
    # Dai et al. 2021 with timm's depths 2, 3, 7, 2: two stages of convolutions, two of attention.
    "coatnet_0_rw_224": {"MbConvBlock": 2 + 3, "TransformerBlock2d": 2 * (7 + 2)},
    # Tu et al. 2022: an MBConv, then attention and MLP over blocks and over the grid.
    "maxvit_tiny_tf_224": {"MbConvBlock": 2 + 2 + 5 + 2, "PartitionAttentionCl": 2 * 2 * (2 + 2 + 5 + 2)},
    # Ding et al. 2022: spatial then channel attention, each with an MLP and two convolutional position encodings.
    "davit_tiny": {"SpatialBlock": 2 * 6, "ChannelBlock": 2 * 6, "ConvPosEnc": 2 * 2 * 6},
    "edgenext_xx_small": {"ConvBlock": 2 + 1 + 5 + 1, "SplitTransposeBlock": 2 * 3},  # Maaz et al. 2022, table 1
    "mvitv2_tiny": {"MultiScaleBlock": 2 * (1 + 2 + 5 + 2)},  # Li et al. 2021; pooled queries are added inside branches
    # Ryali et al. 2023: where a stage begins, the skip around the attention is projected and max-pooled.
    "hiera_tiny_224": {"HieraBlock": 2 * (1 + 2 + 7 + 2)},
    "mobilevit_xxs": {"BottleneckBlock": 1 + 2, "Block": 2 * (2 + 4 + 3)},  # Mehta and Rastegari 2021
    "efficientformer_l1": {"MetaBlock2d": 2 * (3 + 2 + 6 + 3), "MetaBlock1d": 2 * 1},  # Li et al. 2022
    "levit_128": {"LevitBlock": 2 * (4 + 4 + 4), "LevitDownsample": 2},  # Graham et al. 2021: shrinking has no skip
    # Ali et al. 2021: attention, local patches and MLP; two blocks of class attention, which no layer returns whole
    "xcit_nano_12_p8_224": {"XCABlock": 3 * 12, "ClassAttentionBlock": 2 * 2},
    # Han et al. 2021: 16 blocks; none where the stride is 2 (4 of them) or the width shrinks (the first). The skip
    # goes into the first channels of the branch only.
    "rexnet_100": {"LinearBottleneck": 16 - 4 - 1},
    "densenet121": {},  # concatenates
    "vgg16": {},
}

# transformers, each with two layers: the branches of a layer times two. Two a layer are attention and MLP.
WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**WIDTH, "vocab_size": 50}
GROUPED = {**TEXT, "num_key_value_heads": 1}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
IMAGE = {**WIDTH, "image_size": 32, "patch_size": 16}
AUDIO = {
    **TEXT,
    "conv_dim": [8, 8],
    "conv_kernel": [4, 2],
    "conv_stride": [4, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "vocab_size": 50}
BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 50,
}
TRANSFORMERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    # Decoders
    "GPT2Model": (GPT, {"GPT2Block": 2 * 2}),
    "OpenAIGPTModel": (GPT, {"Block": 2 * 2}),
    "GPTNeoModel": (
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 50,
            "attention_types": [[["global", "local"], 1]],
        },
        {"GPTNeoBlock": 2 * 2},
    ),
    "GPTJModel": ({**GPT, "rotary_dim": 4}, {"GPTJBlock": 2 * 2}),  # in parallel, as in the next five
    "GPTNeoXModel": (TEXT, {"GPTNeoXLayer": 2 * 2}),
    "PhiModel": (TEXT, {"PhiDecoderLayer": 2 * 2}),
    "CodeGenModel": ({**GPT, "n_head": 4, "rotary_dim": 4, "n_inner": 24}, {"CodeGenBlock": 2 * 2}),
    "CohereModel": ({**TEXT, "pad_token_id": 0}, {"CohereDecoderLayer": 2 * 2}),
    "FalconModel": (
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50},
        {"FalconDecoderLayer": 2 * 2},
    ),
    "OPTModel": (
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 24,
            "vocab_size": 50,
            "word_embed_proj_dim": 16,
        },
        {"OPTDecoderLayer": 2 * 2},
    ),
    "BloomModel": (
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50},
        {"BloomAttention": 2, "BloomMLP": 2},
    ),
    "MptModel": ({"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 50}, {"MptBlock": 2, "MptMLP": 2}),
    "LlamaModel": (TEXT, {"LlamaDecoderLayer": 2 * 2}),
    "MistralModel": (GROUPED, {"MistralDecoderLayer": 2 * 2}),
    "Qwen2Model": (GROUPED, {"Qwen2DecoderLayer": 2 * 2}),
    "Qwen3Model": ({**GROUPED, "head_dim": 8}, {"Qwen3DecoderLayer": 2 * 2}),
    "Phi3Model": ({**TEXT, "pad_token_id": 0}, {"Phi3DecoderLayer": 2 * 2}),
    "GemmaModel": ({**GROUPED, "head_dim": 8}, {"GemmaDecoderLayer": 2 * 2}),
    "Gemma2Model": ({**GROUPED, "head_dim": 8}, {"Gemma2DecoderLayer": 2 * 2}),
    "Gemma3TextModel": ({**GROUPED, "head_dim": 8}, {"Gemma3DecoderLayer": 2 * 2}),
    "Olmo2Model": (TEXT, {"Olmo2DecoderLayer": 2 * 2}),
    # Mixtures of experts: all experts together are one branch
    "MixtralModel": ({**GROUPED, "num_local_experts": 4}, {"MixtralDecoderLayer": 2 * 2}),
    "Qwen2MoeModel": (
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        {"Qwen2MoeDecoderLayer": 2 * 2},
    ),
    "DeepseekV3Model": (
        {
            **TEXT,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        {"DeepseekV3DecoderLayer": 2 * 2},
    ),
    # State spaces and linear attention: one a layer, or time mixing and channel mixing
    "MambaModel": ({"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}, {"MambaBlock": 2}),
    "Mamba2Model": (
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "vocab_size": 50,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
        },
        {"Mamba2Block": 2},
    ),
    "RwkvModel": (
        {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50, "attention_hidden_size": 16},
        {"RwkvBlock": 2 * 2},
    ),
    "RecurrentGemmaModel": (
        {**GROUPED, "lru_width": 16, "block_types": ["recurrent", "attention"]},
        {"RecurrentGemmaDecoderLayer": 2 * 2},
    ),
    # Encoders
    "BertModel": (TEXT, {"BertSelfOutput": 2, "BertOutput": 2}),
    "RobertaModel": (TEXT, {"RobertaSelfOutput": 2, "RobertaOutput": 2}),
    "ElectraModel": ({**TEXT, "embedding_size": 8}, {"ElectraSelfOutput": 2, "ElectraOutput": 2}),
    "FNetModel": (TEXT, {"FNetBasicOutput": 2, "FNetOutput": 2}),  # Lee-Thorp et al. 2021: Fourier transform and MLP
    # Sun et al. 2020: attention, four MLPs and the bottleneck around all of them
    "MobileBertModel": (
        {**TEXT, "intra_bottleneck_size": 8, "embedding_size": 8, "true_hidden_size": 8},
        {"MobileBertSelfOutput": 2, "FFNOutput": 2 * 3, "MobileBertOutput": 2, "OutputBottleneck": 2},
    ),
    "DistilBertModel": (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 50},
        {"TransformerBlock": 2 * 2},
    ),
    "DebertaV2Model": (
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        {"DebertaV2SelfOutput": 2, "DebertaV2Output": 2},
    ),
    "ModernBertModel": (
        {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        {"ModernBertEncoderLayer": 2 * 2},
    ),
    # Encoder and decoder: 2 and 3 a layer
    "T5Model": (T5, {"T5LayerSelfAttention": 2 + 2, "T5LayerCrossAttention": 2, "T5LayerFF": 2 + 2}),
    "BartModel": (BART, {"BartEncoderLayer": 2 * 2, "BartDecoderLayer": 3 * 2}),
    "PegasusModel": (BART, {"PegasusEncoderLayer": 2 * 2, "PegasusDecoderLayer": 3 * 2}),
    "WhisperModel": (
        {
            **BART,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        {"WhisperEncoderLayer": 2 * 2, "WhisperDecoderLayer": 3 * 2},
    ),
    # Images and sound
    "ViTModel": (IMAGE, {"ViTLayer": 2 * 2}),
    "Dinov2Model": (IMAGE, {"Dinov2Layer": 2 * 2}),
    "SwinModel": (
        {
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 2,
            "image_size": 32,
            "patch_size": 4,
        },
        {"SwinLayer": 2 * 2},
    ),
    "CLIPModel": (
        {
            "text_config": {**TEXT, "projection_dim": 8},
            "vision_config": {**IMAGE, "projection_dim": 8},
            "projection_dim": 8,
        },
        {"CLIPEncoderLayer": 2 * 2 + 2 * 2},
    ),
    # Baevski et al. 2020: before the layers, the convolutional position embedding is a branch, too: x + gelu(conv(x))
    "Wav2Vec2Model": (AUDIO, {"Wav2Vec2Encoder": 1, "Wav2Vec2EncoderLayer": 2 * 2}),
    # Gulati et al. 2020: half an MLP, attention, convolution, half an MLP
    "Wav2Vec2ConformerModel": ({**AUDIO, "conv_depthwise_kernel_size": 3}, {"Wav2Vec2ConformerEncoderLayer": 4 * 2}),
}


def owners(model: nn.Module, found: Residuals) -> dict[str, int]:
    """Count the branches by the class whose code adds them."""
    counts: Counter[str] = Counter()
    for site in found:
        counts[type(model.get_submodule(site.name)).__name__] += len(site.branches)
    return dict(counts)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep torch's log still: it reports a fake kernel that fails before the error is handled."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.disabled, before = True, logger.disabled
    yield
    logger.disabled = before


def timm_model(name: str) -> tuple[nn.Module, Tensor]:
    timm = importlib.import_module("timm")
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model, torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")


def transformers_model(
    name: str, config: Mapping[str, Any], *, device: str = "cpu"
) -> tuple[nn.Module, dict[str, Tensor]]:
    family = getattr(importlib.import_module("transformers"), name)
    with torch.device(device):
        model: nn.Module = family(family.config_class(**config))
    ids, image = torch.ones(1, 6, dtype=torch.long), torch.zeros(1, 3, 32, 32)
    match model.main_input_name:
        case "pixel_values":
            return model, {"pixel_values": image}
        case "input_values":
            return model, {"input_values": torch.zeros(1, 160)}
        case "input_features":
            return model, {"input_features": torch.zeros(1, 8, 20), "decoder_input_ids": ids}
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if hasattr(model, "vision_model"):
        inputs["pixel_values"] = image
    return model, inputs


@pytest.mark.parametrize("name", TIMM)
def test_timm_model_has_the_branches_of_its_paper(name: str) -> None:
    """In a timm model the branches found, by the class that adds them, are those of the architecture."""
    model, x = timm_model(name)
    found = find_residuals(model, x)
    assert owners(model, found) == TIMM[name]
    assert not any(each.refused for each in found.left_out)


def test_torchvision_resnet_has_a_branch_a_block() -> None:
    """In torchvision's ResNet-50 every bottleneck has one branch, four of them beside a projection."""
    models = importlib.import_module("torchvision.models")
    with torch.device("meta"):
        model = models.resnet50()
    found = find_residuals(model, torch.empty(1, 3, 64, 64, device="meta"))
    assert owners(model, found) == {"Bottleneck": 3 + 4 + 6 + 3}
    assert Counter(site.kind for site in found) == {"identity": 12, "projection": 4}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hugging_face_model_has_the_branches_of_its_paper(name: str) -> None:
    """In a transformers model the branches found, by the class that adds them, are those of the architecture."""
    config, expected = TRANSFORMERS[name]
    model, inputs = transformers_model(name, config)
    found = find_residuals(model, kwargs=inputs)
    assert owners(model, found) == expected
    assert not any(each.refused for each in found.left_out)


# Found, but refused: no gate can be given to these, and each is named.


def test_albert_is_refused_by_name() -> None:
    """ALBERT runs one layer twice: its four branches are refused, with the module that is used twice."""
    model, inputs = transformers_model("AlbertModel", {**TEXT, "embedding_size": 8})
    found = find_residuals(model, kwargs=inputs)
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    assert len(found) == 0
    assert [(each.name, each.reason) for each in found.left_out if each.refused] == [
        (f"{layer}.attention", f"{layer}.attention.dense is used 2 times"),
        (layer, f"{layer}.ffn_output is used 2 times"),
    ] * 2


def test_albert_can_be_tied() -> None:
    """On demand ALBERT's one layer gets a gate for its attention and one for its MLP, as its weights are tied."""
    model, inputs = transformers_model("AlbertModel", {**TEXT, "embedding_size": 8})
    found = find_residuals(model, kwargs=inputs, repeated="tie")
    assert len(found.branches) == 2 * 2
    assert len({branch.leaf for branch in found.branches}) == 2
    assert not any(each.refused for each in found.left_out)


def test_xlnet_attention_is_refused() -> None:
    """XLNet's attention multiplies by its own parameter in its own code: refused; the two MLPs are found."""
    config = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 50}
    model, inputs = transformers_model("XLNetModel", config)
    found = find_residuals(model, kwargs=inputs)
    assert owners(model, found) == {"XLNetFeedForward": 2}
    assert [each.name for each in found.left_out if each.refused] == ["layer.0.rel_attn", "layer.1.rel_attn"]


# Depth, where it is cheap: nothing is allocated.


def test_gpt2_xl_on_the_meta_device() -> None:
    """GPT-2 XL's configuration has 2 branches in each of 48 layers, found without its 1.5 billion numbers."""
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(n_embd=1600, n_layer=48, n_head=25)
    with torch.device("meta"):
        model = transformers.GPT2Model(config)
    found = find_residuals(model, kwargs={"input_ids": torch.zeros(1, 8, dtype=torch.long)})
    assert owners(model, found) == {"GPT2Block": 2 * 48}
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["BertModel", "LlamaModel", "T5Model", "SwinModel", "DebertaV2Model"])
def test_masks_and_position_biases_are_no_long_skips(name: str) -> None:
    """Asking for long skips, with an attention mask given, adds nothing to a model that has none."""
    config, expected = TRANSFORMERS[name]
    model, inputs = transformers_model(name, config)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0]])
    found = find_residuals(model, kwargs=inputs, long_skips=True)
    assert owners(model, found) == expected
