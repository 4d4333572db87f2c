"""qcow2 with the snapshot in a file of its own: the frozen-base chain.

The path in the cfgfile (the external path) becomes the FROZEN state. The running disk keeps its own
path, because libxl keeps that path in its store and would reboot the guest from it; it leads to a
new overlay from then on, which stands on the frozen file. Two traps, both seen as silent corruption
on a real Xen (xen-lab.md, E1), dictate the order and the names:

- At the switch QEMU reopens the old file BY ITS NAME. So it switches to the overlay under a name
  that nothing has had before, and the overlay is renamed over the disk's path only after that.
- Between switch and rename a guest that runs would write to a file that its next boot does not
  find. So it must not be resumed in between: :meth:`External.settle` finishes the rename.
"""

import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyxlsnap.disks.copy.content import (
    copy_attributes,
    drop_kept,
    kept_path,
    new_file,
    os_errors,
    refuse_long_kept,
)
from pyxlsnap.disks.qcow2.qemu import (
    NODE_PREFIX,
    GuestQemu,
    image_chain,
    image_info,
    image_tags,
    qemu_img,
    wait_released,
)
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.linux.files import hidden_name, open_regular, refuse_existing, sync_directory
from pyxlsnap.linux.processes import holders, process_name
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest
from pyxlsnap.results import Artefact
from pyxlsnap.text import quote


@dataclass(slots=True)
class _Chain:
    """One disk: the files of its chain that we handle."""

    disk: Disk
    #: where the disk's path really leads to
    active: Path
    #: the external path
    frozen: Path
    #: the overlay's name until it is renamed over ``active``; never used before
    overlay: Path
    #: the overlay's node in QEMU
    node: str


class External:
    """The disks of an operation with external snapshots; a part of :mod:`.qcow2`."""

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], name: str) -> None:
        self.disks = tuple(disk for disk, _ in disks)
        self._name = name
        self._chains = [_chain(disk, request) for disk, request in disks]

    def state(self) -> dict[str, str]:
        """The names that are new each time."""
        return {f"{c.disk.vdev} overlay": str(c.overlay) for c in self._chains}

    def adopt(self, state: Mapping[str, str]) -> None:
        """Take the names of another process."""
        for chain in self._chains:
            chain.overlay = Path(state[f"{chain.disk.vdev} overlay"])

    # create

    def check(self, qemu: GuestQemu) -> None:
        """:raises Refused: an external snapshot of a disk would not work."""
        for chain in self._chains:
            vdev = chain.disk.vdev
            if not chain.active.is_file():
                raise Refused(
                    f"{vdev}: {chain.active} is no regular file, and only such a one can be "
                    f"frozen: write ',,{vdev}' for an internal snapshot"
                )
            refuse_existing(chain.frozen)
            refuse_long_kept(chain.disk, chain.active, self._name)
            _check_utf8(chain)
            if tags := qemu.tags(vdev):
                raise Refused(
                    f"{vdev}: {chain.active} has disk snapshots inside ({tags[0].name}, …), which "
                    f"an external one would put out of reach: write ',,{vdev}' for another "
                    f"internal one, or delete them first"
                )
            _check_backing_name(chain)
            _check_link(chain)

    def prepare(self, qemu: GuestQemu) -> None:
        """Make the overlays, and the second name of what is to be frozen."""
        for chain in self._chains:
            size = qemu.image(chain.disk.vdev)["virtual-size"]
            try:
                os.link(chain.active, chain.frozen, follow_symlinks=False)
            except FileExistsError as e:
                raise AlreadyExists(
                    f"{chain.frozen} exists: choose another name", where=str(chain.frozen)
                ) from e
            except OSError as e:
                raise DiskError(f"{chain.frozen}: {e.strerror}", vdev=chain.disk.vdev) from e
            # -u: not to be opened, for the guest's QEMU has it. Nothing must be cut off meanwhile.
            _make_overlay(chain, chain.overlay, "-u", size=str(size))

    def actions(self, qemu: GuestQemu) -> list[dict[str, Any]]:
        """The actions of a QMP transaction."""
        return [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": qemu.node(chain.disk.vdev),
                    "snapshot-file": str(chain.overlay),
                    "snapshot-node-name": chain.node,
                    "format": "qcow2",
                    "mode": "existing",
                },
            }
            for chain in self._chains
        ]

    def switched(self) -> None:
        """QEMU writes to the overlays: they take the disks' names.

        :raises DiskError: one has not. The guest must not run before :meth:`settle` has worked.
        """
        for chain in self._chains:
            _take_name(chain, chain.overlay)

    def protect(self) -> None:
        """Make the frozen files read-only: whoever writes to one damages the disk."""
        for chain in self._chains:
            _protect(chain)

    def settle(self) -> None:
        """See :meth:`pyxlsnap.disks.protocol.DiskStrategy.settle`.

        Whether QEMU has switched is seen from whether it has the overlay open: so a monitor that
        does not answer is no hindrance, nor is another process that began it.
        """
        for chain in self._chains:
            _settle(chain)

    def undo(self) -> list[str]:
        """Remove overlays and second names of a switch that did not take place.

        One that did is not taken back: the disk is whole, on its chain.

        :raises DiskError: a chain is left, or a file could not be removed.
        """
        undone: list[str] = []
        left: list[tuple[Disk, str]] = []
        for chain in self._chains:
            try:
                undone += _undo(chain)
            except OSError as e:
                left.append((chain.disk, f"{e.filename}: {e.strerror}"))
            except DiskError as e:
                left.append((chain.disk, e.message.removeprefix(f"{chain.disk.vdev}: ")))
        if left:
            raise DiskError(
                "; ".join(text for _, text in left), vdev=", ".join(d.vdev for d, _ in left)
            )
        return undone

    def artefacts(self) -> list[Artefact]:
        """What was made."""
        return [_artefact(chain) for chain in self._chains]

    # revert

    def check_revert(self) -> None:
        """:raises Refused: the frozen file is not there, or no image; or more would be lost."""
        for chain in self._chains:
            vdev = chain.disk.vdev
            if not chain.frozen.is_file():
                raise Refused(
                    f"{vdev}: there is no file {chain.frozen}, the disk snapshot: without it there "
                    f"is no way back"
                )
            refuse_long_kept(chain.disk, chain.active, self._name)
            try:
                image_info(chain.disk, str(chain.frozen))
            except DiskError as e:
                raise Refused(str(e)) from e
            if inside := _snapshots_inside(chain):
                raise Refused(
                    f"{vdev}: {chain.active} has disk snapshots inside that were taken since "
                    f"({', '.join(inside)}); going back puts another file in its place, and they "
                    f"would go with it: delete them first (qemu-img snapshot -d)"
                )

    def revert(self) -> None:
        """Put a new overlay of the frozen file in the place of the disk, which is kept.

        A kept one that is there already was kept by a run of this that was interrupted, and stays.

        :raises DiskError: another process has an image open; nothing was written then.
        """
        for chain in self._chains:
            wait_released(chain.disk)
        for chain in self._chains:
            overlay = _fresh(chain.active)
            try:
                if not self._kept(chain).exists():
                    os.link(chain.active, self._kept(chain), follow_symlinks=False)
                _make_overlay(chain, overlay)
                os.rename(overlay, chain.active)
                sync_directory(chain.active.parent)
            except OSError as e:
                raise DiskError(f"{e.filename}: {e.strerror}", vdev=chain.disk.vdev) from e
            finally:
                overlay.unlink(missing_ok=True)

    def finish_revert(self) -> list[str]:
        """Remove what was kept; returns what could not be removed."""
        return drop_kept(map(self._kept, self._chains))

    def _kept(self, chain: _Chain) -> Path:
        return kept_path(chain.active, self._name)


