"""An Ansible connection to a dom0 of the lab, through its command agent; the host is its port.

Ansible loads this file by its path: ``ANSIBLE_CONNECTION_PLUGINS`` has its directory.
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

from tests.lab.harness.dom0 import Dom0

DOCUMENTATION = """
name: ansible_dom0
short_description: the command agent of a dom0 of the lab
description: runs commands through the agent
options:
  port:
    description: the port of the agent
    type: int
    default: 0
    vars:
      - name: ansible_port
  within:
    description: seconds for the agent to answer
    type: float
    default: 30
    vars:
      - name: dom0_within
"""


class Connection(ConnectionBase):  # type: ignore[misc]
    """Ansible's way to run commands and to copy files."""

    transport = "ansible_dom0"
    has_pipelining = True

    def _connect(self) -> "Connection":
        self._dom0 = Dom0(self.get_option("port"))
        if not self._dom0.answers(self.get_option("within")):
            raise AnsibleConnectionFailure("the agent does not answer")
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a command; a guest's revert takes minutes in the lab."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._dom0.run(cmd, check=False, input=in_data, timeout=600)
        return done.rc, done.out.encode(), done.err.encode()

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into the dom0."""
        super().put_file(in_path, out_path)
        self._dom0.write(out_path, Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of the dom0."""
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._dom0.read(in_path))

    def close(self) -> None:
        """Nothing is open between commands."""
        self._connected = False

    def reset(self) -> Any:
        """As above."""
        self.close()
