"""A disk strategy for raw files in a btrfs subvolume: one snapshot of the subvolume has them all.

Let ``/srv/web1`` be a subvolume with ``root.img`` and ``data.img``. Its snapshot ``monday`` is the
read-only subvolume ``/srv/web1.monday/disks``. A revert replaces the disks with reflinks of the
files in the snapshot. The disks of the clone ``web2`` are in the subvolume
``/srv/web1.monday.web2/disks``, which is a snapshot of the snapshot. :class:`pyxlsnap.DiskStrategy`
says what each method has to do, and :class:`pyxlsnap.CloningStrategy` those for clones.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyxlsnap import (
    AlreadyExists,
    Artefact,
    CloneDisk,
    Disk,
    DiskError,
    DiskRequest,
    DiskTask,
    Refused,
)

SUBVOLUME_INODE = 256  # the root of every subvolume has this inode number
TOKEN = "token"
LIMIT_S = 60.0  # a guest may be suspended meanwhile


@dataclass(frozen=True)
class Volume:
    """A subvolume with disks in it."""

    path: Path
    #: the directory of its snapshot
    snapshot: Path
    #: by vdev
    disks: Mapping[str, Path]


class Subvolumes:
    """The strategy for all raw files in btrfs subvolumes of one operation."""

    kind = "btrfs subvolume"

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        for disk, request in disks:
            if not request.internal:
                raise Refused(
                    f"{disk.vdev}: its snapshot is in the btrfs filesystem itself: write "
                    f"',,{disk.vdev}'"
                )
        self.vdevs = tuple(disk.vdev for disk, _ in disks)
        self._name = task.name
        killed = dict(task.finishes or {})
        #: part of the names of temporary files; a run that finishes this one removes them
        self._token = killed.get(f"{self.vdevs[0]} token") or secrets.token_hex(16)
        self._made: set[Path] = set()
        #: the inode of each disk that a revert keeps, by its key in the state
        self._noted: dict[str, str] = {}
        self._of_killed = killed
        #: those of the clone, each with the volume that it is made from
        self._clones: list[tuple[Volume, Volume]] = []
        paths = {disk.vdev: Path(os.path.realpath(disk.target)) for disk, _ in disks}
        self._volumes = [
            Volume(
                path,
                path.with_name(f"{path.name}.{task.name}"),
                {vdev: file for vdev, file in paths.items() if file.parent == path},
            )
            for path in sorted({file.parent for file in paths.values()})
        ]

    @staticmethod
    def claims(disk: Disk) -> bool:
        """Not a disk in the root of a filesystem: there is no place beside the root."""
        if disk.format != "raw" or disk.script or not Path(disk.target).is_file():
            return False
        parent = Path(os.path.realpath(disk.target)).parent
        mounted, filesystem = _mount(parent)
        return (
            filesystem == "btrfs" and parent.stat().st_ino == SUBVOLUME_INODE and parent != mounted
        )

    # create

    def check_create(self, domid: int) -> None:
        for volume in self._volumes:
            for file in volume.disks.values():
                self._probe(volume, file, file)
            self._check_new(volume)

    def _check_new(self, volume: Volume) -> None:
        if not shutil.which("btrfs"):
            raise Refused(
                f"{', '.join(self.vdevs)}: there is no btrfs command: install btrfs-progs"
            )
        if os.path.lexists(volume.snapshot):
            raise AlreadyExists(
                f"{volume.snapshot} exists: choose another name", where=str(volume.snapshot)
            )

    def expected_seconds(self) -> float:
        return 0.1 * len(self._volumes)

    def state(self) -> dict[str, str]:
        return {f"{vdev} token": self._token for vdev in self.vdevs} | self._noted

    def prepare(self) -> None:
        for volume in self._volumes:
            self._make(volume, sync=volume.disks.values())  # little is left for the window

    def _make(self, volume: Volume, sync: Iterable[Path] = ()) -> None:
        """Make the directory of a snapshot, or of a clone's disks."""
        try:
            volume.snapshot.mkdir(0o700)  # fails if it exists by now
            self._made.add(volume.snapshot)
            (volume.snapshot / TOKEN).write_text(self._token)
            for file in sync:
                _sync(file)
        except OSError as e:
            raise _error(volume, f"{e.filename}: {e.strerror}") from e

    def create(self) -> None:
        for volume in self._volumes:
            target = str(volume.snapshot / "disks")
            _btrfs(volume, "subvolume", "snapshot", "-r", str(volume.path), target)

    def finish_create(self) -> None:
        for volume in self._volumes:
            _btrfs(volume, "filesystem", "sync", str(volume.snapshot))

    def settle(self) -> None:
        """Nothing to do: ``create`` does not touch the files of the guest."""

    def undo_create(self) -> list[str]:
        return [f"deleted {v.snapshot}" for v in self._volumes if self._delete(v)]

    def _delete(self, volume: Volume) -> bool:
        token = volume.snapshot / TOKEN
        said = token.read_text() if token.exists() else ""
        if volume.snapshot not in self._made and said != self._token:
            if said or not volume.snapshot.exists():
                return False  # not made by this operation
            raise _error(volume, f"{volume.snapshot} may be part of this snapshot: look at it")
        if others := {file.name for file in volume.snapshot.iterdir()} - {TOKEN, "disks"}:
            raise _error(volume, f"{volume.snapshot} has {', '.join(others)}: delete that first")
        if (disks := volume.snapshot / "disks").exists():
            _btrfs(volume, "subvolume", "delete", str(disks))
        token.unlink(missing_ok=True)
        volume.snapshot.rmdir()
        return True

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        self._token = state[f"{self.vdevs[0]} token"]

    def artefacts(self, domain: str) -> list[Artefact]:
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{v.snapshot} ({', '.join(v.disks)}; btrfs subvolume)",
                delete=_by_hand(v),
                vdev=",".join(v.disks),
            )
            for v in self._volumes
        ]

    # revert

    def check_revert(self) -> None:
        for volume in self._volumes:
            for vdev, file in volume.disks.items():
                source = _snapshot_of(volume, vdev)
                self._check_kept(vdev, file)
                self._probe(volume, source, file)

    def _check_kept(self, vdev: str, file: Path) -> None:
        """Note which file will be kept.

        :raises Refused: a file has the name that the run did not make that this revert finishes.
        """
        kept, key = self._kept(file), f"{vdev} kept"
        inode = _inode(kept) or _inode(file)
        if os.path.lexists(kept) and inode not in (self._noted.get(key), self._of_killed.get(key)):
            raise Refused(
                f"{vdev}: {kept} exists, and a revert would keep the disk there: move it away"
            )
        self._noted[key] = inode

    def _probe(self, volume: Volume, source: Path, file: Path) -> None:
        """Check that a revert can share blocks: files with different attributes cannot.

        :raises Refused: a revert could not share blocks.
        """
        probe = self._new(file)
        try:
            _run(volume, "cp", "--reflink=always", str(source), str(probe))
        except DiskError as e:
            raise Refused(
                f"{e}: give {file} the attributes of its directory (lsattr), or leave it out"
            ) from e
        finally:
            probe.unlink(missing_ok=True)

    def revert(self) -> None:
        for volume in self._volumes:
            for vdev, file in volume.disks.items():
                self._put_back(volume, vdev, file)

    def _put_back(self, volume: Volume, vdev: str, file: Path) -> None:
        new, kept = self._new(file), self._kept(file)
        source = str(volume.snapshot / "disks" / file.name)
        _run(volume, "cp", "--reflink=always", "--preserve=all", source, str(new))
        try:
            _sync(new)
            if not os.path.lexists(kept):  # else the interrupted revert kept it
                os.link(file, kept)
            if _inode(kept) != self._noted[f"{vdev} kept"]:
                raise _error(volume, f"another program has changed {file} or {kept}: look at them")
            os.rename(new, file)
            _sync(volume.path)
        except OSError as e:
            raise _error(volume, f"{e.filename}: {e.strerror}") from e

    def finish_revert(self, domid: int) -> list[str]:
        left = []
        for volume in self._volumes:
            for vdev, file in volume.disks.items():
                kept = self._kept(file)
                ours = (self._noted or self._of_killed).get(f"{vdev} kept")
                try:
                    if _inode(kept) == ours:
                        kept.unlink(missing_ok=True)
                except OSError as e:
                    left.append(f"{e.filename}: {e.strerror}")
        return left

    # delete

    def check_delete(self, domid: int | None) -> None:
        for volume in self._volumes:
            if os.path.lexists(volume.snapshot) and not (volume.snapshot / TOKEN).is_file():
                raise Refused(
                    f"{', '.join(volume.disks)}: {volume.snapshot} was not made by this strategy, "
                    f"or is incomplete: look at it"
                )

    def prepare_delete(self) -> list[str]:
        """Nothing to do: the files of the guest do not depend on a snapshot."""
        return []

    def delete(self) -> list[str]:
        self.check_delete(None)
        there = [v for v in self._volumes if os.path.lexists(v.snapshot)]
        for volume in there:
            self._token = (volume.snapshot / TOKEN).read_text()
            self._delete(volume)
        return [f"deleted {volume.snapshot}" for volume in there]

    # clone

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        found = []
        self._clones = [
            (v, replace(v, snapshot=v.snapshot.with_name(f"{v.snapshot.name}.{name}")))
            for v in self._volumes
        ]
        for volume, own in self._clones:
            self._check_new(own)
            for vdev in volume.disks:
                if vdev in wanted:
                    raise Refused(f"{vdev}: its place is beside the snapshot: do not name it")
                target = str(own.snapshot / "disks" / _snapshot_of(volume, vdev).name)
                found.append(CloneDisk(vdev, target, "raw", "btrfs snapshot", _by_hand(own)))
        return found

    def clone(self) -> None:
        for volume, own in self._clones:
            self._make(own)
            source, target = volume.snapshot / "disks", own.snapshot / "disks"
            _btrfs(own, "subvolume", "snapshot", str(source), str(target))
            _btrfs(own, "filesystem", "sync", str(own.snapshot))

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        self._token = state.get(f"{self.vdevs[0]} token", self._token)
        files = {disk.vdev: Path(disk.target) for disk in disks}
        deleted, failed = [], []
        for place in sorted({file.parent.parent for file in files.values()}):
            here = {vdev: file for vdev, file in files.items() if place in file.parents}
            try:
                if place.exists() and self._delete(Volume(place, place, here)):
                    deleted.append(f"deleted {place}")
            except DiskError as e:
                failed.append(e)
        if failed:
            raise DiskError("; ".join(map(str, failed)), vdev=", ".join(e.vdev for e in failed))
        return deleted

    def _new(self, file: Path) -> Path:
        return file.with_name(f".{file.name}.{self._token}.new")

    def _kept(self, file: Path) -> Path:
        return file.with_name(f"{file.name}.{self._name}.pre-revert")

    def close(self) -> None:
        """Nothing to close."""


