"""Texts: enwik8, Tiny Shakespeare, and a user's own."""

import gzip
import io
import lzma
import os
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from rezero.data.sources import Source
from rezero.data.text import TextData, load_corpus, load_enwik8, load_text, load_tiny_shakespeare
from rezero.errors import UsageError

TEXT = bytes(range(250)) * 4
SOURCE = Source("tales", "http://127.0.0.1/tales.zip", {"tales": f"sha256:{sha256(TEXT).hexdigest()}"})


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tales", content)
    return buffer.getvalue()


PACK = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zip": zipped}


def content_of(text: TextData) -> bytes:
    return bytes(text.train.tolist()) + bytes(text.val.tolist())


@pytest.mark.parametrize("place", ["tales", "tales/tales"])
@pytest.mark.parametrize("suffix", PACK, ids=["plain", "xz", "gz", "zip"])
def test_a_corpus_is_found_in_every_layout(data: Path, place: str, suffix: str) -> None:
    """A corpus lies plain or compressed in the data folder or in a folder of its own, and is split by percent."""
    path = data / f"{place}{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PACK[suffix](TEXT))
    text = load_corpus(SOURCE, 10, percent=(60, 80))
    assert (text.name, text.context) == ("tales", 10)
    assert bytes(text.train.tolist()) == TEXT[:600]
    assert bytes(text.val.tolist()) == TEXT[600:800]
    assert content_of(load_corpus(SOURCE, 10)) == TEXT


def test_another_text_is_refused(data: Path) -> None:
    """A corpus with one bit flipped is an error with both checksums, even in a whole archive."""
    path = data / "tales.xz"
    path.write_bytes(lzma.compress(TEXT[:-1] + b"\0"))
    with pytest.raises(
        UsageError, match=r"tales.xz is not what it should be: expected sha256:.*, got sha256:"
    ) as caught:
        load_corpus(SOURCE, 10)
    assert str(caught.value).endswith(": remove it and run `rezero download tales`")


def test_a_cut_archive_is_refused(data: Path) -> None:
    """A corpus whose archive was cut is an error that says so."""
    (data / "tales.xz").write_bytes(lzma.compress(TEXT)[:-30])
    with pytest.raises(UsageError, match=r"tales.xz should be a whole xz archive"):
        load_corpus(SOURCE, 10)


@pytest.mark.parametrize("load", [load_enwik8, load_tiny_shakespeare], ids=lambda load: load.__name__)
def test_an_absent_corpus_names_the_command(data: Path, load: object) -> None:
    """A corpus that is nowhere is an error with the command that downloads it."""
    with pytest.raises(UsageError, match=r"get it with `rezero download (enwik8|tinyshakespeare)`"):
        load(10)  # type: ignore[operator]


def test_val_limit_keeps_the_start_of_the_validation_part(data: Path) -> None:
    """val_limit shortens the validation part, leaves training alone, and may be more than there is."""
    (data / "tales").write_bytes(TEXT)
    whole = load_corpus(SOURCE, 10)
    short = load_corpus(SOURCE, 10, 50)
    assert torch.equal(short.val, whole.val[:50])
    assert torch.equal(short.train, whole.train)
    assert torch.equal(load_corpus(SOURCE, 10, 10**9).val, whole.val)


@pytest.mark.parametrize(("limit", "message"), [(0, "val_limit must be .*: got 0"), (10, "needs 11")], ids=str)
def test_val_limit_must_leave_a_window(data: Path, limit: int, message: str) -> None:
    """A limit below one window and its target is an error."""
    (data / "tales").write_bytes(TEXT)
    with pytest.raises(UsageError, match=message):
        load_corpus(SOURCE, 10, limit)


@pytest.mark.parametrize("suffix", PACK, ids=["plain", "xz", "gz", "zip"])
def test_a_file_of_your_own(tmp_path: Path, suffix: str) -> None:
    """Any file is a text of its bytes, compressed or not: 90% for training, the rest for validation."""
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(PACK[suffix](TEXT))
    text = load_text(path, 10)
    assert (len(text.train), len(text.val)) == (900, 100)
    assert text.name == f"{path.name}, 1,000 bytes, sha256 {sha256(TEXT).hexdigest()[:16]}"
    assert content_of(text) == TEXT
    assert len(load_text(str(path), 10, 20).val) == 20


