"""The models of timm: the smallest of each family is verified, the others are traced."""

from typing import Any

from tests.integration.measure import look, verify
from tests.surgery.test_counts import TIMM

__all__ = ["measure", "names"]

VERIFIED_BELOW = 200_000_000  # parameters
_CHOSEN = {"vovnet": "ese_vovnet39b", "senet": "legacy_seresnet18", "mobilenetv5": "mobilenetv5_base"}  # else by name
_LARGE_IMAGE = 512  # pixels a side, of which one is enough
_IMAGE = {"samvit_base_patch16": 256}  # pixels a side, where the model allows for fewer


def names() -> list[str]:
    """List all models."""
    import timm

    return timm.list_models()


def measure(name: str, row: dict[str, Any]) -> None:
    """Fill the row of a model."""
    import timm
    import torch

    row["family"] = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    row["expected"] = sum(TIMM[name].values()) if name in TIMM else ""
    with torch.device("meta"):
        model = timm.create_model(name)
    shape = model.default_cfg["input_size"]
    if not look(model, (torch.empty(1, *shape, device="meta"),), None, row):
        return
    if name in _smallest() and row["parameters"] < VERIFIED_BELOW:
        options = {"img_size": _IMAGE[name]} if name in _IMAGE else {}
        size = (_IMAGE[name], _IMAGE[name]) if name in _IMAGE else shape[1:]
        images = torch.randn(1 if size[0] > _LARGE_IMAGE else 2, shape[0], *size)
        verify(timm.create_model(name, **options), (images,), None, row)


def _smallest() -> set[str]:
    """Name the model of each family that is verified: the one whose name suggests the least work."""
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    small = ("atto", "femto", "pico", "nano", "xxs", "tiny", "xs", "small", "_s", "18", "b0", "050")
    rank = {word: place for place, word in enumerate(small)}
    return {
        _CHOSEN.get(family.rpartition(".")[2])
        or min(names, key=lambda name: (min((rank[w] for w in small if w in name), default=99), len(name)))
        for family, names in families.items()
    }
