"""What a decoder remembers of the positions that it has seen."""

# B batch, H heads, T new positions, S positions in all, C width of a head

import torch
from torch import Tensor

__all__ = ["KVCache", "LayerCache"]


class LayerCache:
    """Keys and values of one attention layer, empty at first."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions.

        Args:
            keys: ``(B, H, T, C)``.
            values: ``(B, H, T, C)``.

        Returns:
            Keys and values of all positions so far, each ``(B, H, S, C)``.

        Raises:
            ValueError: If those that are here have other heads, another dtype or device; then nothing is added.
        """
        if self.keys is not None and self.values is not None:
            if _kind(self.keys) != _kind(keys):
                held, new = ("{} heads of width {} in {} on {}".format(*_kind(each)) for each in (self.keys, keys))
                raise ValueError(
                    f"the cache belongs to another model, or was filled in another precision: it holds {held}, got "
                    f"{new}; begin with model.new_cache()"
                )
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


def _kind(keys: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    return keys.shape[1], keys.shape[3], keys.dtype, keys.device


class KVCache:
    """Keys and values of the positions that a model has seen, one pair a layer.

    Args:
        depth: Number of attention layers.

    Raises:
        ValueError: If ``depth`` is below 1.

    Example:
        >>> from rezero.layers import LanguageModel
        >>> model = LanguageModel(8, 1, 2)
        >>> cache = model.new_cache()
        >>> logits = model(torch.tensor([[1, 2, 3]]), cache)
        >>> cache.length
        3
    """

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1: got {depth}")
        self.layers = [LayerCache() for _ in range(depth)]

    @property
    def length(self) -> int:
        """How many positions the cache holds."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    @property
    def batch(self) -> int | None:
        """How many sequences the cache holds; None while it is empty."""
        keys = self.layers[0].keys
        return None if keys is None else keys.shape[0]
