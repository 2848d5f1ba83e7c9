"""Download data sets: resumed, checked before anything is replaced, one command."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rezero.data.files import BROKEN, check, matches, read_tar, read_zip
from rezero.data.locate import cache_folder
from rezero.data.sources import Source, find_source
from rezero.errors import UsageError

__all__ = ["download", "fetch"]

CHUNK = 1 << 16
TIMEOUT = 30.0  # seconds without a byte

HANDLERS: tuple[Callable[[], request.BaseHandler], ...] = (
    request.ProxyHandler,
    request.HTTPHandler,
    request.HTTPSHandler,
    request.HTTPRedirectHandler,
    request.HTTPDefaultErrorHandler,
    request.HTTPErrorProcessor,
    request.UnknownHandler,
)


def download(
    name: str, *, folder: Path | None = None, on_bytes: Callable[[int, int | None], object] | None = None
) -> Path:
    """Download a data set, unless it is there already.

    Args:
        name: cifar10, enwik8 or tinyshakespeare.
        folder: Data folder to put it into; the cache unless told.
        on_bytes: Called with the bytes that are there and the bytes in all, None if the server does not say.

    Returns:
        The file or folder.

    Raises:
        UsageError: If the name is unknown, the address cannot be reached or gives something else.

    Example:
        >>> download("mnist")
        Traceback (most recent call last):
        rezero.errors.UsageError: no data set is called 'mnist': choose from cifar10, enwik8, tinyshakespeare
    """
    return fetch(find_source(name), folder or cache_folder(), on_bytes)


def fetch(source: Source, folder: Path, on_bytes: Callable[[int, int | None], object] | None = None) -> Path:
    """Make a data folder hold a source's files, each of which is replaced only by one that was found right.

    The download lies beside them as ``NAME.part`` until then. An interruption leaves it there, and the next call goes
    on from its end.

    Args:
        source: What to fetch.
        folder: Data folder.
        on_bytes: Called with the bytes that are there and the bytes in all, None if the server does not say.

    Returns:
        The file, or the folder that the files lie in.

    Raises:
        UsageError: If the address cannot be reached or gives something else.
    """
    first = next(iter(source.files))
    target = folder / (first if len(source.files) == 1 else PurePosixPath(first).parts[0])
    if all((folder / path).is_file() and matches((folder / path).read_bytes(), c) for path, c in source.files.items()):
        return target
    for path in source.files:
        if (folder / path).is_dir():
            raise UsageError(f"{folder / path} should become a file of {source.name}, and is a folder: move it away")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{PurePosixPath(urlsplit(source.url).path).name}.part"
    by_hand = f"or fetch it by hand and put it, unpacked, at {target}"
    try:
        _fetch_part(source.url, part, on_bytes)
    except (OSError, HTTPException) as error:
        reason = error.reason if type(error) is URLError else error
        kept = f"the same command goes on from {part.stat().st_size:,} bytes" if part.exists() else "try again later"
        raise UsageError(f"could not fetch {source.url} ({reason}): {kept}, {by_hand}") from error
    try:
        contents = _unpack(source, part)
    except (UsageError, *BROKEN) as error:
        part.unlink()
        raise UsageError(f"{source.url} gave something else ({error}), now removed: try again, {by_hand}") from error
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        fresh = (folder / path).with_name(f"{PurePosixPath(path).name}.new")
        fresh.write_bytes(content)
        fresh.replace(folder / path)
    part.unlink()
    return target


def _fetch_part(url: str, part: Path, on_bytes: Callable[[int, int | None], object] | None) -> None:
    """Append to a partial file what it lacks, or begin it."""
    done = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, {"Range": f"bytes={done}-"} if done else {})
    except HTTPError as error:
        error.close()
        if done and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing, or what is there is wrong: the checksum tells
        raise
    with response:
        resumes = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if resumes else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if resumes else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if on_bytes is not None:
                    on_bytes(done, total)
    if total is not None and done < total:  # which the standard library does not tell
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _open(url: str, headers: Mapping[str, str]) -> HTTPResponse:
    opener = request.OpenerDirector()  # the default one opens local files and FTP too
    for handler in HANDLERS:
        opener.add_handler(handler())
    response: HTTPResponse = opener.open(request.Request(url, headers=dict(headers)), timeout=TIMEOUT)  # noqa: S310
    return response


def _unpack(source: Source, part: Path) -> dict[str, bytes]:
    """Read what a source's files are to be, all of it found right."""
    if source.archive is not None:
        check(part.read_bytes(), source.archive, "the download")
    name = part.name.removesuffix(".part")
    if name.endswith(".tar.gz"):
        contents = read_tar(part, source.files)
    elif name.endswith(".zip"):
        contents = read_zip(part, source.files)
    else:
        contents = dict.fromkeys(source.files, part.read_bytes())
    for path, checksum in source.files.items():
        if path not in contents:
            raise UsageError(f"it holds no file {path}")
        check(contents[path], checksum, path)
    return contents
