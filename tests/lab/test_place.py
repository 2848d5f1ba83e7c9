"""File systems on which no study can be."""

from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from rezero.cli import run
from rezero.errors import UsageError
from rezero.lab import Settings, Store, Study, find_task
from rezero.lab.mounts import is_network, mount_of


class Place(NamedTuple):
    mountpoint: str
    fstype: str


MOUNTS = [
    Place("/", "ext4"),
    Place("/proc", "proc"),
    Place("/home", "autofs"),
    Place("/home", "nfs4"),
    Place("/home/me/local", "xfs"),
    Place("/mnt/my disk", "fuse.sshfs"),
    Place("/mnt/nfs", "nfs"),
    Place("/mnt/nfs", "ext4"),
    Place("/scratch", "lustre"),
]

LIES_ON = {
    "/": "ext4",
    "/somewhere/study": "ext4",
    "/home": "nfs4",
    "/home/me/study": "nfs4",
    "/homes/study": "ext4",
    "/home/me/local/study": "xfs",
    "/home/me/localities": "nfs4",
    "/mnt/my disk/a/b": "fuse.sshfs",
    "/mnt/nfs/study": "ext4",
    "/scratch/study": "lustre",
}


@pytest.mark.parametrize(("path", "fstype"), LIES_ON.items(), ids=LIES_ON)
def test_a_path_lies_on_the_longest_mount(path: str, fstype: str) -> None:
    """Of the mounts that contain a path the longest counts, and of two at one place the later."""
    mount = mount_of(Path(path), MOUNTS)
    assert mount is not None
    assert mount.fstype == fstype


def test_a_path_may_lie_on_no_mount() -> None:
    """Where nothing is known of a path there is no mount."""
    assert mount_of(Path("/somewhere"), MOUNTS[1:]) is None


NETWORK = (
    *("nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "SMBFS", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"),
    *("fuse.sshfs", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "webdav", "afpfs"),
)
LOCAL = (
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "hfs", "ntfs", "NTFS", "fuseblk"),
    *("f2fs", "bcachefs", "9p", "virtiofs", "vfat", "exfat", "squashfs", "fuse.fuse-overlayfs", "fuse.ntfs-3g", "nsfs"),
)


@pytest.mark.parametrize("fstype", NETWORK)
def test_another_machines_files_are_known(fstype: str) -> None:
    """Each of these is a network file system."""
    assert is_network(fstype)


@pytest.mark.parametrize("fstype", LOCAL)
def test_this_machines_files_are_known(fstype: str) -> None:
    """None of these is a network file system."""
    assert not is_network(fstype)


def study() -> Study:
    settings = find_task("fc-digits").settings({"arms": ("plain",), "depth": 2, "epochs": 1, "seeds": 1})
    assert isinstance(settings, Settings)
    return Study("fc-digits", settings, {})


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("fstype", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_a_network_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    """New or old, to read or to run, behind a link or not: one line names the file system, and no byte is written."""
    far, near = tmp_path / "far", tmp_path / "near"
    with Store.open(far / "old", study()):
        pass
    near.mkdir()
    (near / "link").symlink_to(far)
    before = tree(tmp_path)
    mounts = [Place("/", "ext4"), Place(str(far.resolve()), fstype)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    what = rf"got .* on {fstype}, a network file system \({far}\), where SQLite's write-ahead log does not work: "
    give, copy = "give a local folder with --output, and copy the study there", "copy the study to a local folder"
    for root in (far, near / "link"):
        for folder, asked, advice in (
            (root / "new" / "one", study(), give),
            (root / "old", study(), copy),
            (root / "old", None, copy),
        ):
            with pytest.raises(UsageError, match=what + advice) as caught, Store.open(folder, asked):
                pass
            assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    with Store.open(near / "local", study()):
        pass


def test_commands_refuse_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare` and `report` end with code 2 and that line."""
    with Store.open(tmp_path / "old", study()):
        pass
    before = tree(tmp_path)
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [Place("/", "nfs4")])
    for arguments in (["compare", "fc-digits", "-o", str(tmp_path / "new")], ["report", str(tmp_path / "old")]):
        assert run(arguments) == 2
        assert "on nfs4, a network file system (/), where SQLite's" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_system_that_tells_no_mounts_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mounts can't be read a study is made all the same."""

    def refuse(**_: bool) -> None:
        raise PermissionError("no /proc here")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    with Store.open(tmp_path / "study", study()):
        pass
