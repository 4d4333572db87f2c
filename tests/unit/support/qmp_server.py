"""A stand-in for the monitor of the QEMU of an HVM guest on a Xen.

(The QEMU of the tests is one without Xen, and does nothing when it is told to record.)
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyxlsnap.disks.qcow2 import qmp

COMMAND = "xen-set-global-dirty-log"


class RecordingQemu:
    """Whether it records, and whether it has ended by an assertion, as a QEMU of its release."""

    def __init__(self, version: tuple[int, int], *, records: bool) -> None:
        self._version = version
        self.records = records
        self.died = False
        self.told: list[bool] = []
        #: errors that it answers to commands
        self.refuses: dict[str, str] = {}
        #: what clients are told before they are greeted, one each
        self.first: list[dict[str, Any]] = []

    def serve(self, server: socket.socket) -> None:
        """Serve one client after another, until the socket is shut down."""
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                try:
                    self._talk(client)
                except OSError:  # the client has left
                    pass

    def _talk(self, client: socket.socket) -> None:
        if self.first:
            self._say(client, self.first.pop())
        self._say(client, {"QMP": {"version": self._versions(), "capabilities": []}})
        while message := client.recv(4096):  # (the client waits for each answer)
            asked = json.loads(message)
            if error := self.refuses.get(asked["execute"]):
                said: dict[str, Any] = {"error": {"class": error, "desc": "no"}}
            else:
                said = {"return": self._answer(asked["execute"], asked.get("arguments", {}))}
            if self.died:
                return
            self._say(client, said | ({"id": asked["id"]} if "id" in asked else {}))

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "query-version":
            return self._versions()
        if command == COMMAND:
            self._record(arguments["enable"])
        return {}

    def _record(self, enable: bool) -> None:
        self.told.append(enable)
        asserted = {(6, 2): (True, False)}.get(
            self._version, (False,) if self._version >= (7, 0) else ()
        )
        self.died |= enable == self.records and enable in asserted
        self.records = enable

    def _versions(self) -> dict[str, Any]:
        major, minor = self._version
        return {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""}

    def _say(self, client: socket.socket, message: dict[str, Any]) -> None:
        client.sendall(json.dumps(message).encode() + b"\r\n")


@contextmanager
def serving(path: Path, qemu: RecordingQemu) -> Iterator[None]:
    """Its monitor is there."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=qemu.serve, args=(server,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            os.unlink(path)


@contextmanager
def recording(
    domid: int, version: tuple[int, int] = (7, 2), *, records: bool = True
) -> Iterator[RecordingQemu]:
    """A QEMU whose monitor can be found by the domid."""
    qemu = RecordingQemu(version, records=records)
    with serving(qmp.socket_path(domid), qemu):
        yield qemu