def test_a_folder_is_its_texts_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Files that end in .txt are joined, at any depth, folder by folder; other files are not texts."""
    parts = {"a.txt": b"1" * 40, "a/z.txt": b"2" * 40, "b/a/x.txt": b"3" * 40, "c.txt": b"4" * 40}
    for name, content in [*parts.items(), ("a/readme.md", b"no"), ("c.text", b"no"), ("d.txt/e.txt", b"5" * 40)][::-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = load_text(tmp_path, 5)
    assert content_of(text) == b"2" * 40 + b"1" * 40 + b"3" * 40 + b"4" * 40 + b"5" * 40
    assert text.name.startswith(f"{tmp_path.name}, 200 bytes, sha256 ")


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path gives the text the name of the real folder."""
    (tmp_path / "a.txt").write_bytes(TEXT)
    monkeypatch.chdir(tmp_path)
    assert load_text(".", 5).name.startswith(f"{tmp_path.name}, 1,000 bytes, sha256 ")


def test_bytes_are_not_decoded(tmp_path: Path) -> None:
    """What is no text in any encoding is taken as it is."""
    (tmp_path / "x").write_bytes(b"\xff\x00\r\n" * 50)
    assert content_of(load_text(tmp_path / "x", 5)) == b"\xff\x00\r\n" * 50


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent is not there: expected a file of text or a folder of .txt files"),
        ("pipe", "pipe is neither a file nor a folder: expected a file of text or a folder of .txt files"),
        ("/dev/null", "/dev/null is neither a file nor a folder: expected a file of text"),
        ("folder", "folder has no text: expected files that end in .txt, at any depth"),
        ("empty", "empty is empty: expected text to train on"),
        ("empty.gz", "empty.gz is empty"),
        ("short", r"the training part of short has 9 bytes, one window of context 10 needs 11: take a longer text"),
        ("cut.gz", "cut.gz should be a whole gz archive"),
    ],
    ids=str,
)
def test_what_is_no_text_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    """Each way in which a path can fail to be a text has an error that says what was expected."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/readme.md").write_bytes(TEXT)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "short").write_bytes(b"0123456789")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(TEXT)[:-5])
    with pytest.raises(UsageError, match=message):
        load_text(tmp_path / name, 10)


def is_here(folders: list[Path], *names: str) -> None:
    if not any((folder / name).exists() for folder in folders for name in names):
        pytest.skip(f"no {names[0]} in {', '.join(map(str, folders)) or 'any data folder'}; REZERO_DATA would name one")


def test_enwik8_is_split_as_usual(real_folders: list[Path]) -> None:
    """90 MB train, 5 MB validate, of the 205 byte values that occur; the test part is left out."""
    names = [f"{place}{suffix}" for place in ("enwik8", "enwik8/enwik8") for suffix in PACK]
    is_here(real_folders, *names)
    text = load_enwik8(128, val_limit=None)
    assert (len(text.train), len(text.val), text.name) == (90_000_000, 5_000_000, "enwik8")
    assert bytes(text.train[:11].tolist()) == b"<mediawiki "
    assert len(torch.bincount(text.train.int(), minlength=256).nonzero()) == 205
    assert text.steps_per_epoch(16) == -(-(90_000_000 // 128 - 1) // 16)


def test_tiny_shakespeare_is_split_as_usual(real_folders: list[Path]) -> None:
    """1,003,854 bytes train and 111,540 validate, of 65 characters."""
    is_here(real_folders, "tinyshakespeare")
    text = load_tiny_shakespeare(64)
    assert (len(text.train), len(text.val), text.name) == (1_003_854, 111_540, "tinyshakespeare")
    assert content_of(text).startswith(b"First Citizen:\nBefore we proceed any further, hear me speak.")
    assert len({*content_of(text)}) == 65
