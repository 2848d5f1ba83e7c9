"""File systems: which one a folder lies on, and whether SQLite's log works there."""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

__all__ = ["Mount", "is_network", "mount_of"]

# SQLite's write-ahead log needs memory that all who write share, and locks that hold: https://sqlite.org/wal.html.
# The host's folders in a virtual machine or container (9p, virtiofs, overlay) are no network.
_NETWORK = (
    *("nfs*", "cifs", "smb*", "afs", "afpfs", "ncpfs", "ncp", "coda", "webdav", "davfs*", "sshfs"),
    *("lustre", "gpfs", "mmfs", "beegfs*", "fhgfs", "ceph*", "glusterfs*", "orangefs", "pvfs*", "panfs", "wekafs"),
    *("moosefs", "mfs", "juicefs*", "quobyte*", "rclone*", "s3fs*", "gcsfuse*", "goofys*", "mount-s3", "mountpoint-s3"),
    *("blobfuse*", "hdfs*", "alluxio*", "seaweedfs*", "curlftpfs", "gvfsd-fuse"),
)


class Mount(Protocol):
    """A file system's place, as psutil tells it."""

    @property
    def mountpoint(self) -> str:
        """The folder at which it begins."""

    @property
    def fstype(self) -> str:
        """What it is, such as ext4, nfs4 or fuse.sshfs."""


def mount_of(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that a path lies on: the longest that contains it, of equal ones the last, which hides the rest.

    Args:
        path: Absolute, without symbolic links; need not exist.
        mounts: All of the machine, in the order in which they were made.

    Returns:
        The mount; None if none contains the path.
    """
    own = path.parts
    within = [each for each in mounts if own[: len(parts := Path(each.mountpoint).parts)] == parts]
    return max(enumerate(within), key=lambda at: (len(Path(at[1].mountpoint).parts), at[0]), default=(0, None))[1]


def is_network(fstype: str) -> bool:
    """Say whether a type of file system is that of another machine's files.

    Args:
        fstype: As the system calls it.

    Returns:
        Whether it is.

    Example:
        >>> [is_network(each) for each in ("nfs4", "fuse.sshfs", "ext4", "fuseblk")]
        [True, True, False, False]
    """
    name = fstype.lower().removeprefix("fuse.")
    return any(fnmatch(name, each) for each in _NETWORK)
