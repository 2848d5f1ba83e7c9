"""Buffers that are used again."""

import gc

import pytest
import torch
from torch import Tensor, nn

from rezero import DeepStack
from rezero.kernels import buffers
from rezero.layers import MLPBlock


@pytest.fixture(autouse=True)
def _every_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_LARGE", 1)


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    """A request gets memory that an earlier tensor and all its views have left, and never what is still held."""
    owner = torch.ones(1)
    first = buffers.empty((10, 10), owner)
    view, place = first[2:], first.data_ptr()
    del first
    second = buffers.empty((10, 10), owner)
    assert second.data_ptr() != place
    del view
    assert buffers.empty((5, 10), owner).data_ptr() == place
    assert second.shape == (10, 10)
    assert second.dtype == owner.dtype


def test_what_is_too_small_makes_room() -> None:
    """A larger request drops the free buffers that can't serve it."""
    owner = torch.ones(1)
    held = buffers.empty((7,), owner)
    for size in (10, 20, 30):
        buffers.empty((size,), owner)
    assert [each.size for each in buffers._buffers[owner]] == [28, 120]
    del held


def test_buffers_go_with_their_owner() -> None:
    """Nothing is kept for an owner that is gone; a tensor that is still held stays as it is."""
    owner = torch.ones(1)
    tensor = buffers.empty((10,), owner).fill_(3)
    count = len(buffers._buffers)
    del owner
    gc.collect()
    assert len(buffers._buffers) == count - 1
    assert torch.equal(tensor, torch.full((10,), 3.0))


def test_small_ones_and_other_devices_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, and those of other devices, are allocated as usual."""
    assert buffers.empty((2,), torch.ones(1, device="meta")).is_meta
    monkeypatch.setattr(buffers, "_LARGE", 1000)
    owner = torch.ones(1)
    buffers.empty((2,), owner)
    assert owner not in buffers._buffers


def test_steps_of_a_stack_use_the_same_memory() -> None:
    """Gradients of one step lie where those of the step before did, once these are set to None; and not earlier."""

    def step(stack: nn.Module) -> Tensor:
        stack(torch.randn(3, 4)).square().sum().backward()
        return next(stack.parameters()).grad

    stack = DeepStack(MLPBlock(4), 5, init_value=0.1)
    places = []
    for _ in range(3):
        stack.zero_grad()
        places.append(step(stack).data_ptr())
    assert len(set(places)) == 1
    kept = step(stack).clone()
    alone = DeepStack(MLPBlock(4), 5, init_value=0.1)
    step(alone)
    assert torch.equal(stack.weight.grad, kept)


def test_two_passes_under_way_do_not_disturb_each_other() -> None:
    """Two forward passes before either backward pass keep their own activations."""
    stack = DeepStack(MLPBlock(4), 5, init_value=0.1)
    one, two = torch.randn(3, 4), torch.randn(3, 4)
    alone = [torch.autograd.grad(stack(x).square().sum(), stack.weight)[0] for x in (one, two)]
    losses = [stack(x).square().sum() for x in (one, two)]
    together = [torch.autograd.grad(loss, stack.weight)[0] for loss in losses]
    assert all(map(torch.equal, alone, together))
