"""The data sets that can be fetched, and what their files must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rezero.data.locate import find
from rezero.errors import UsageError

__all__ = ["CIFAR10", "ENWIK8", "SOURCES", "TINY_SHAKESPEARE", "Source", "find_source", "locate"]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it is known to be right.

    Attributes:
        name: What ``rezero download`` and reports call it.
        url: Where it is published, http or https: the file itself, or a .zip or .tar.gz that holds the files under
            their names.
        files: Path below a data folder to the checksum of what must be there, such as ``md5:5ff9c5...``.
        archive: Checksum of what the address gives; None where none was published.
    """

    name: str
    url: str
    files: Mapping[str, str]
    archive: str | None = None


CIFAR10 = Source(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    {
        "cifar-10-batches-py/data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "md5:40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
    },
    archive="md5:c58f30108f718f92721af3b95e74349a",
)

ENWIK8 = Source("enwik8", "http://mattmahoney.net/dc/enwik8.zip", {"enwik8": "md5:a1fa5ffddb56f4953e226637dabbb36a"})

TINY_SHAKESPEARE = Source(
    "tinyshakespeare",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    {"tinyshakespeare/input.txt": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
)

SOURCES = {source.name: source for source in (CIFAR10, ENWIK8, TINY_SHAKESPEARE)}
"""Every source by name."""


def find_source(name: str) -> Source:
    """Look a source up.

    Args:
        name: Name of a data set.

    Returns:
        Its source.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in SOURCES:
        raise UsageError(f"no data set is called {name!r}: choose from {', '.join(SOURCES)}")
    return SOURCES[name]


def locate(source: Source) -> Path:
    """Find a data set on this machine.

    Args:
        source: Which. One that is a single file may also lie in a folder of its name, and end in .xz, .zip or .gz.

    Returns:
        The file, or the folder that holds its files.

    Raises:
        MissingDataError: If it is nowhere.
        UsageError: If REZERO_DATA is no folder.
    """
    if len(source.files) > 1:
        folders = {str(PurePosixPath(file).parent) for file in source.files}
        return find(source.name, sorted(folders), is_folder=True)
    [place] = source.files
    places = dict.fromkeys((place, f"{source.name}/{PurePosixPath(place).name}"))
    return find(source.name, [*places], suffixes=("", ".xz", ".zip", ".gz"))
