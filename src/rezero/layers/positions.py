"""Rotary positions: a rotation of queries and keys by their place."""

# B batch, H heads, T positions, C width of a head

import torch
from torch import Tensor

__all__ = ["rotary_table", "rotate"]


def rotary_table(
    length: int,
    head_dim: int,
    *,
    start: int = 0,
    base: float = 10_000.0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""Tabulate the angles ``t * base ** (-2 i / C)`` of the positions ``t`` and the pairs ``i`` of features.

    Args:
        length: Number of positions ``T``.
        head_dim: Width ``C`` of a head, even.
        start: The first position ``t``.
        base: Ratio of the fastest to about the slowest rotation.
        device: Device of the table.
        dtype: Dtype of the table; half precision cannot tell far positions apart.

    Returns:
        Cosine and sine, each ``(T, C / 2)``.

    References:
        Su et al. (2021), arXiv:2104.09864, eq. 15.

    Example:
        >>> cosine, sine = rotary_table(3, 4)
        >>> cosine[0], sine[0]
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    pair = torch.arange(0, head_dim, 2, device=device, dtype=dtype)
    position = torch.arange(start, start + length, device=device, dtype=dtype)
    angle = position[:, None] * base ** (-pair / head_dim)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    r"""Rotate each pair of features ``(i, i + C / 2)`` by its angle.

    The product of a rotated query and a rotated key depends on their distance alone, not on their places.

    Args:
        x: Queries or keys, ``(B, H, T, C)``.
        table: Cosine and sine of `rotary_table`, each ``(T, C / 2)``.

    Returns:
        The shape and dtype of ``x``.

    References:
        Su et al. (2021), arXiv:2104.09864, eq. 34; their pairs are neighbours, ``(2 i, 2 i + 1)``.

    Example:
        >>> x = torch.randn(1, 1, 3, 4)
        >>> torch.equal(rotate(x, rotary_table(3, 4))[:, :, 0], x[:, :, 0])
        True
    """
    cosine, sine = table
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return rotated.to(x.dtype)
