"""Windows of a text, cut anew every epoch."""

import dataclasses
import random

import pytest
import torch

from rezero.data.windows import TextData
from rezero.errors import UsageError

LENGTH, CONTEXT = 1000, 16
RAW = random.Random(0).randbytes(LENGTH)

# Places in RAW of the first four windows of epochs, made on 2026-11-23 with torch 2.13.0: from
# torch.Generator().manual_seed(seed * 1_000_003 + epoch) the offset, randint(16), then the order, randperm(61).
GOLDEN_PLACES = {
    (0, 0): [412, 876, 300, 940],
    (0, 1): [245, 405, 757, 101],
    (3, 2): [42, 458, 650, 794],
}


@pytest.fixture
def text() -> TextData:
    """1,000 random bytes, in which every window of 16 occurs once, and the first 100 of them for validation."""
    whole = torch.frombuffer(bytearray(RAW), dtype=torch.uint8)
    return TextData("random", whole, whole[:100], CONTEXT)


def places_of(data: TextData, seed: int, epoch: int, batch_size: int = 8) -> list[int]:
    """Where in the text an epoch's windows start, in the order of their visit."""
    steps = data.steps_per_epoch(batch_size)
    batches = [data.batch(seed, epoch * steps + step, batch_size)[0] for step in range(steps)]
    return [RAW.index(bytes(window.tolist())) for batch in batches for window in batch]


def test_targets_are_the_next_bytes(text: TextData) -> None:
    """A target window starts one byte after its input, in training and in validation."""
    batches = [text.batch(3, step, 8) for step in range(10)] + [text.val_batch(i, 4) for i in range(text.val_steps(4))]
    for inputs, targets in batches:
        for window, target in zip(inputs, targets, strict=True):
            start = RAW.index(bytes(window.tolist()))
            assert bytes(target.tolist()) == RAW[start + 1 : start + 1 + CONTEXT]


def test_batches_are_contiguous_whole_numbers(text: TextData) -> None:
    """Inputs and targets are (B, context) int64, contiguous, from text kept as bytes; there are 256 classes."""
    for pair in (text.batch(0, 0, 8), text.val_batch(0, 4)):
        for tensor, rows in zip(pair, (len(pair[0]), len(pair[0])), strict=True):
            assert (tensor.shape, tensor.dtype) == ((rows, CONTEXT), torch.int64)
            assert tensor.is_contiguous()
    assert text.train.dtype == text.val.dtype == torch.uint8
    assert text.classes == 256


@pytest.mark.parametrize("epoch", range(6), ids=str)
def test_an_epoch_is_windows_back_to_back_in_random_order(text: TextData, epoch: int) -> None:
    """Windows start at an offset below the context, lie back to back, and each is visited once, out of order."""
    places = places_of(text, 1, epoch)
    first = min(places)
    assert 0 <= first < CONTEXT
    assert sorted(places) == [first + CONTEXT * i for i in range(len(places))]
    assert places != sorted(places)
    # No other window and target would fit behind the last at the latest offset, and at most one at an earlier.
    assert max(places) + 3 * CONTEXT > LENGTH - 1


def test_every_offset_occurs(text: TextData) -> None:
    """Over many epochs windows start at every byte below the context, so that every cut of the text is seen."""
    assert {min(places_of(text, 0, epoch, 64)) for epoch in range(150)} == {*range(CONTEXT)}


@pytest.mark.parametrize(("seed", "epoch"), GOLDEN_PLACES, ids=str)
def test_places_are_golden(text: TextData, seed: int, epoch: int) -> None:
    """The windows of an epoch are those they have always been, whatever the batch size."""
    for batch_size in (5, 8, 64):
        assert places_of(text, seed, epoch, batch_size)[:4] == GOLDEN_PLACES[seed, epoch]


