"""Texts to train on: enwik8, Tiny Shakespeare, and your own."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from rezero.data.files import check, read_bytes
from rezero.data.sources import ENWIK8, TINY_SHAKESPEARE, Source, locate
from rezero.data.windows import TextData
from rezero.errors import UsageError

__all__ = ["TextData", "load_corpus", "load_enwik8", "load_text", "load_tiny_shakespeare", "split_text"]


def load_enwik8(context: int, val_limit: int | None = None) -> TextData:
    """Load enwik8, the first 100,000,000 bytes of the English Wikipedia of 3 March 2006.

    The first 90 MB are for training and the next 5 MB for validation; the last 5 MB, the test part, are left alone.

    Args:
        context: Length of a window (bytes).
        val_limit: Bytes of the validation part that are used, from its start; all of them unless told.

    Returns:
        The text.

    Raises:
        UsageError: If it is not found, its archive was cut or altered, or its bytes are not enwik8's.

    References:
        M. Mahoney (2011), Large Text Compression Benchmark.
    """
    return load_corpus(ENWIK8, context, val_limit, percent=(90, 95))


def load_tiny_shakespeare(context: int, val_limit: int | None = None) -> TextData:
    """Load Tiny Shakespeare, 1,115,394 bytes of plays: the first 90% for training, the rest for validation.

    Args:
        context: Length of a window (bytes).
        val_limit: Bytes of the validation part that are used, from its start; all of them unless told.

    Returns:
        The text.

    Raises:
        UsageError: If it is not found, or its bytes are others.

    References:
        A. Karpathy (2015), char-rnn.
    """
    return load_corpus(TINY_SHAKESPEARE, context, val_limit)


def load_corpus(
    source: Source, context: int, val_limit: int | None = None, *, percent: tuple[int, int] = (90, 100)
) -> TextData:
    """Find a text of which every byte is known, check it and split it.

    Args:
        source: The text, one file. It may also lie in a folder of the source's name, and end in .xz, .zip or .gz.
        context: Length of a window (bytes).
        val_limit: Bytes of the validation part that are used, from its start; all of them unless told.
        percent: Where in the text the training and the validation part end.

    Returns:
        The text.

    Raises:
        UsageError: If it is not found, cannot be read or is another.
    """
    [checksum] = source.files.values()
    path = locate(source)
    content = read_bytes(path)  # no unpacked copy is kept: the slowest archive, enwik8.xz, takes two seconds
    check(content, checksum, str(path), f"remove it and run `rezero download {source.name}`")
    return split_text(source.name, content, context, val_limit, percent=percent)


def load_text(path: str | Path, context: int, val_limit: int | None = None) -> TextData:
    """Load a text of your own: the first 90% of its bytes are for training, the rest for validation.

    Args:
        path: A file, which may be compressed (.xz, .gz, .zip; the members of a .zip are joined), or a folder, of which
            every ``*.txt`` file at any depth is joined, in the order of their paths. Bytes are not decoded.
        context: Length of a window (bytes).
        val_limit: Bytes of the validation part that are used, from its start; all of them unless told.

    Returns:
        The text, named after the file or folder and its content, so that a study knows it again.

    Raises:
        UsageError: If it cannot be read, or is too short for one window in each part.
    """
    path = Path(path).absolute()
    if path.is_dir():
        files = sorted(path.rglob("*.txt"), key=lambda file: file.relative_to(path).parts)
        files = [file for file in files if file.is_file()]
        if not files:
            raise UsageError(f"{path} has no text: expected files that end in .txt, at any depth")
    elif path.is_file():
        files = [path]
    else:
        found = "is neither a file nor a folder" if path.exists() else "is not there"  # a pipe may never end
        raise UsageError(f"{path} {found}: expected a file of text or a folder of .txt files")
    content = b"".join(map(read_bytes, files))
    if not content:
        raise UsageError(f"{path} is empty: expected text to train on")
    name = f"{path.name}, {len(content):,} bytes, sha256 {sha256(content).hexdigest()[:16]}"
    return replace(split_text(path.name, content, context, val_limit), name=name)


def split_text(
    name: str, content: bytes, context: int, val_limit: int | None = None, *, percent: tuple[int, int] = (90, 100)
) -> TextData:
    """Split a text into training and validation.

    Args:
        name: Name of the text.
        content: Its bytes.
        context: Length of a window (bytes).
        val_limit: Bytes of the validation part that are used, from its start; all of them unless told.
        percent: Where in the text the training and the validation part end.

    Returns:
        The two parts.

    Raises:
        UsageError: If a part is too short for one window.
    """
    if val_limit is not None and val_limit < 1:
        raise UsageError(f"val_limit must be a whole number of bytes, 1 or more: got {val_limit}")
    train_end, val_end = (len(content) * share // 100 for share in percent)
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return TextData(name, text[:train_end], text[train_end:val_end][:val_limit], context)
