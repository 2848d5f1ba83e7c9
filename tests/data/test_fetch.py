"""Downloads from a real server on this machine: resumed, checked, never half done."""

import io
import random
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rezero.data.fetch import download, fetch
from rezero.data.sources import SOURCES, Source
from rezero.errors import UsageError

CONTENT = random.Random(0).randbytes(300_000)


def checksum(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Site:
    """What the server gives, and what it was asked for."""

    url: str
    files: dict[str, bytes]
    moved: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of a body after which the connection is closed
    resumes: bool = True
    tells_length: bool = True
    asked: list[str | None] = field(default_factory=list)  # the Range of each request


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range")
        site.asked.append(asked)
        if self.path in site.moved:
            return self.head(302, {"Location": site.moved[self.path]})
        if self.path not in site.files:
            return self.head(404, {})
        content, start = site.files[self.path], 0
        if asked and site.resumes:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.head(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Length": str(len(content) - start)} if site.tells_length else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, headers)
        self.wfile.write(content[start:][: site.cut])
        return None

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of /text, which is CONTENT."""
    monkeypatch.setenv("no_proxy", "*")
    handler = type("SiteHandler", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}", {"/text": CONTENT})
        handler.site = site  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def text(site: Site) -> Source:
    return Source("text", f"{site.url}/text", {"texts/text": checksum(CONTENT)})


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_arrives_whole_and_alone(text: Source, tmp_path: Path, site: Site) -> None:
    """A download ends up under its name with nothing beside it, and progress goes up to the bytes in all."""
    seen: list[tuple[int, int | None]] = []
    path = fetch(text, tmp_path / "new/cache", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new/cache/texts/text"
    assert files_in(tmp_path) == {"new/cache/texts/text": CONTENT}
    assert site.asked == [None]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (300_000, 300_000)
    assert {total for _, total in seen} == {300_000}


def test_what_is_there_is_not_fetched_again(text: Source, tmp_path: Path, site: Site) -> None:
    """A second call asks the server for nothing."""
    assert fetch(text, tmp_path) == fetch(text, tmp_path)
    assert len(site.asked) == 1


def test_what_is_there_and_wrong_is_replaced(text: Source, tmp_path: Path) -> None:
    """A file that is not the right one is fetched anew."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/text").write_bytes(CONTENT[:-1])
    fetch(text, tmp_path)
    assert files_in(tmp_path) == {"texts/text": CONTENT}


def test_a_cut_connection_is_resumed(text: Source, tmp_path: Path, site: Site) -> None:
    """Each call goes on where the connection ended, until all of it is there."""
    site.cut = 120_000
    for done in (120_000, 240_000):
        with pytest.raises(
            UsageError, match=rf"the connection ended after {done:,} of 300,000 bytes\): the same command "
        ):
            fetch(text, tmp_path)
        assert files_in(tmp_path) == {"text.part": CONTENT[:done]}
    seen: list[tuple[int, int | None]] = []
    fetch(text, tmp_path, lambda done, total: seen.append((done, total)))
    assert site.asked == [None, "bytes=120000-", "bytes=240000-"]
    assert files_in(tmp_path) == {"texts/text": CONTENT}
    assert seen[0][0] > 240_000
    assert seen[-1] == (300_000, 300_000)


def test_an_interruption_leaves_what_arrived(text: Source, tmp_path: Path, site: Site) -> None:
    """Ctrl-C in the middle keeps the part, which the next call goes on from."""

    def interrupt(done: int, total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(text, tmp_path, interrupt)
    [(name, content)] = files_in(tmp_path).items()
    assert name == "text.part"
    assert 100_000 < len(content) < 300_000
    fetch(text, tmp_path)
    assert site.asked == [None, f"bytes={len(content)}-"]
    assert files_in(tmp_path) == {"texts/text": CONTENT}


def test_a_server_that_does_not_resume_starts_again(text: Source, tmp_path: Path, site: Site) -> None:
    """An answer with everything takes the place of the part."""
    site.resumes = False
    (tmp_path / "text.part").write_bytes(CONTENT[:70_000])
    fetch(text, tmp_path)
    assert site.asked == ["bytes=70000-"]
    assert files_in(tmp_path) == {"texts/text": CONTENT}


def test_a_part_that_is_complete_is_used(text: Source, tmp_path: Path, site: Site) -> None:
    """A part that lacks nothing (the server answers 416) is checked and put in place."""
    (tmp_path / "text.part").write_bytes(CONTENT)
    fetch(text, tmp_path)
    assert site.asked == ["bytes=300000-"]
    assert files_in(tmp_path) == {"texts/text": CONTENT}


@pytest.mark.parametrize(
    "part", [b"x" * 300_000, b"x" * 300_001, b"x" * 5], ids=["as long", "longer", "another beginning"]
)
def test_a_wrong_part_is_removed(text: Source, tmp_path: Path, part: bytes) -> None:
    """A part that does not become the right file is removed with a word, so that the next call starts afresh."""
    (tmp_path / "text.part").write_bytes(part)
    with pytest.raises(UsageError, match=r"gave something else \(texts/text is not .*\), now removed: try again, or"):
        fetch(text, tmp_path)
    assert files_in(tmp_path) == {}
    fetch(text, tmp_path)
    assert files_in(tmp_path) == {"texts/text": CONTENT}


def test_a_wrong_download_leaves_what_was_good(site: Site, tmp_path: Path) -> None:
    """If one file of an archive is wrong, no file is replaced, neither by it nor by the others."""
    good = {"folder/a": b"good a", "folder/b": b"good b"}
    source = Source("both", f"{site.url}/both.tar.gz", {name: checksum(content) for name, content in good.items()})
    site.files["/both.tar.gz"] = packed({"folder/a": b"good a", "folder/b": b"bad b"})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b").write_bytes(b"good b")
    with pytest.raises(UsageError, match="folder/b is not what it should be"):
        fetch(source, tmp_path)
    assert files_in(tmp_path) == {"folder/b": b"good b"}
    site.files["/both.tar.gz"] = packed(good)
    assert fetch(source, tmp_path) == tmp_path / "folder"
    assert files_in(tmp_path) == good


def test_a_tar_puts_down_only_what_was_expected(site: Site, tmp_path: Path) -> None:
    """Members with other names, among them paths out of the folder, are not written anywhere."""
    members = {"../outside": b"no", "/tmp/rezero-outside": b"no", "folder/extra": b"no", "folder/a": b"a"}  # noqa: S108
    site.files["/a.tar.gz"] = packed(members)
    folder = tmp_path / "cache"
    fetch(Source("a", f"{site.url}/a.tar.gz", {"folder/a": checksum(b"a")}), folder)
    assert files_in(tmp_path) == {"cache/folder/a": b"a"}
    assert not Path("/tmp/rezero-outside").exists()  # noqa: S108


def test_a_zip_is_unpacked_and_checked_inside(site: Site, tmp_path: Path) -> None:
    """A zip's member is what is checked and kept."""
    site.files["/text.zip"] = zipped({"readme": b"no", "text": CONTENT})
    assert fetch(Source("text", f"{site.url}/text.zip", {"text": checksum(CONTENT)}), tmp_path) == tmp_path / "text"
    assert files_in(tmp_path) == {"text": CONTENT}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>please log in</html>", "gave something else"), (None, "it holds no file folder/a")],
    ids=["a page", "an archive without it"],
)
def test_another_archive_is_removed(site: Site, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """What is no archive, or has not the file, is removed with a word."""
    site.files[f"/{name}"] = content or (packed if name == "a.tar.gz" else zipped)({"other": b"a"})
    with pytest.raises(UsageError, match=message):
        fetch(Source("a", f"{site.url}/{name}", {"folder/a": checksum(b"a")}), tmp_path)
    assert files_in(tmp_path) == {}


def test_a_zip_whose_names_are_no_text_is_removed(site: Site, tmp_path: Path) -> None:
    """A zip in which a byte of a name was flipped is removed, so that the next call begins anew."""
    site.files["/text.zip"] = zipped({"é": CONTENT}).replace("é".encode(), b"\xc3\x29")
    with pytest.raises(UsageError, match=r"gave something else .*, now removed: try again"):
        fetch(Source("text", f"{site.url}/text.zip", {"é": checksum(CONTENT)}), tmp_path)
    assert files_in(tmp_path) == {}


def test_the_archive_itself_is_checked_if_its_sum_is_known(site: Site, tmp_path: Path) -> None:
    """An archive with another checksum is not opened, though its files would be right."""
    site.files["/a.tar.gz"] = packed({"folder/a": b"a"})
    source = Source("a", f"{site.url}/a.tar.gz", {"folder/a": checksum(b"a")}, archive=checksum(b"another"))
    with pytest.raises(UsageError, match="the download is not what it should be: expected sha256:"):
        fetch(source, tmp_path)
    assert files_in(tmp_path) == {}
    fetch(replace(source, archive=checksum(site.files["/a.tar.gz"])), tmp_path)
    assert files_in(tmp_path) == {"folder/a": b"a"}


def test_a_server_that_tells_no_length_is_believed_by_the_checksum(text: Source, tmp_path: Path, site: Site) -> None:
    """Without a length progress has no total, and a cut is noticed by the checksum."""
    site.tells_length = False
    totals: set[int | None] = set()
    fetch(text, tmp_path / "whole", lambda _, total: totals.add(total))
    assert totals == {None}
    site.cut = 1000
    with pytest.raises(UsageError, match="gave something else"):
        fetch(text, tmp_path / "cut")


def test_a_redirect_is_followed_with_its_range(text: Source, tmp_path: Path, site: Site) -> None:
    """A part is resumed at the address that the server names."""
    site.moved["/old"] = "/text"
    (tmp_path / "old.part").write_bytes(CONTENT[:1000])
    fetch(replace(text, url=f"{site.url}/old"), tmp_path)
    assert site.asked == ["bytes=1000-"] * 2
    assert files_in(tmp_path) == {"texts/text": CONTENT}


def test_an_address_that_is_gone_says_what_to_do(text: Source, tmp_path: Path, site: Site) -> None:
    """A refusal names the address, the reason and where to put a file fetched by hand; a part stays."""
    (tmp_path / "gone.part").write_bytes(CONTENT[:1000])
    with pytest.raises(UsageError) as caught:
        fetch(replace(text, url=f"{site.url}/gone"), tmp_path)
    assert str(caught.value) == (
        f"could not fetch {site.url}/gone (HTTP Error 404: Not Found): the same command goes on from 1,000 bytes, "
        f"or fetch it by hand and put it, unpacked, at {tmp_path / 'texts/text'}"
    )
    assert files_in(tmp_path) == {"gone.part": CONTENT[:1000]}


def test_a_server_that_is_not_there_says_so(text: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is an error with the reason, not a traceback."""
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UsageError, match=r"could not fetch http://127.0.0.1:9/text \(.*refused\): try again later, or"):
        fetch(replace(text, url="http://127.0.0.1:9/text"), tmp_path)


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_only_the_web_is_fetched_from(text: Source, tmp_path: Path, site: Site, scheme: str) -> None:
    """Local files and other schemes are refused, as an address and as where a server sends one."""
    (tmp_path / "secret").write_bytes(CONTENT)
    url = f"{scheme}://{tmp_path}/secret"
    with pytest.raises(UsageError, match=f"unknown url type: {scheme}"):
        fetch(replace(text, url=url), tmp_path / "cache")
    site.moved["/away"] = url
    with pytest.raises(UsageError, match="could not fetch"):
        fetch(replace(text, url=f"{site.url}/away"), tmp_path / "cache")
    assert files_in(tmp_path) == {"secret": CONTENT}


def test_a_folder_in_the_way_is_said_before_anything_is_fetched(text: Source, tmp_path: Path, site: Site) -> None:
    """A folder that has a file's name is an error, and the server is not asked."""
    (tmp_path / "texts/text").mkdir(parents=True)
    with pytest.raises(UsageError, match="text should become a file of text, and is a folder: move it away"):
        fetch(text, tmp_path)
    assert site.asked == []


def test_download_goes_to_the_cache(
    text: Source, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """By name a data set goes to the cache, or to a folder of choice, and never to REZERO_DATA."""
    monkeypatch.setitem(SOURCES, "text", text)
    assert download("text") == tmp_path / "caches/rezero/texts/text"
    assert download("text", folder=tmp_path / "mine") == tmp_path / "mine/texts/text"
    assert files_in(data) == {}


def test_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    """A name that is no data set lists those that are."""
    with pytest.raises(UsageError, match="no data set is called 'mnist': choose from cifar10, enwik8, tinyshakespeare"):
        download("mnist", folder=tmp_path)


def test_real_sources_are_web_addresses_with_a_sum_for_every_file() -> None:
    """Each source is fetched over http or https, and each of its files has a checksum of its algorithm's length."""
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.url.startswith(("http://", "https://"))
        for whole in [*source.files.values(), *filter(None, [source.archive])]:
            algorithm, _, digits = whole.partition(":")
            assert len(bytes.fromhex(digits)) == {"md5": 16, "sha256": 32}[algorithm]


def test_the_page_lists_every_address_and_checksum() -> None:
    """docs/datasets.md has what the sources have."""
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    for source in SOURCES.values():
        assert source.url in page
        for whole in [*source.files.values(), *filter(None, [source.archive])]:
            assert " `".join(whole.split(":")) in page