def _chain(disk: Disk, request: DiskRequest) -> _Chain:
    if request.format not in ("", "qcow2"):
        raise Refused(
            f"{disk.vdev}: an external snapshot of a qcow2 disk is qcow2, not {request.format}"
        )
    frozen = Path(request.path)
    if not frozen.is_absolute():
        raise Refused(
            f"{disk.vdev}: the external path {request.path} must be absolute: write it from / on"
        )
    active = Path(os.path.realpath(disk.target))
    node = f"{NODE_PREFIX}-{disk.vdev}-{secrets.token_hex(4)}"
    return _Chain(disk, active, frozen, _fresh(active), node)


def _fresh(active: Path) -> Path:
    """A name in a disk's directory that nothing has ever had."""
    return hidden_name(active, f".{secrets.token_hex(8)}.overlay")


def _check_utf8(chain: _Chain) -> None:
    """A path that QEMU's monitor cannot be told would only be found out in the window."""
    try:
        f"{chain.overlay}{chain.frozen}".encode()
    except UnicodeEncodeError:
        raise Refused(
            f"{chain.disk.vdev}: {chain.active} is not UTF-8, and QEMU takes no other path: rename "
            f"it, or write ',,{chain.disk.vdev}' for an internal snapshot"
        ) from None


def _snapshots_inside(chain: _Chain) -> list[str]:
    """The disk snapshots in the file that a revert replaces, but for what a revert kept itself."""
    try:
        tags = image_tags(chain.disk)
    except DiskError:
        return []  # damaged, or not there: a good reason to go back
    return [tag.name for tag in tags if not tag.name.endswith(KEPT_SUFFIX)]


