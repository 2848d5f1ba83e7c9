"""Batches that are a function of seed and step."""

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rezero.data.batches import TensorData

# torch.randperm(10, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)), made on 2026-11-23 with
# torch 2.13.0: an order that changes breaks every study that is half done.
GOLDEN_ORDERS = {
    (0, 0): [4, 1, 7, 5, 3, 9, 0, 8, 6, 2],
    (0, 1): [5, 6, 1, 2, 0, 8, 9, 3, 7, 4],
    (3, 2): [4, 6, 9, 0, 8, 5, 1, 2, 3, 7],
}


# After the order of each epoch, torch.randint(2**62, (10,)) from its generator; the first four, made the same day.
GOLDEN_NUMBERS = {
    (0, 0): [2279347887019741461, 2478904981663889188, 876858701620395078, 1046169753006283352],
    (3, 2): [733336957396638669, 2363613035659238425, 3521567127540261463, 4430210650422890222],
}


@pytest.fixture
def ten() -> TensorData:
    """Ten examples, example i with input (i, -i) and class i."""
    numbers = torch.arange(10)
    inputs = torch.stack((numbers, -numbers), dim=1).float()
    return TensorData("ten", inputs, numbers, inputs[:4] + 100, numbers[:4], classes=10)


def epoch_of(data: TensorData, seed: int, epoch: int, batch_size: int) -> list[int]:
    """The classes of an epoch's batches in their order."""
    steps = data.steps_per_epoch(batch_size)
    batches = (data.batch(seed, epoch * steps + step, batch_size) for step in range(steps))
    return [target for _, targets in batches for target in targets.tolist()]


@pytest.mark.parametrize(("seed", "epoch"), GOLDEN_ORDERS, ids=str)
def test_order_is_golden(ten: TensorData, seed: int, epoch: int) -> None:
    """The order of an epoch is the one it has always been, whatever the batch size."""
    assert epoch_of(ten, seed, epoch, 10) == GOLDEN_ORDERS[seed, epoch]
    assert epoch_of(ten, seed, epoch, 3) == GOLDEN_ORDERS[seed, epoch]


def test_batch_does_not_depend_on_what_was_drawn_before(ten: TensorData) -> None:
    """A batch is the same first, last, twice, and under any state of torch's generator, which it leaves alone."""
    forwards = [ten.batch(5, step, 3) for step in range(12)]
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state()
    backwards = [ten.batch(5, step, 3) for step in reversed(range(12))][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(forwards, backwards, strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64], ids=str)
@pytest.mark.parametrize("epoch", [0, 1, 7], ids=str)
def test_epoch_covers_every_example_once(ten: TensorData, epoch: int, batch_size: int) -> None:
    """Each epoch shows each example exactly once, wherever batches end."""
    assert sorted(epoch_of(ten, 2, epoch, batch_size)) == [*range(10)]


def test_epochs_and_seeds_differ(ten: TensorData) -> None:
    """Every epoch of every seed has an order of its own, and none is the order of the data."""
    pairs = itertools.product(range(6), range(30))
    orders = {tuple(epoch_of(ten, seed, epoch, 10)) for seed, epoch in pairs} | {tuple(range(10))}
    assert len(orders) == 6 * 30 + 1


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(3, [3, 3, 3, 1]), (5, [5, 5]), (10, [10]), (64, [10])], ids=["3", "5", "10", "64"]
)
def test_last_batch_is_smaller(ten: TensorData, batch_size: int, sizes: list[int]) -> None:
    """Batches are full but for the last of an epoch, and steps_per_epoch counts it."""
    assert ten.steps_per_epoch(batch_size) == len(sizes)
    assert [len(ten.batch(0, step, batch_size)[1]) for step in range(2 * len(sizes))] == 2 * sizes
    assert [ten.batch_len(step, batch_size) for step in range(2 * len(sizes))] == 2 * sizes


def test_inputs_keep_their_targets(ten: TensorData) -> None:
    """Shuffling moves an input together with its target."""
    inputs, targets = ten.batch(1, 2, 4)
    assert torch.equal(inputs, torch.stack((targets, -targets), dim=1).float())


def numbers_of(inputs: Tensor, numbers: Tensor) -> Tensor:
    """An augmentation that shows each example's number beside its input."""
    return torch.cat((inputs.double(), numbers[:, None].double()), dim=1)


@pytest.fixture
def augmented(ten: TensorData) -> TensorData:
    """Ten examples whose batches show what augmentation and preparation were given."""
    return replace(ten, augment=numbers_of, prepare=lambda inputs: inputs * 2)


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 4), slice(1, None, 2), slice(3, 3)], ids=str)
def test_a_part_is_rows_of_the_batch(augmented: TensorData, part: slice) -> None:
    """A part of a batch, the short last one of an epoch included, is the same rows of all of it, augmentation too."""
    for step in range(6):
        for whole, rows in zip(augmented.batch(3, step, 4), augmented.batch(3, step, 4, part), strict=True):
            assert torch.equal(rows, whole[part])


