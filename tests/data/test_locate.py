"""Where data sets are looked for."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from rezero.data.locate import cache_folder, data_folders, find
from rezero.errors import UsageError


def put(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    return path


def test_rezero_data_comes_before_the_cache(data: Path) -> None:
    """What is in both places is taken from REZERO_DATA; what only the cache has is found there."""
    cached = put(cache_folder(), "a.txt")
    assert find("a", ["a.txt"]) == cached
    given = put(data, "a.txt")
    assert find("a", ["a.txt"]) == given


def test_a_folder_comes_before_a_better_candidate(data: Path) -> None:
    """A second choice in REZERO_DATA is taken before a first choice in the cache."""
    put(cache_folder(), "first")
    assert find("x", ["first", "second"]).parent == cache_folder()
    assert find("x", ["first", "second"], suffixes=["", ".xz"]).name == "first"
    second = put(data, "second.xz")
    assert find("x", ["first", "second"], suffixes=["", ".xz"]) == second


def test_choices_are_taken_in_order(data: Path) -> None:
    """In one folder an earlier suffix counts more than an earlier candidate."""
    put(data, "first.xz")
    put(data, "second")
    assert find("x", ["first", "second"], suffixes=["", ".xz"]).name == "second"
    put(data, "first")
    assert find("x", ["first", "second"], suffixes=["", ".xz"]).name == "first"


def test_files_and_folders_are_told_apart(data: Path) -> None:
    """A folder is not found where a file is wanted, and the reverse."""
    inside = put(data, "enwik8/enwik8")
    assert find("enwik8", ["enwik8", "enwik8/enwik8"]) == inside
    assert find("enwik8", ["enwik8"], is_folder=True) == data / "enwik8"
    with pytest.raises(UsageError, match="no enwik8 here"):
        find("enwik8", ["enwik8/enwik8"], is_folder=True)


def test_nothing_found_says_what_where_and_how(data: Path) -> None:
    """The error names the candidates, both folders and the command that downloads."""
    with pytest.raises(UsageError) as caught:
        find("enwik8", ["enwik8", "enwik8/enwik8"], suffixes=["", ".xz"])
    assert str(caught.value) == (
        f"no enwik8 here: looked for enwik8 or enwik8/enwik8, .xz in {data} and {cache_folder()}; "
        "get it with `rezero download enwik8`"
    )


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_without_rezero_data_the_cache_alone_is_searched(
    data: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """REZERO_DATA unset or empty leaves the cache, and the error says that it could be set."""
    monkeypatch.delenv("REZERO_DATA")
    if value is not None:
        monkeypatch.setenv("REZERO_DATA", value)
    assert data_folders() == [cache_folder()]
    with pytest.raises(UsageError, match="or set REZERO_DATA to a folder that holds it"):
        find("a", ["a.txt"])


@pytest.mark.parametrize("name", ["absent", "file"])
def test_rezero_data_must_be_a_folder(data: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """REZERO_DATA that names nothing, or a file, is an error even if the cache has the data."""
    put(cache_folder(), "a.txt")
    put(data, "file")
    monkeypatch.setenv("REZERO_DATA", str(data / name))
    with pytest.raises(UsageError, match=rf"REZERO_DATA must name a folder .*, got '.*{name}': set it anew or unset"):
        find("a", ["a.txt"])


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is below XDG_CACHE_HOME, or below .cache in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere/rezero"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache/rezero"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/rezero"


@pytest.mark.parametrize("home", [None, "/nonexistent"], ids=["unknown", "absent"])
def test_without_a_home_the_variables_are_named(data: Path, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    """Where there is no home folder REZERO_DATA and XDG_CACHE_HOME serve as ever; without them the error names both."""
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    assert data_folders() == [data, cache_folder()]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folders() == [data]
    with pytest.raises(UsageError, match=rf"looked for a\.txt in {data}; get it with `rezero download a`$"):
        find("a", ["a.txt"])
    monkeypatch.delenv("REZERO_DATA")
    for ask in (data_folders, cache_folder, lambda: find("a", ["a.txt"])):
        with pytest.raises(UsageError, match=r"^there is no home folder .*: set XDG_CACHE_HOME .* or REZERO_DATA to"):
            ask()
