"""The files of the disks that a revert needs, compared with those that the guest's QEMU has open.

A file that was moved or deleted since is still open in the QEMU that serves it: as long as that
QEMU runs, the file can be saved. A file that was put in the place of another one need not be what
the snapshot belongs to.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks import plugins
from pyxlsnap.disks.qcow2.backing import chain_files, refuse_broken
from pyxlsnap.disks.qcow2.tables import is_cut_off
from pyxlsnap.disks.served import ServedDisks, is_local
from pyxlsnap.disks.standing import backing_name
from pyxlsnap.errors import Refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.processes import OpenFile, identity, links_of, open_files, process_text
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.there import exists, is_file
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.text import quote

_DELETED = " (deleted)"
#: disks, each with its disk snapshot
Chosen = Sequence[tuple[Disk, DiskRequest]]


def refuse_lost(guest: Guest | None, chosen: Chosen, stay: Sequence[Disk] = ()) -> None:
    """Refuse if a file is not at its place, and the guest's QEMU still has it.

    A file that nobody has is for others to name: the disk's strategy, :func:`refuse_unopenable`.

    :param stay: the other disks of the domain, which are not put back.
    :raises Refused: the message says where the file is, or how to save it.
    """
    pid = guest.device_model_pid() if guest else None
    if guest is None or pid is None:
        return
    found_files = [*_files(chosen), *_files_of(stay)]
    everything = {path for _, files in found_files for path in files}
    missing = [path for path in everything if not exists(path)]
    known = _identities([*map(Path, guest.disk_targets()), *everything])
    server = _Server(guest.name, pid, known, tuple(path.name for path in missing))
    for disk, files in found_files:
        for path in files:
            if path not in missing:
                continue
            if found := _where(server, files, files.index(path)):
                which = "" if path == files[0] else f", on which {disk.target} stands,"
                raise Refused(f"{disk.vdev}: {path}{which} {found}")


def refuse_unopenable(stay: Sequence[Disk]) -> None:
    """Open the images of disks that are not put back, with all that they stand on.

    A disk that is not there itself is for :mod:`pyxlsnap.guest.host_needs` to name.

    :raises Refused: a restored guest's QEMU could not open one.
    """
    for disk, (active, *_) in _files_of(stay):
        if disk.format == "qcow2" and exists(active):
            refuse_broken(disk, active)


def replaced(guest: Guest | None, chosen: Chosen, stay: Sequence[Disk] = ()) -> list[str]:
    """A reason for each disk whose path leads to another file than the guest has.

    :param stay: the other disks; the present content of one that is only read does not matter.
    """
    pid = guest.device_model_pid() if guest else None
    if guest is None or (pid and not open_files(pid)):
        return []  # (a revert helps after a crash of the guest's QEMU)
    of_disks = [*_files(chosen), *_files_of([disk for disk in stay if not disk.left_out])]
    files = tuple((disk, tuple(map(str, found))) for disk, found in of_disks)
    there = tuple((d, (d.target, *f[1:])) for d, f in files)
    found = ServedDisks(guest.domid, pid, there).replaced()
    reasons = [
        f"{disk.vdev}: {file} is not the file that {server} has open for the guest: another file "
        f"was put in its place, to which the disk snapshot need not belong"
        for disk, file, server in found
    ]
    return reasons or _left_out(guest, pid, [disk for disk, _ in chosen] + list(stay))


def cut_off(chosen: Chosen, stay: Sequence[Disk] = ()) -> list[str]:
    """A reason for each disk snapshot, or file that a disk will stand on, that has lost its end.

    Who puts the disk back, and QEMU, notice nothing: a raw disk would be shorter, and an image read
    as zeros there.

    :param stay: the other disks.
    """
    return [*_shorter(chosen), *_cut_images(chosen, stay)]


def _shorter(chosen: Chosen) -> Iterator[str]:
    for disk, request in chosen:
        if disk.format != "raw" or not request.path or plugins.find(disk):
            continue
        try:
            copy, present = stat_within(request.path), stat_within(disk.target)
        except OSError:
            continue  # the disk's strategy says so
        are_files = stat.S_ISREG(copy.st_mode) and stat.S_ISREG(present.st_mode)
        if are_files and 0 < copy.st_size < present.st_size:
            yield (
                f"{disk.vdev}: the disk snapshot {request.path} has {copy.st_size} bytes, and the "
                f"disk {present.st_size}: the disk was made larger since, or the end of the "
                f"snapshot was lost"
            )


def _cut_images(chosen: Chosen, stay: Sequence[Disk]) -> Iterator[str]:
    requests = {disk.vdev: request for disk, request in chosen}
    seen: set[Path] = set()
    for disk, (_, *below) in _files_of([*(disk for disk, _ in chosen), *stay]):
        request = requests.get(disk.vdev)
        if disk.format == "qcow2" and request and not request.internal:
            try:
                below = _chain_of(request.path)
            except OSError:
                continue  # the disk's strategy says so
        for file in below:
            try:
                if file not in seen and is_cut_off(file):
                    yield (
                        f"{disk.vdev}: the file {file}, on which the disk will stand, ends before "
                        f"data that its own tables name: this data is lost, and the guest would "
                        f"read zeros (`qemu-img check -U {quote(str(file))}` counts them)"
                    )
            except OSError:
                continue  # refuse_broken says so
            seen.add(file)


def _left_out(guest: Guest, pid: int | None, disks: Sequence[Disk]) -> list[str]:
    """A reason for each image that QEMU has open in a chain, and to which no disk leads any more.

    A layer is left out if a deeper one of the same chain was put in its place.
    """
    chains = [files for _, files in _files_of(disks)]
    if pid is None or any(_is_cut(files[-1]) for files in chains):
        return []
    with refusing_os_errors():
        attached = [path for t in guest.disk_targets() for path in _chain_of(t)]
    known = _identities([*attached, *(path for files in chains for path in files)])
    return [
        f"{process_text(pid)} has the image {stray} open for the guest, and none of the disks "
        f"leads to this image any more: another file was put in the place of one that they stand on"
        for stray in _strays(pid, known)
    ]


def _chain_of(target: str) -> list[Path]:
    try:
        stat_within(target)
    except TimeoutError:
        return [Path(target)]  # a disk that was attached since; for others this was asked before
    except OSError:
        pass
    active = Path(os.path.realpath(target))
    return chain_files(active) if is_file(active) else [active]


def _is_cut(last: Path) -> bool:
    """Whether a chain goes on below its last known file: it has a name that only QEMU reads."""
    return not exists(last) or (is_file(last) and bool(backing_name(last)))


def _files(chosen: Chosen) -> Iterator[tuple[Disk, list[Path]]]:
    """Each disk with its own file, and those that it stands on before and after the revert."""
    requests = {disk.vdev: request for disk, request in chosen}
    for disk, present in _files_of([disk for disk, _ in chosen]):
        active, request = present[0], requests[disk.vdev]
        if disk.format != "qcow2" or request.internal:
            yield disk, present
        elif (frozen := Path(request.path)) in present:
            yield disk, [active, *present[present.index(frozen) :]]
        else:  # what the disk stands on now does not matter
            yield disk, [active]


def _files_of(disks: Sequence[Disk]) -> Iterator[tuple[Disk, list[Path]]]:
    """Each disk that dom0 serves from a path, with its own file and those that it stands on."""
    for disk in disks:
        if not disk.target.startswith("/") or disk.script or not is_local(disk):
            continue
        if not disk.left_out and plugins.find(disk):
            continue
        active = Path(os.path.realpath(disk.target))
        if disk.format != "qcow2":
            yield disk, [active]
            continue
        with refusing_os_errors():
            yield disk, _chain_of(disk.target)


@dataclass(frozen=True, slots=True)
class _Server:
    """The guest's QEMU."""

    domain: str
    pid: int
    #: the files that it should have open and that are at their places, by :func:`identity`
    known: frozenset[tuple[int, int]]
    #: the names, without directories, of those that are not
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return process_text(self.pid)


