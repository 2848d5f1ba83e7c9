"""Which positions of a text see which of its images and videos."""

# B batch, T positions

import torch
from torch import Tensor

from rezero.layers.network import check_sizes, check_whole

__all__ = ["media_mask"]


def media_mask(is_media: Tensor, media: int, latents: int) -> Tensor:
    r"""Let each position of a text see the last image or video before it, as in Flamingo.

    With ``phi(t)`` the number of media marked at or before position ``t``, the position sees the ``latents`` vectors of
    the medium ``phi(t)`` and of no other, and none before the first. Through the text before it, it still learns of
    the earlier ones.

    Args:
        is_media: ``(B, T)``, True at the positions of the text that stand for a medium, such as ``<image>`` tokens.
        media: Number of media in the context of each text; a text may have fewer.
        latents: Number of vectors a medium, in the order in which the context holds them.

    Returns:
        ``(B, T, media * latents)``, True where it may be seen: the ``mask`` of `GatedCrossAttention`.

    Raises:
        TypeError: If ``is_media`` is no tensor, or a number no whole one.
        ValueError: If ``is_media`` is not boolean ``(B, T)``, a number is out of range, or a text marks more media than
            there are; under ``torch.compile`` and ``torch.export`` the last is not looked at, and positions after
            what there is see nothing.

    References:
        Alayrac et al. (2022), arXiv:2204.14198, sec. 2.3 and app. A.1.3, fig. 7.

    Example:
        >>> media_mask(torch.tensor([[False, True, False, True]]), media=2, latents=2).int()
        tensor([[[0, 0, 0, 0],
                 [1, 1, 0, 0],
                 [1, 1, 0, 0],
                 [0, 0, 1, 1]]], dtype=torch.int32)
    """
    if not isinstance(is_media, Tensor):
        raise TypeError(f"is_media must be a boolean tensor (B, T): got {type(is_media).__name__}")
    check_whole(media=media)
    if is_media.ndim != 2 or is_media.dtype != torch.bool:
        raise ValueError(f"is_media must be boolean (B, T): got {is_media.dtype} {tuple(is_media.shape)}")
    if media < 0:
        raise ValueError(f"media must be at least 0: got {media}")
    check_sizes(latents=latents)
    last = is_media.cumsum(1).unsqueeze(-1)
    if not torch.compiler.is_compiling() and bool((last[:, -1:] > media).any()):
        raise ValueError(f"a text marks {int(last.max())} media, its context has {media}: is_media or media is wrong")
    each = torch.arange(1, media + 1, device=is_media.device)
    return (last == each).repeat_interleave(latents, -1)
