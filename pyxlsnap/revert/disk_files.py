"""The files of the disks that a revert needs, compared with those that the guest's QEMU has open.

A file that was moved or deleted since is still open in the QEMU that serves it: as long as that
QEMU runs, the file can be saved. A file that was put in the place of another one need not be what
the snapshot belongs to.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyxlsnap.disks import plugins
from pyxlsnap.disks.qcow2.backing import chain_files, refuse_broken
from pyxlsnap.disks.served import ServedDisks, is_local
from pyxlsnap.errors import Refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.processes import OpenFile, links_of, open_files, process_text
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
    others = {*guest.disk_targets(), *(str(path) for _, files in found_files for path in files)}
    server = _Server(guest.name, pid, frozenset(others))
    for disk, files in found_files:
        for path in files:
            if path.exists():
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
        if disk.format == "qcow2" and active.exists():
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
    return [
        f"{disk.vdev}: {file} is not the file that {server} has open for the guest: another file "
        f"was put in its place, to which the disk snapshot need not belong"
        for disk, file, server in found
    ]


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
            yield disk, chain_files(active) if active.is_file() else [active]


@dataclass(frozen=True, slots=True)
class _Server:
    """The guest's QEMU."""

    domain: str
    pid: int
    #: the paths of the files that it should have open
    known: frozenset[str]

    def __str__(self) -> str:
        return process_text(self.pid)


def _where(server: _Server, files: Sequence[Path], number: int) -> str | None:
    """What has become of a file, and the way out; ``None``: QEMU does not have it.

    QEMU opened a file that was frozen since under the name that the disk has.
    """
    links, path = links_of(server.pid), files[number]
    names = (path, files[0]) if number == 1 and files[0].exists() else (path,)
    deleted = [f"{name}{_DELETED}" for name in names]
    for link in links:
        if link.name in deleted and not link.has_name:
            return _how_to_save(server, path, link)
    elsewhere = [link.name for link in links if link.name not in server.known]
    if moved := [name for name in elsewhere if Path(name).name == path.name]:
        return f"was moved to {moved[0]}: move it back"
    return None


def _how_to_save(server: _Server, path: Path, link: OpenFile) -> str:
    copy = f"cp --sparse=always /proc/{server.pid}/fd/{link.number} {quote(str(path))}"
    if link.writable:  # QEMU must not write to it meanwhile
        name = quote(server.domain)
        copy = f"xl pause {name} && {copy} && xl unpause {name}"
    return (
        f"was deleted, and {server} has the last copy open, which the revert would lose: save it "
        f"(`{copy}`), then run the command again, with --force"
    )
