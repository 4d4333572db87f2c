"""Command agent of the dom0: one TCP connection is one command.

The agent greets first (the emulated network accepts connections before anyone listens). Then comes
one JSON line from the caller, ``{"argv": [...], "cwd": "...", "env": {...}}``, and frames both
ways: kind (1 byte), length (4 bytes, big endian), data.

- from the caller: ``I`` input (empty: end of input), ``K`` kill (two bytes: the signal, and 1 if
  it is for the whole process group)
- from the agent: ``P`` pid, ``O`` output, ``E`` error output, ``X`` exit status, as of subprocess

A caller that goes away ends the command and its process group.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import threading
from typing import IO, BinaryIO

PORT = 2222
GREETING = b"LAB1\n"
# How long a command's last words are waited for: a daemon that it left may hold its pipes for ever.
LINGER = 2.0


class Command:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.incoming: BinaryIO = connection.makefile("rb")
        self.sending = threading.Lock()

    def send(self, kind: bytes, data: bytes) -> None:
        with self.sending:
            self.connection.sendall(kind + struct.pack(">I", len(data)) + data)

    def receive(self, size: int) -> bytes:
        data = self.incoming.read(size)
        if len(data) != size:
            raise EOFError
        return data

    def serve(self) -> None:
        try:
            self.connection.sendall(GREETING)
            request = json.loads(self.incoming.readline() or b"null")
            if request:
                self.run(request["argv"], request["cwd"], request["env"])
        except OSError:
            pass  # the caller has gone
        finally:
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.connection.close()

    def run(self, argv: list[str], cwd: str, env: dict[str, str]) -> None:
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=os.environ | env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self.send(b"E", f"{error}\n".encode())
            self.send(b"X", struct.pack(">i", 127))
            return
        assert process.stdout
        assert process.stderr
        self.send(b"P", struct.pack(">I", process.pid))
        pumps = [
            threading.Thread(target=self.pump, args=args, daemon=True)
            for args in ((process.stdout, b"O"), (process.stderr, b"E"))
        ]
        for thread in (*pumps, threading.Thread(target=self.obey, args=(process,), daemon=True)):
            thread.start()
        status = process.wait()
        for thread in pumps:
            thread.join(LINGER)
        self.send(b"X", struct.pack(">i", status))

    def pump(self, source: IO[bytes], kind: bytes) -> None:
        try:
            while data := os.read(source.fileno(), 65536):
                self.send(kind, data)
        except OSError:
            pass

    def obey(self, process: subprocess.Popen[bytes]) -> None:
        """Carry out what the caller sends until it hangs up."""
        try:
            while True:
                kind = self.receive(1)
                data = self.receive(struct.unpack(">I", self.receive(4))[0])
                if kind == b"K":
                    kill(process, data[0], group=bool(data[1]))
                else:
                    feed(process, data)
        except (EOFError, OSError):
            kill(process, signal.SIGKILL, group=True)


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        if data:
            process.stdin.write(data)
            process.stdin.flush()
        else:
            process.stdin.close()
    except (OSError, ValueError):
        pass  # the command does not read (any more): its own affair


def kill(process: subprocess.Popen[bytes], number: int, *, group: bool) -> None:
    # With poll() first, hardly another process can have got the pid.
    if process.poll() is None:
        try:
            (os.killpg if group else os.kill)(process.pid, number)
        except OSError:
            pass


def main() -> None:
    with socket.create_server(("0.0.0.0", PORT), backlog=16) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=Command(connection).serve, daemon=True).start()


if __name__ == "__main__":
    main()
