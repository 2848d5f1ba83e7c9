"""Batches that are a function of seed and step."""

import itertools

import pytest
import torch

from rezero.data.batches import TensorData

# torch.randperm(10, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)), made on 2026-11-23 with
# torch 2.13.0: an order that changes breaks every study that is half done.
GOLDEN_ORDERS = {
    (0, 0): [4, 1, 7, 5, 3, 9, 0, 8, 6, 2],
    (0, 1): [5, 6, 1, 2, 0, 8, 9, 3, 7, 4],
    (3, 2): [4, 6, 9, 0, 8, 5, 1, 2, 3, 7],
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


def test_inputs_keep_their_targets(ten: TensorData) -> None:
    """Shuffling moves an input together with its target."""
    inputs, targets = ten.batch(1, 2, 4)
    assert torch.equal(inputs, torch.stack((targets, -targets), dim=1).float())


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