def _where(server: _Server, files: Sequence[Path], number: int) -> str | None:
    """What has become of a file, and the way out; ``None``: QEMU does not have it.

    QEMU opened a file that was frozen since under the name that the disk has.
    """
    links, path = links_of(server.pid), files[number]
    names = (path, files[0]) if number == 1 and exists(files[0]) else (path,)
    deleted = [f"{name}{_DELETED}" for name in names]
    for link in links:
        if link.name in deleted and not link.has_name:
            return _how_to_save(server, path, link)
    moved = _moved(server, links, path.name)
    return f"was moved to {moved}: move it back" if moved else None


def _moved(server: _Server, links: Sequence[OpenFile], name: str) -> str:
    """Where the missing file of that name is now; "" if that is not certain.

    All files of a chain may have one name, and what stands below the missing one is not known. So a
    file is named only if none of the unknown images that QEMU has open stands on such a name.
    """
    unknown = [link for link in links if link.is_file and link.key not in server.known]
    same = [link.name for link in unknown if link.has_name and Path(link.name).name == name]
    below = {Path(_backing_name(server.pid, link)).name for link in unknown}
    is_certain = len(same) == 1 and server.missing.count(name) == 1 and name not in below
    return same[0] if is_certain else ""


def _strays(pid: int, known: frozenset[tuple[int, int]]) -> list[str]:
    """The images with a backing file that QEMU has open besides the known files, by their names."""
    links = [link for link in links_of(pid) if link.is_file and link.key not in known]
    return list(dict.fromkeys(link.name for link in links if _backing_name(pid, link)))


def _backing_name(pid: int, link: OpenFile) -> str:
    """The name of the backing file of an image that a process has open; "" if it has none."""
    try:
        return backing_name(paths.PROC / f"{pid}/fd/{link.number}")
    except OSError:
        return ""


def _identities(files: Iterable[Path]) -> frozenset[tuple[int, int]]:
    """The files that are there."""
    found = set()
    for path in files:
        try:
            found.add(identity(stat_within(path)))
        except OSError:
            continue
    return frozenset(found)


def _how_to_save(server: _Server, path: Path, link: OpenFile) -> str:
    copy = f"cp --sparse=always /proc/{server.pid}/fd/{link.number} {quote(str(path))}"
    if link.writable:  # QEMU must not write to it meanwhile
        name = quote(server.domain)
        copy = f"xl pause {name} && {copy} && xl unpause {name}"
    return (
        f"was deleted, and {server} has the last copy open, which the revert would lose: save it "
        f"(`{copy}`), then run the command again, with --force"
    )
