"""Pack a snapshot into a tar file, to move it to another host.

Usage: move_snapshot.py CFGFILE ARCHIVE

Prints the commands for the other host. The domain's disks must have external disk snapshots: qcow2
files, or copies in files. A snapshot inside an image, or an LVM volume, is no file that can be
moved by itself.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pyxlsnap import SnapshotDisk, SnapshotInfo, read_snapshot

COPIES = ("raw file", "block device")


def files_of(info: SnapshotInfo) -> list[str]:
    """The files that make up a snapshot; each image with all that it stands on.

    :raises SystemExit: a part is missing, or is no file.
    """
    if info.missing:
        sys.exit(f"{info.cfgfile} is not whole: {'; '.join(info.missing)}")
    found = [info.memory_path, info.cfgfile]
    for disk in info.disks:
        external = disk.kind == "qcow2" and Path(disk.where).is_absolute()
        if not external and disk.kind not in COPIES:
            sys.exit(f"{disk.vdev}: {disk.where} is no file that can be moved by itself")
        found += [disk.where, *disk.stands_on]
    return list(dict.fromkeys(found))


def commands(info: SnapshotInfo, archive: str) -> Iterator[list[str]]:
    """What is to be typed on the other host. The revert replaces the content of the disks.

    No file that is there is replaced: tar fails (-k), and so does the look for a disk.
    """
    yield ["tar", "-C", "/", "--xattrs", "-kxSf", archive]
    for disk in info.disks:
        if disk.kind != "block device":
            yield ["test", "!", "-e", disk.target]
    for disk in info.disks:
        yield new_disk(disk)
    for option in (["--dry-run"], []):
        yield ["pyxlsnap", "snapshot-revert", *option, info.domain, info.cfgfile]


def new_disk(disk: SnapshotDisk) -> list[str]:
    """The command that makes a disk for the revert to replace; or that shows a device's size."""
    if disk.kind == "qcow2":
        overlay = ["-b", disk.where, "-F", "qcow2", disk.target]
        return ["qemu-img", "create", "-q", "-f", "qcow2", *overlay]
    if disk.kind == "block device":  # a person must make it: this fails if there is none
        return ["blockdev", "--getsize64", disk.target]
    return ["truncate", "-s", str(Path(disk.where).stat().st_size), disk.target]


def main() -> None:
    """Pack, and print the commands."""
    cfgfile, archive = sys.argv[1:]
    info = read_snapshot(cfgfile)
    names = [path.lstrip("/") for path in files_of(info)]
    subprocess.run(["tar", "-C", "/", "--xattrs", "-cSf", archive, "--", *names], check=True)
    print("# Copy the archive to the other host, which must have Xen", info.versions["xen"])
    for disk in info.disks:
        if disk.kind == "block device":
            size = Path(disk.where).stat().st_size
            print(f"# There {disk.target} must be a block device of {size} bytes: make it first.")
    print("# What fails ends the rest: a file may be in the way.")
    print("(set -e")
    for command in commands(info, archive):
        print(shlex.join(command))
    print(")")


if __name__ == "__main__":
    main()
