"""What every test shares: fixed seeds, one thread a worker, and the old package kept aside."""

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: they run on the CPU then


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers already fill the cores


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def rezero_010() -> ModuleType:
    """The real rezero 0.1.0, under a private name so that it does not shadow ours."""
    # The documentation's builder empties .cache: a copy beside the environment serves as well.
    places = [ROOT / place / "rezero-0.1.0/rezero/transformer/rztx.py" for place in (".cache", ".venv")]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        pytest.skip(
            "rezero 0.1.0 is not installed aside: pip install --no-deps --target .cache/rezero-0.1.0 rezero==0.1.0"
        )
    spec = importlib.util.spec_from_file_location("_rezero_010_rztx", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A gloo group of this process alone, for all tests of a module that ask for one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()  # replicas hold the group in cycles, and gloo aborts if it is freed with the interpreter
    dist.destroy_process_group()
