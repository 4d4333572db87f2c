"""A real QEMU that has no machine, only disks and a monitor; and images for it."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyxlsnap.disks.qcow2 import qmp
from pyxlsnap.model import Disk

DOMID = 7
VDEVS = ("xvda", "xvdb")
SIZE = 1 << 20
_L1_ENDS_AT = 47  # the last byte of its offset, in the header of an image


def qemu_img(*arguments: str) -> str:
    return subprocess.run(
        ["qemu-img", *arguments], check=True, capture_output=True, text=True
    ).stdout


def write(disk: Disk, pattern: int) -> None:
    command = f"write -P {pattern} 0 64k"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, disk.target], check=True, capture_output=True
    )


def content(disk: Disk) -> int:
    """The byte that the disk begins with."""
    return whole(disk)[0]


def whole(disk: Disk) -> bytes:
    """All that is on the disk."""
    raw = Path(disk.target).with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk.target, str(raw))
    return raw.read_bytes()


def damage(path: str | Path) -> None:
    """Have the header name an L1 table at an odd offset: QEMU does not open the image.

    Its snapshot table is whole.
    """
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), b"\x01", _L1_ENDS_AT)


def tags(disk: Disk) -> list[str]:
    info = json.loads(qemu_img("info", "-U", "-f", "qcow2", "--output=json", disk.target))
    return [s["name"] for s in info.get("snapshots", [])]


class Qemu:
    """A QEMU with disks as libxl gives them, its machine stopped: we write what a guest would."""

    def __init__(
        self,
        directory: Path,
        images: dict[str, str],
        environment: Mapping[str, str] = MappingProxyType({}),
        *,
        domid: int = DOMID,
        output: int | None = None,
    ) -> None:
        self._socket = directory / f"qmp-libxenstat-{domid}"
        self._output = output
        #: the socket of a monitor for the test
        self.own = directory / "qmp-of-the-test"
        self._images = images
        self._environment = {**os.environ, **environment}
        self.start()

    def start(self) -> None:
        """Start it (again) on the images as they are."""
        # Listening before QEMU starts, so that nobody has to wait for it.
        with _listening(self._socket) as ours, _listening(self.own) as own:
            command = [
                "qemu-system-x86_64",
                *("-machine", "pc,accel=tcg", "-S", "-m", "16", "-nodefaults", "-display", "none"),
                *_monitor("monitor", ours),
                *_monitor("own", own),
            ]
            for vdev, path in self._images.items():
                blockdev = {
                    "driver": "qcow2",
                    "node-name": f"{vdev}-qcow2",
                    "file": {"driver": "file", "filename": path, "locking": "off"},
                }
                command += ["-blockdev", json.dumps(blockdev)]
                command += ["-device", f"virtio-blk-pci,id={vdev},drive={vdev}-qcow2"]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[ours.fileno(), own.fileno()],
                env=self._environment,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_opened(self) -> None:
        """Wait until it has its images open: then it greets."""
        qmp.QmpConnection(self.own).close()

    def execute(self, command: str, arguments: dict[str, object]) -> Any:
        """What another program tells it."""
        connection = qmp.QmpConnection(self.own)
        try:
            return connection.execute(command, arguments)
        finally:
            connection.close()

    def write(self, vdev: str, pattern: int, at: int = 0) -> None:
        """What the guest would write."""
        device = f"/machine/peripheral/{vdev}/virtio-backend"
        command = f'qemu-io -d {device} "write -P {pattern} {at} 64k"'
        said = self.execute("human-monitor-command", {"command-line": command})
        assert "rror" not in said, said

    def kill(self) -> None:
        """End it as the kernel does when memory runs out; its sockets stay."""
        self._process.kill()
        self._process.wait(20)

    def close(self) -> None:
        """End it; it may be started again."""
        self._process.terminate()
        self._process.wait(20)
        self._socket.unlink(missing_ok=True)
        self.own.unlink(missing_ok=True)


def _listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def _monitor(name: str, server: socket.socket) -> list[str]:
    chardev = f"socket,id={name},fd={server.fileno()},server=on,wait=off"
    return ["-chardev", chardev, "-mon", f"chardev={name},mode=control"]
