"""The two classes of rezero 0.1.0, still working: its arguments, its checkpoints, its outputs."""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from rezero import layers

__all__ = ["RZTXDecoderLayer", "RZTXEncoderLayer"]


class _Version010(nn.Module):
    """What both classes owe to old code: ``resweight``, as an attribute and in checkpoints."""

    gates: nn.ModuleList

    @property
    def resweight(self) -> nn.Parameter:
        """The tied ``alpha``, ``(1,)``, under its name in 0.1.0."""
        if len(self.gates) > 1:  # a layer built with share="sublayer" has no such thing
            raise AttributeError
        return cast(nn.Parameter, self.gates[0].alpha)

    @staticmethod
    def _rename_resweight(_module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
        if f"{prefix}resweight" in state_dict:
            state_dict[f"{prefix}gates.0.alpha"] = state_dict.pop(f"{prefix}resweight")


class RZTXEncoderLayer(_Version010, layers.TransformerEncoderLayer):
    r"""Encoder layer of rezero 0.1.0: one ``alpha`` for both branches.

    Equal to ``rezero.layers.TransformerEncoderLayer(..., share="layer")``. Loads the state dicts of 0.1.0, whose
    ``resweight`` becomes ``gates.0.alpha``, and runs inside today's ``nn.TransformerEncoder``.

    Args:
        d_model: Width ``D``.
        nhead: Number of attention heads.
        dim_feedforward: Inner width of the feed-forward branch.
        dropout: Probability of dropping an entry.
        activation: ``"relu"``, ``"gelu"`` or a callable.
        **options: Further keywords of `rezero.layers.TransformerEncoderLayer`, such as ``batch_first``.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 5.

    Example:
        >>> import torch
        >>> layer, x = RZTXEncoderLayer(16, 2), torch.randn(5, 2, 16)
        >>> torch.equal(layer(x), x)
        True
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        **options: Any,
    ) -> None:
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation, **{"share": "layer", **options})
        self.register_load_state_dict_pre_hook(self._rename_resweight)  # type: ignore[no-untyped-call]


class RZTXDecoderLayer(_Version010, layers.TransformerDecoderLayer):
    r"""Decoder layer of rezero 0.1.0: one ``alpha`` for its three branches.

    Equal to ``rezero.layers.TransformerDecoderLayer(..., share="layer")``. Loads the state dicts of 0.1.0, whose
    ``resweight`` becomes ``gates.0.alpha``, and runs inside today's ``nn.TransformerDecoder``. An unknown activation is
    an error; 0.1.0 took it for ReLU without a word.

    Args:
        d_model: Width ``D``.
        nhead: Number of attention heads.
        dim_feedforward: Inner width of the feed-forward branch.
        dropout: Probability of dropping an entry.
        activation: ``"relu"``, ``"gelu"`` or a callable.
        **options: Further keywords of `rezero.layers.TransformerDecoderLayer`, such as ``batch_first``.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 5.

    Example:
        >>> import torch
        >>> layer, x, memory = RZTXDecoderLayer(16, 2), torch.randn(5, 2, 16), torch.randn(7, 2, 16)
        >>> torch.equal(layer(x, memory), x)
        True
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        **options: Any,
    ) -> None:
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation, **{"share": "layer", **options})
        self.register_load_state_dict_pre_hook(self._rename_resweight)  # type: ignore[no-untyped-call]