def _check_backing_name(chain: _Chain) -> None:
    """A relative backing file is looked for beside the file: it must be the same one from there."""
    backing = image_info(chain.disk, str(chain.active)).get("backing-filename", "")
    if not backing or Path(backing).is_absolute() or ":" in backing.split("/")[0]:
        return
    here, there = chain.active.parent / backing, chain.frozen.parent / backing
    if not (there.exists() and there.samefile(here)):
        raise Refused(
            f"{chain.disk.vdev}: {chain.active} stands on {backing}, by a relative name that leads "
            f"elsewhere from {chain.frozen.parent}: choose an external path beside the disk"
        )


def _check_link(chain: _Chain) -> None:
    """Only a link that was made shows that one can be made: there are bind mounts."""
    probe = hidden_name(chain.frozen, f".{secrets.token_hex(8)}.probe")
    try:
        os.link(chain.active, probe, follow_symlinks=False)
        probe.unlink()
    except OSError as e:
        raise Refused(
            f"{chain.disk.vdev}: {chain.frozen} cannot be a link to {chain.active} ({e.strerror}): "
            f"choose an external path on the same filesystem"
        ) from e


def _make_overlay(chain: _Chain, path: Path, *options: str, size: str = "") -> None:
    """An empty overlay of the frozen file, with the disk's owner, mode and attributes."""
    with (
        os_errors(chain.disk, path),
        open_regular(chain.active) as active,
        new_file(path) as overlay,
    ):
        copy_attributes(active.fileno(), overlay)
    backing = ["-b", str(chain.frozen), "-F", "qcow2"]
    arguments = ["-q", "-f", "qcow2", *options, *backing, str(path), *([size] if size else [])]
    qemu_img(chain.disk, "create", *arguments)


def _take_name(chain: _Chain, overlay: Path) -> None:
    try:
        os.rename(overlay, chain.active)
        sync_directory(chain.active.parent)
    except OSError as e:
        raise DiskError(
            f"{overlay} could not take the name {chain.active}: {e.strerror}",
            vdev=chain.disk.vdev,
        ) from e


def _settle(chain: _Chain) -> list[str]:
    """Give the overlay the disk's name if QEMU has switched to it, or else remove it.

    Its own name is taken away before anybody looks: a QEMU that was too slow to answer may switch
    yet, when the guest runs again. It looks for the overlay by that name, and must not find it.
    """
    withdrawn = chain.overlay.with_name(f"{chain.overlay.name}.withdrawn")
    with os_errors(chain.disk, chain.overlay):
        if chain.overlay.exists():
            os.rename(chain.overlay, withdrawn)
        if not withdrawn.exists():
            return []
        if _in_qemu(withdrawn):
            _take_name(chain, withdrawn)
            return []
        withdrawn.unlink()
    return [f"removed {chain.overlay}"]


def _protect(chain: _Chain) -> None:
    with os_errors(chain.disk, chain.frozen):
        chain.frozen.chmod(stat.S_IMODE(chain.frozen.stat().st_mode) & ~0o222)


def _in_qemu(overlay: Path) -> bool:
    """Whether a QEMU has switched to it (a qemu-img that was left may still be making it)."""
    return any(process_name(pid) != "qemu-img" for pid in holders(overlay))


def _undo(chain: _Chain) -> list[str]:
    undone = _settle(chain)
    if not chain.frozen.exists():
        return undone
    if chain.frozen.samefile(chain.active):  # our second name of the disk, and nothing more
        chain.frozen.unlink()
        return [*undone, f"removed {chain.frozen}"]
    if image_info(chain.disk, str(chain.active)).get("full-backing-filename") == str(chain.frozen):
        _protect(chain)
        raise DiskError(
            f"{chain.active} stands on {chain.frozen} now, and is whole; to take that back: "
            f"{_way_to_delete(chain)}",
            vdev=chain.disk.vdev,
        )
    return undone


def _way_to_delete(chain: _Chain) -> str:
    """How a person takes a frozen file out of the chain."""
    info = image_info(chain.disk, str(chain.frozen))
    under, form = info.get("full-backing-filename", ""), info.get("backing-filename-format", "")
    to = f"-b {quote(under)}" + (f" -F {quote(form)}" if form else "") if under else "-b ''"
    active, frozen = quote(str(chain.active)), quote(str(chain.frozen))
    return f"domain off: qemu-img rebase -f qcow2 {to} {active} && rm {frozen}"


def _artefact(chain: _Chain) -> Artefact:
    depth = _depth(chain)
    return Artefact(
        kind="disk snapshot",
        where=f"{chain.frozen} ({chain.disk.vdev}; {chain.active} stands on it, {depth or '?'} "
        f"files deep: never just rm it)",
        delete=_way_to_delete(chain),
        vdev=chain.disk.vdev,
        chain_depth=depth,
    )


def _depth(chain: _Chain) -> int | None:
    """Files in the chain, the disk itself included."""
    try:
        return 1 + len(image_chain(chain.disk, str(chain.frozen)))
    except DiskError:
        return None  # the snapshot is taken all the same
