"""The gated adapter: a narrow branch beside a trained layer."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.branch import add_linear
from rezero.layers.arguments import Rebuildable, remembers
from rezero.layers.feed_forward import Activation, build_activation
from rezero.layers.network import build_gate, check_dropout, check_input, check_sizes, reset_xavier

__all__ = ["GatedAdapter"]


class GatedAdapter(Rebuildable, nn.Module):
    r"""Bottleneck on a residual branch, ``x + g(alpha) * up(activation(down(norm(x))))``, the identity at the start.

    Houlsby et al. start near the identity, with weights near zero; here the gate makes it exact, and the weights start
    as usual. Put it after the sublayers of a frozen model and train it alone. Without activation and norm it is a
    linear map, ``x + g(alpha) * (U (D x + b) + c)``, which the linear layer before it can take in.

    Args:
        dim: Width.
        bottleneck: Width of the branch inside. The default of 64 is the only size that Houlsby et al. report for all
            tasks at once: on GLUE it scored 79.6 with BERT-large, the best of 8, 64 and 256 for each task 80.0.
        activation: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"squared_relu"``; None for none.
        norm: Whether a LayerNorm comes first, so that the branch reads numbers of one size from any model.
        gate: ``"linear"`` for ``g(alpha) = alpha``; ``"tanh"`` keeps the scale below 1.
        dropout: Probability of dropping an entry of the branch in training.
        bias: Whether both maps have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters; the gate is kept at least float32.

    Raises:
        ValueError: If an argument is out of range or unknown.

    References:
        Houlsby et al. (2019), arXiv:1902.00751, sec. 2.1 (the branch) and table 1 (its width).

    Example:
        >>> adapter, x = GatedAdapter(16, 4), torch.randn(2, 16)
        >>> torch.equal(adapter(x), x)
        True
    """

    @remembers
    def __init__(
        self,
        dim: int,
        bottleneck: int = 64,
        *,
        activation: Activation | None = "gelu",
        norm: bool = True,
        gate: Literal["linear", "tanh"] = "linear",
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, bottleneck=bottleneck)
        check_dropout(dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim = dim
        self.norm = nn.LayerNorm(dim, **factory) if norm else nn.Identity()
        self.down = nn.Linear(dim, bottleneck, bias=bias, **factory)
        self.activation = build_activation(activation)
        self.up = nn.Linear(bottleneck, dim, bias=bias, **factory)
        self.dropout = nn.Dropout(dropout)
        self.gate = build_gate(gate, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights Xavier-uniform, biases zero, and set norm and gate back to their start."""
        reset_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with the branch added.

        Args:
            x: ``(*, D)``.

        Returns:
            ``(*, D)``.

        Raises:
            TypeError: If ``x`` is no tensor.
            ValueError: If its width, dtype or device does not fit.
        """
        check_input("x", x, "(*, D)", self.dim, self.down.weight)
        h = self.activation(self.down(self.norm(x)))
        return add_linear(x, h, self.up, self.dropout, self.gate.scale)
