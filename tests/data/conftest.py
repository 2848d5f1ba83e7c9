"""Data folders of a test's own, and a small CIFAR-10."""

import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest

from rezero.data.locate import data_folders
from rezero.data.sources import Source

FAKE_LABELS = {f"data_batch_{i}": list(range(i, i + 8)) for i in range(1, 6)} | {"test_batch": [9, 0, 3, 3, 5, 1]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that REZERO_DATA names; the cache is beside it, and not there yet."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("REZERO_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return folder


@pytest.fixture
def small_cifar10(data: Path) -> Source:
    """40 training and 6 test images of random pixels in the files of CIFAR-10, in REZERO_DATA."""
    folder = data / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    files = {}
    for name, labels in FAKE_LABELS.items():
        pixels = random.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": [label % 10 for label in labels]}, protocol=2)
        (folder / name).write_bytes(content)
        files[f"{folder.name}/{name}"] = f"md5:{md5(content).hexdigest()}"  # noqa: S324
    return Source("cifar10", "http://127.0.0.1/cifar-10-python.tar.gz", files)


@pytest.fixture(scope="session")
def real_folders() -> list[Path]:
    """The folders that this machine has data in."""
    return [folder for folder in data_folders() if folder.is_dir()]
