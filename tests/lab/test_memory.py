"""The most memory that a trial held."""

import sys

import pytest
import torch

from rezero.lab.peak import peak_memory

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_starts_anew_with_each_block() -> None:
    """A block sees what it held itself, also where an earlier one held more."""

    def peak(mebibytes: int) -> float:
        with peak_memory(torch.device("cpu")) as memory:
            torch.ones(mebibytes * MIB // 4).sum()
            found = memory()
            assert found is not None
            return found

    peak(1)
    small, large, again = peak(1), peak(400), peak(1)
    assert 390 * MIB < large - small < 450 * MIB
    assert abs(again - small) < 50 * MIB


@pytest.mark.gpu
def test_a_gpu_is_asked_for_its_tensors() -> None:
    """What tensors took on the device counts, and nothing of the process."""
    before = torch.cuda.memory_allocated()  # what other tests have left
    with peak_memory(torch.device("cuda")) as memory:
        torch.ones(100 * MIB // 4, device="cuda").sum()
        found = memory()
        assert found is not None
        assert 100 * MIB <= found - before < 150 * MIB
