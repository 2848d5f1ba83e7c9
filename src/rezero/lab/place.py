"""Places where a study can be; all others are refused before anything is written."""

import os
from pathlib import Path

import psutil

from rezero.errors import UsageError
from rezero.lab.holder import LOCK
from rezero.lab.mounts import is_network, mount_of

__all__ = ["DATABASE", "check_local", "check_new_folder", "check_writable"]

DATABASE = "study.sqlite"


def check_local(folder: Path, *, exists: bool) -> None:
    """Refuse a network file system.

    Args:
        folder: The study's folder.
        exists: Whether a study is there.

    Raises:
        UsageError: If it lies on one.
    """
    try:
        mount = mount_of(folder.resolve(), psutil.disk_partitions(all=True))
    except (OSError, RuntimeError):
        return  # a system that tells nobody, or a link to itself, of which what comes next will tell
    if mount is not None and is_network(mount.fstype):
        advice = (
            "copy the study to a local folder, go on there, and copy it back at the end"
            if exists
            else "give a local folder with --output, and copy the study there when it is done"
        )
        raise UsageError(
            f"expected a study on a disk of this machine, got {folder} on {mount.fstype}, a network file system "
            f"({mount.mountpoint}), where SQLite's write-ahead log does not work: {advice}"
        )


def check_new_folder(folder: Path) -> None:
    """Refuse a place where no study can begin.

    Args:
        folder: The study's folder.

    Raises:
        UsageError: If it is a file, holds other files, or may not be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"expected a folder for the study, got a file: {folder}")
    if folder.is_dir() and any(not file.name.startswith((LOCK, DATABASE)) for file in folder.iterdir()):
        empty = f" beside an empty {DATABASE}" if (folder / DATABASE).exists() else ""
        raise UsageError(
            f"expected an empty or new folder, or one that holds this study: {folder} holds other files{empty}"
        )
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UsageError(f"cannot write to the output folder {folder}: {parent} is not a folder that you may write to")


def check_writable(folder: Path) -> None:
    """Refuse a study that may only be read; SQLite writes a log beside a database that it reads, too.

    Args:
        folder: The study's folder.

    Raises:
        UsageError: If its folder or its database may not be written to.
    """
    for place in (folder.absolute(), folder.absolute() / DATABASE):
        if place.exists() and not os.access(place, os.W_OK):
            raise UsageError(
                f"cannot write to the output folder {folder}: {place} is not yours to write to; copy the study, or get "
                "that right"
            )