def _snapshot_of(volume: Volume, vdev: str) -> Path:
    """The file of a disk in the snapshot."""
    source = volume.snapshot / "disks" / volume.disks[vdev].name
    if source.is_symlink() or not source.is_file():
        raise Refused(f"{vdev}: {volume.snapshot} has no {source.name}: the snapshot is incomplete")
    return source


def _by_hand(volume: Volume) -> str:
    return f"btrfs subvolume delete {volume.snapshot}/disks && rm -r {volume.snapshot}"


def _inode(path: Path) -> str:
    """ "" if there is no such file."""
    return str(path.lstat().st_ino) if os.path.lexists(path) else ""


def _mount(path: Path) -> tuple[Path, str]:
    """The mount point of the filesystem of a path, and the type of the filesystem.

    (``os.path.ismount`` reports every subvolume as a mount point.)
    """
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounts[Path(before.split()[4].replace("\\040", " "))] = after.split()[0]
    mounted = max((m for m in mounts if path.is_relative_to(m)), key=lambda m: len(m.parts))
    return mounted, mounts[mounted]


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _btrfs(volume: Volume, *words: str) -> None:
    _run(volume, "btrfs", *words)


def _run(volume: Volume, *words: str) -> None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as e:
        raise _error(volume, str(e)) from e
    if done.returncode:
        raise _error(volume, done.stderr.strip())


def _error(volume: Volume, what: str) -> DiskError:
    return DiskError(what, vdev=", ".join(volume.disks))
