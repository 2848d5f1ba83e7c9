"""Whole files, compressed or not, and their checksums."""

import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from rezero.data.files import check, matches, read_bytes, read_tar, read_zip
from rezero.errors import UsageError

TEXT = bytes(range(256)) * 300 + b"the end"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def flipped(content: bytes, position: int) -> bytes:
    altered = bytearray(content)
    altered[position] ^= 0x10
    return bytes(altered)


PACKED = {"": TEXT, ".xz": lzma.compress(TEXT), ".gz": gzip.compress(TEXT), ".zip": zipped({"text": TEXT})}


@pytest.mark.parametrize("suffix", PACKED, ids=["plain", "xz", "gz", "zip"])
def test_content_comes_out_as_it_was(tmp_path: Path, suffix: str) -> None:
    """A file gives the same bytes whether it is plain or compressed."""
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKED[suffix])
    assert read_bytes(path) == TEXT


def test_members_of_a_zip_are_joined_in_its_order(tmp_path: Path) -> None:
    """All files of a zip are read, folders are not, and the archive's order counts."""
    path = tmp_path / "text.zip"
    path.write_bytes(zipped({"folder/": b"", "folder/b": b"one ", "a": b"two"}))
    assert read_bytes(path) == b"one two"
    assert read_zip(path, ["a"]) == {"a": b"two"}


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zip"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut in half"),
        pytest.param(lambda content: content[:-1], id="last byte lost"),
        pytest.param(lambda content: flipped(content, len(content) // 2), id="bit flipped"),
        pytest.param(lambda _: b"<html>not found</html>", id="something else"),
    ],
)
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, suffix: str, damage: object) -> None:
    """An archive that was cut, altered or is none is refused; nothing of it is taken for the text."""
    path = tmp_path / f"text{suffix}"
    path.write_bytes(damage(PACKED[suffix]))  # type: ignore[operator]
    kind = suffix.removeprefix(".")
    with pytest.raises(
        UsageError, match=rf"text\{suffix} should be a whole {kind} archive, and is not .*: get it anew"
    ):
        read_bytes(path)


def test_a_zip_whose_names_are_no_text_is_an_error(tmp_path: Path) -> None:
    """A byte that was flipped in the name of a member is damage like any other."""
    path = tmp_path / "text.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é.txt", TEXT)
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc3\x29"))
    with pytest.raises(UsageError, match=r"text\.zip should be a whole zip archive, and is not .*: get it anew"):
        read_bytes(path)


def test_a_zip_with_a_password_is_an_error(tmp_path: Path) -> None:
    """An encrypted member is refused like a damaged one."""
    path = tmp_path / "text.zip"
    content = bytearray(PACKED[".zip"])
    content[6] |= 1  # the flag "encrypted", in the local header and in the central directory
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"should be a whole zip archive, and is not .*password"):
        read_bytes(path)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zip"], ids=["plain", "xz", "gz", "zip"])
def test_an_unreadable_file_is_an_error_with_the_reason(tmp_path: Path, suffix: str) -> None:
    """What the system refuses to read is refused with its reason."""
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UsageError, match=rf"cannot read .*folder{suffix}: Is a directory"):
        read_bytes(tmp_path / f"folder{suffix}")
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        read_bytes(tmp_path / f"absent{suffix}")


def test_tar_gives_regular_files_that_were_asked_for(tmp_path: Path) -> None:
    """Links and folders that bear a wanted name are left out, so is what was not asked for."""
    path = tmp_path / "files.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("folder/wanted", "unwanted"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("folder/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder/folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert read_tar(path, ["folder/wanted", "folder/link", "folder/folder", "absent"]) == {"folder/wanted": b"abc"}


CHECKSUMS = {  # of b"abc", from RFC 1321 and FIPS 180-2
    "md5": "md5:900150983cd24fb0d6963f7d28e17f72",
    "sha256": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


@pytest.mark.parametrize("checksum", CHECKSUMS.values(), ids=CHECKSUMS)
def test_checksums_are_the_published_ones(checksum: str) -> None:
    """A content matches its checksum and no other."""
    check(b"abc", checksum, "it")
    assert matches(b"abc", checksum)
    assert not matches(b"abd", checksum)


def test_a_wrong_checksum_says_both_and_what_to_do() -> None:
    """The error has the expected and the actual checksum and the advice."""
    expected, got = CHECKSUMS["md5"], "md5:4911e516e5aa21d327512e0c8b197616"
    with pytest.raises(UsageError, match=f"^a.txt is not what it should be: expected {expected}, got {got}: get it$"):
        check(b"abd", expected, "a.txt", "get it")
    with pytest.raises(UsageError, match=f"got {got}$"):
        check(b"abd", expected, "a.txt")