@pytest.mark.parametrize("length", [17, 18, 31, 32, 33, 47, 48, 49, 64, 100], ids=str)
def test_every_length_has_epochs_of_one_length(length: int) -> None:
    """Texts from one window and its target upwards have as many windows in each epoch, all inside the text."""
    whole = torch.frombuffer(bytearray(RAW[:length]), dtype=torch.uint8)
    data = TextData("short", whole, whole, CONTEXT)
    steps = data.steps_per_epoch(2)
    for epoch in range(40):
        places = places_of(data, 0, epoch, 2)
        assert len(places) == max(1, length // CONTEXT - 1)
        assert max(places) + CONTEXT < length
        assert sum(data.batch_len(epoch * steps + step, 2) for step in range(steps)) == len(places)


def test_steps_and_batch_lengths_agree(text: TextData) -> None:
    """61 windows make 8 batches of 8, of which the last of an epoch has 5."""
    assert text.steps_per_epoch(8) == 8
    lengths = [text.batch_len(step, 8) for step in range(16)]
    assert lengths == [8, 8, 8, 8, 8, 8, 8, 5] * 2
    assert lengths == [len(text.batch(0, step, 8)[0]) for step in range(16)]


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 8), slice(1, None, 2), slice(6, 6)], ids=str)
def test_a_part_is_rows_of_the_batch(text: TextData, part: slice) -> None:
    """A part of a batch, the last of an epoch included, is the same rows of all of it."""
    for step in (0, 7, 8, 23):
        for whole, rows in zip(text.batch(2, step, 8), text.batch(2, step, 8, part), strict=True):
            assert torch.equal(rows, whole[part])


def test_batches_do_not_depend_on_what_was_drawn_before(text: TextData) -> None:
    """A batch is the same first, last and under any state of torch's generator, which it leaves alone."""
    forwards = [text.batch(5, step, 7) for step in range(60)]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    backwards = [text.batch(5, step, 7) for step in reversed(range(60))][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(forwards, backwards, strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_validation_is_back_to_back_from_the_start(text: TextData) -> None:
    """100 bytes are 6 windows of 16 with their targets, in order and from the first byte, whatever the batch size."""
    for batch_size, steps in ((1, 6), (4, 2), (6, 1), (50, 1)):
        assert text.val_steps(batch_size) == steps
        inputs = torch.cat([text.val_batch(index, batch_size)[0] for index in range(steps)])
        assert bytes(inputs.flatten().tolist()) == RAW[: 6 * CONTEXT]


@pytest.mark.parametrize(
    ("part", "lengths"), [("training", (16, 100)), ("validation", (100, 16))], ids=["train", "val"]
)
def test_a_text_shorter_than_a_window_is_an_error(part: str, lengths: tuple[int, int]) -> None:
    """A part of context bytes has no window with a target, which the error counts."""
    train, val = (torch.zeros(length, dtype=torch.uint8) for length in lengths)
    with pytest.raises(UsageError, match=f"the {part} part of short has 16 bytes, one window of context 16 needs 17"):
        TextData("short", train, val, CONTEXT)


def test_context_must_be_positive(text: TextData) -> None:
    """A context below one byte is an error."""
    with pytest.raises(UsageError, match="context must be a whole number of bytes, 1 or more: got 0"):
        dataclasses.replace(text, context=0)


def test_to_moves_the_text_and_nothing_else(text: TextData) -> None:
    """to() gives the same text on another device."""
    moved = text.to("meta")
    assert (moved.train.device.type, moved.val.device.type) == ("meta", "meta")
    assert (moved.train.shape, moved.name, moved.context) == (text.train.shape, text.name, text.context)
    assert text.train.device.type == "cpu"


@pytest.mark.gpu
def test_batches_are_the_same_on_a_gpu(text: TextData) -> None:
    """The device of the text does not change a batch."""
    there = text.to("cuda")
    for step in range(20):
        for here, other in zip(text.batch(0, step, 7), there.batch(0, step, 7), strict=True):
            assert torch.equal(here, other.cpu())
