"""A check finds nothing in healthy models: of this library, of torch, of timm, of transformers, of a user's own."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.diagnose import check
from rezero.layers import MLP, LanguageModel, ResNet, TransformerDecoderLayer, TransformerEncoderLayer
from rezero.transformer import RZTXEncoderLayer

X_BD, X_BTD = torch.randn(4, 16), torch.randn(2, 5, 16)
IMAGE, TOKENS = torch.randn(2, 3, 32, 32), torch.randint(50, (2, 8))
Made = tuple[nn.Module, Any]


def branch() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


class Loop(nn.Module):
    """Somebody's own: one block used several times, with a tanh gate a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = rezero.ReZero(branch(), gate=rezero.Gate(16, activation="tanh")), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Use the block four times."""
        for _ in range(4):
            x = self.block(x)
        out: Tensor = self.head(x)
        return out


class Frozen(nn.Module):
    """Somebody's own: a trained trunk that is frozen, with gated adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(branch().requires_grad_(False) for _ in range(3))
        self.adapters = nn.ModuleList(rezero.ReZero(branch()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Alternate."""
        for layer, adapter in zip(self.trunk, self.adapters, strict=True):
            x = adapter(x + layer(x))
        return x


OWN: dict[str, Callable[[], Made]] = {
    "blocks": lambda: (nn.Sequential(*(rezero.ReZero(branch()) for _ in range(8))), X_BTD),
    "50 blocks": lambda: (nn.Sequential(*(rezero.ReZero(nn.Linear(16, 16)) for _ in range(50))), X_BD),
    "a gate a feature": lambda: (
        nn.Sequential(*(rezero.ReZero(branch(), gate=rezero.Gate(16)) for _ in range(3))),
        X_BTD,
    ),
    "started at 0.1": lambda: (
        nn.Sequential(*(rezero.ReZero(branch(), gate=rezero.Gate(init_value=0.1)) for _ in range(3))),
        X_BTD,
    ),
    "one block four times": lambda: (Loop(), X_BTD),
    "adapters": lambda: (Frozen(), X_BTD),
    "MLP": lambda: (MLP(16, 32, 12, 4, residual="rezero"), X_BD),
    "MLP, skipinit": lambda: (MLP(16, 32, 12, 4, residual="skipinit"), X_BD),
    "ResNet-8": lambda: (ResNet(8, 4, residual="rezero", width=8), IMAGE),
    "language model": lambda: (LanguageModel(32, 4, 4, residual="rezero", vocab_size=50, share="layer"), TOKENS),
    "encoder layers": lambda: (
        nn.Sequential(*(TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))),
        X_BTD,
    ),
    "decoder layer": lambda: (TransformerDecoderLayer(16, 2, 32, batch_first=True), (X_BTD, X_BTD)),
    "rezero 0.1.0's": lambda: (nn.Sequential(*(RZTXEncoderLayer(16, 2, 32) for _ in range(3))), X_BTD),
}


def torch_layer(kind: type[nn.Module], **options: Any) -> nn.Module:
    return kind(16, 2, 32, batch_first=True, **options)


TORCH: dict[str, Callable[[], Made]] = {
    "post-norm": lambda: (nn.Sequential(*(torch_layer(nn.TransformerEncoderLayer) for _ in range(3))), X_BTD),
    "pre-norm": lambda: (
        nn.Sequential(*(torch_layer(nn.TransformerEncoderLayer, norm_first=True) for _ in range(3))),
        X_BTD,
    ),
    "decoder": lambda: (torch_layer(nn.TransformerDecoderLayer), (X_BTD, X_BTD)),
}

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 2},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 2},
    "resnet10t": {},
    "resnet26": {},
    "convnext_atto": {},
    "regnetx_002": {},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
}


def from_timm(name: str) -> Made:
    return timm.create_model(name, num_classes=4, **TIMM[name]), IMAGE


def from_transformers(kind: str, **options: Any) -> Made:
    """Make a model with two layers and width 32."""
    config = transformers.CONFIG_MAPPING[kind](**options)
    return transformers.AutoModel.from_config(config), TOKENS


HF = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50},
    "llama": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "mistral": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
}

OTHERS: dict[str, Callable[[], Made]] = {
    **TORCH,
    **{name: lambda name=name: from_timm(name) for name in TIMM},
    "mixer": lambda: (timm.models.MlpMixer(4, img_size=32, patch_size=8, num_blocks=2, embed_dim=64), IMAGE),
    **{kind: lambda kind=kind: from_transformers(kind, **HF[kind]) for kind in HF},
}


def converted(make: Callable[[], Made]) -> Made:
    """Convert with activations moved into the branches."""
    model, x = make()
    return rezero.convert_(model, x, activation_after="move", verify=False).model, x


MODELS = {**OWN, **{name: lambda make=make: converted(make) for name, make in OTHERS.items()}}


def loss_of(model: nn.Module, x: Any) -> Tensor:
    out = model(*x) if isinstance(x, tuple) else model(x)
    total: Tensor = (out if isinstance(out, Tensor) else out[0]).float().sub(1).square().mean()
    return total


def test_there_are_thirty() -> None:
    """Or more."""
    assert len(MODELS) >= 30


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_found(name: str) -> None:
    """At the start, after one step of a warm-up, whose rate is zero, and after twelve."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    optimizer = torch.optim.AdamW(rezero.param_groups(model, lr=1e-3, weight_decay=0.01))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 5))
    assert str(check(model, x, optimizer)).splitlines()[0].endswith("no findings"), check(model, x, optimizer)
    for step in range(12):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        schedule.step()
        if step in (0, 11):
            found = check(model, lambda model: loss_of(model, x), optimizer)
            assert (tuple(found), found.notes) == ((), ())