def test_parts_cost_their_rows_only(ten: TensorData) -> None:
    """What is applied to a batch sees only the rows of the part."""
    seen: list[int] = []

    def augment(inputs: Tensor, numbers: Tensor) -> Tensor:
        seen.append(len(inputs))
        assert len(numbers) == len(inputs)
        return inputs

    replace(ten, augment=augment).batch(0, 0, 8, slice(2, 5))
    assert seen == [3]


@pytest.mark.parametrize(("seed", "epoch"), GOLDEN_NUMBERS, ids=str)
def test_numbers_of_augmentation_are_golden(ten: TensorData, seed: int, epoch: int) -> None:
    """An example's number in an epoch is the one it has always been, whatever the batch size; the order stays."""
    data = replace(ten, augment=lambda _, numbers: numbers)
    for size in (10, 4):
        steps = data.steps_per_epoch(size)
        batches = [data.batch(seed, epoch * steps + step, size) for step in range(steps)]
        numbers, targets = (torch.cat(tensors).tolist() for tensors in zip(*batches, strict=True))
        assert numbers[:4] == GOLDEN_NUMBERS[seed, epoch]
        assert targets == GOLDEN_ORDERS[seed, epoch]


def test_numbers_differ_between_examples_epochs_and_seeds(ten: TensorData) -> None:
    """Every example of every epoch and seed has a number of its own in [0, 2**62)."""
    data = replace(ten, augment=lambda _, numbers: numbers)
    numbers = torch.cat([data.batch(seed, epoch, 10)[0] for seed in range(5) for epoch in range(20)])
    assert len(numbers.unique()) == 1000
    assert numbers.min() >= 0
    assert numbers.max() < 2**62


def test_validation_is_prepared_and_not_augmented(augmented: TensorData) -> None:
    """Validation batches are the validation part in its order, prepared, whatever the batch size."""
    for size, steps in ((1, 4), (3, 2), (4, 1), (9, 1)):
        assert augmented.val_steps(size) == steps
        inputs, targets = (
            torch.cat(t) for t in zip(*(augmented.val_batch(i, size) for i in range(steps)), strict=True)
        )
        assert torch.equal(inputs, augmented.val_inputs * 2)
        assert torch.equal(targets, augmented.val_targets)


def test_a_batch_that_is_changed_does_not_change_the_next(ten: TensorData) -> None:
    """What a caller does to a batch, or an augmentation to its numbers, stays out of the data and of what is cached."""
    data = replace(ten, augment=lambda inputs, numbers: inputs * (numbers.mul_(3) != 0)[:, None])
    first = [tensor.clone() for tensor in data.batch(0, 0, 4)]
    before = replace(ten, augment=numbers_of).batch(0, 0, 4)[0]
    for tensor in data.batch(0, 0, 4):
        tensor.fill_(7)
    assert all(map(torch.equal, data.batch(0, 0, 4), first))
    assert torch.equal(replace(ten, augment=numbers_of).batch(0, 0, 4)[0], before)


IN_ANOTHER_PROCESS = """
import torch
from rezero.data.batches import TensorData
from rezero.data.cifar10 import crop_and_flip
from rezero.data.windows import TextData
from hashlib import sha256

pixels = (torch.arange(30 * 3 * 8 * 8) % 251).byte().view(30, 3, 8, 8)
images = TensorData("images", pixels, torch.arange(30), pixels, torch.arange(30), 30, augment=crop_and_flip)
text = TextData("text", pixels.flatten(), pixels.flatten(), 16)
def digest(step):
    tensors = [*images.batch(4, step, 7), *text.batch(4, step, 7)]
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
"""


def test_batches_are_the_same_in_another_process() -> None:
    """A process that begins at step 37 sees what one that went through all steps sees there."""
    here: dict[str, Any] = {}
    exec(IN_ANOTHER_PROCESS, here)  # noqa: S102
    seen = [here["digest"](step) for step in range(41)]
    code = IN_ANOTHER_PROCESS + "torch.manual_seed(5); print(*map(digest, (37, 40, 2)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [seen[37], seen[40], seen[2]]


def test_to_moves_all_tensors_and_nothing_else(ten: TensorData) -> None:
    """to() gives the same data on another device."""
    moved = ten.to("meta")
    for name in ("inputs", "targets", "val_inputs", "val_targets"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(ten, name).shape
        assert getattr(ten, name).device.type == "cpu"
    assert (moved.name, moved.classes) == (ten.name, ten.classes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_are_the_same_on_a_gpu(ten: TensorData) -> None:
    """The device of the data does not change a batch."""
    for step in range(8):
        here, there = ten.batch(0, step, 3), ten.to("cuda").batch(0, step, 3)
        assert torch.equal(here[0], there[0].cpu())
        assert torch.equal(here[1], there[1].cpu())
