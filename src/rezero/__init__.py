"""ReZero for PyTorch: residual blocks ``y = x + alpha * branch(x)`` whose ``alpha`` starts at zero.

Names are resolved when first used, so that the command line's ``--help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rezero import diagnose, functional, layers, transformer
    from rezero.gate import Gate, gates
    from rezero.hold import hold_gates
    from rezero.optim import param_groups
    from rezero.residual import ReZero
    from rezero.stack import DeepStack
    from rezero.surgery.convert import Conversion, convert_
    from rezero.surgery.find import find_residuals
    from rezero.surgery.fold import Folded, fold_
    from rezero.surgery.graft import Graft
    from rezero.surgery.graft_file import load_graft_
    from rezero.surgery.grow import Growth, grow_
    from rezero.surgery.insert import graft_
    from rezero.surgery.prune import Pruned, prune_
    from rezero.surgery.saved import from_pretrained, load_converted_, save_converted
    from rezero.surgery.sites import Residuals

__version__ = "0.2.0"

__all__ = [  # noqa: RUF022 - grouped by what a reader looks for, not by alphabet
    # the block
    "ReZero",
    "Gate",
    "gates",
    "DeepStack",
    # other people's models
    "find_residuals",
    "convert_",
    "prune_",
    "fold_",
    "save_converted",
    "load_converted_",
    "from_pretrained",
    # new blocks in a trained model
    "graft_",
    "load_graft_",
    "grow_",
    "Graft",
    "Growth",
    # what these return
    "Residuals",
    "Conversion",
    "Pruned",
    "Folded",
    # training
    "param_groups",
    "hold_gates",
    "diagnose",
    # modules
    "functional",
    "layers",
    "transformer",
]

_HOME = {
    "ReZero": "rezero.residual",
    "DeepStack": "rezero.stack",
    "Gate": "rezero.gate",
    "gates": "rezero.gate",
    "find_residuals": "rezero.surgery.find",
    "Residuals": "rezero.surgery.sites",
    "convert_": "rezero.surgery.convert",
    "Conversion": "rezero.surgery.convert",
    "fold_": "rezero.surgery.fold",
    "from_pretrained": "rezero.surgery.saved",
    "save_converted": "rezero.surgery.saved",
    "load_converted_": "rezero.surgery.saved",
    "graft_": "rezero.surgery.insert",
    "Graft": "rezero.surgery.graft",
    "load_graft_": "rezero.surgery.graft_file",
    "grow_": "rezero.surgery.grow",
    "Growth": "rezero.surgery.grow",
    "Folded": "rezero.surgery.fold",
    "prune_": "rezero.surgery.prune",
    "Pruned": "rezero.surgery.prune",
    "param_groups": "rezero.optim",
    "hold_gates": "rezero.hold",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in __all__ or name in ("charts", "integrations", "lab"):  # which need other packages
        value = import_module(f"rezero.{name}")
    else:
        raise AttributeError(f"module 'rezero' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
