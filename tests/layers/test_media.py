"""The media mask: each position of a text sees the last medium at or before it, and no other."""

import pytest
import torch
from torch import Tensor

from rezero.layers import media_mask


def twin(is_media: Tensor, media: int, latents: int) -> Tensor:
    """The rule, position by position."""
    mask = torch.zeros(*is_media.shape, media * latents, dtype=torch.bool)
    for b, row in enumerate(is_media.tolist()):
        last = 0
        for t, marked in enumerate(row):
            last += marked
            if last:
                mask[b, t, (last - 1) * latents : last * latents] = True
    return mask


@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("spare", [0, 2], ids=["exact", "spare media"])
def test_is_the_rule(latents: int, spare: int) -> None:
    """On random texts the mask is the rule, applied position by position."""
    is_media = torch.rand(6, 20) < 0.2
    is_media[0] = False
    media = int(is_media.sum(1).max()) + spare
    mask = media_mask(is_media, media, latents)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, twin(is_media, media, latents))


def test_is_this_table() -> None:
    """Before the first medium nothing is seen, a marked position sees its own medium, and then only the latest is."""
    is_media = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]).bool()
    assert media_mask(is_media, media=3, latents=1).int().tolist() == [
        [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]],
    ]


@pytest.mark.parametrize(("length", "media"), [(0, 2), (4, 0), (0, 0)])
def test_empty_texts_and_no_media_give_empty_masks(length: int, media: int) -> None:
    """A text of no positions and a context of no media give masks of that size."""
    assert media_mask(torch.zeros(2, length, dtype=torch.bool), media, 3).shape == (2, length, media * 3)


def test_compiles_to_one_graph() -> None:
    """torch.compile(fullgraph=True) gives the same mask; marks beyond the media there are see nothing."""
    torch._dynamo.reset()
    compiled = torch.compile(media_mask, fullgraph=True, backend="eager")
    is_media = torch.tensor([[False, True, False, True, False]])
    assert torch.equal(compiled(is_media, 2, 3), media_mask(is_media, 2, 3))
    assert compiled(is_media, 1, 1)[0, :, 0].tolist() == [False, True, True, False, False]


def test_refuses_more_marks_than_media() -> None:
    """A text that marks more media than its context has is an error with both numbers."""
    is_media = torch.tensor([[False, True, True], [True, True, True]])
    with pytest.raises(ValueError, match="a text marks 3 media, its context has 2: is_media or media is wrong"):
        media_mask(is_media, media=2, latents=4)


@pytest.mark.parametrize(
    ("is_media", "media", "latents", "message"),
    [
        (torch.zeros(2, 3), 1, 1, r"is_media must be boolean \(B, T\): got torch.float32 \(2, 3\)"),
        (torch.zeros(3).bool(), 1, 1, r"is_media must be boolean \(B, T\): got torch.bool \(3,\)"),
        (torch.zeros(2, 3).bool(), -1, 1, "media must be at least 0: got -1"),
        (torch.zeros(2, 3).bool(), 1, 0, "latents must be at least 1: got 0"),
    ],
    ids=["float", "1-d", "media", "latents"],
)
def test_refuses_what_does_not_fit(is_media: Tensor, media: int, latents: int, message: str) -> None:
    """A wrong shape, dtype or number is an error that says what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        media_mask(is_media, media, latents)


def test_what_is_no_tensor_or_no_whole_number_is_told() -> None:
    """Before anything is computed."""
    with pytest.raises(TypeError, match=r"is_media must be a boolean tensor \(B, T\): got NoneType"):
        media_mask(None, 1, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"media must be a whole number: got 1.5"):
        media_mask(torch.zeros(1, 2, dtype=torch.bool), 1.5, 2)  # type: ignore[arg-type]
