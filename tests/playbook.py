"""Runs the playbooks and the module of contrib/ansible, as an administrator does."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.project import PROJECT

SOURCE = PROJECT / "contrib" / "ansible"
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
PLUGINS = PROJECT / "tests" / "ansible_plugins"


@dataclass(frozen=True, slots=True)
class Told:
    """The outcome of a task on a host: "ok", "failed", "skipped" or "unreachable"."""

    task: str
    host: str
    outcome: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Played:
    """What a playbook has done, in order."""

    status: int
    told: tuple[Told, ...]

    def of(self, task: str, host: str) -> Told:
        """What a task has told of a host."""
        (found,) = [t for t in self.told if (t.task, t.host) == (task, host)]
        return found

    def tasks(self, host: str) -> list[tuple[str, str]]:
        """The tasks of a host, each with its outcome."""
        return [(t.task, t.outcome) for t in self.told if t.host == host]


def play(here: Path, inventory: Mapping[str, Any], playbook: Path, *options: str) -> Played:
    """Run a playbook.

    :param here: a directory for Ansible's own files.
    """
    hosts = here / "inventory.json"
    hosts.write_text(json.dumps(inventory))
    environment = os.environ | {
        "ANSIBLE_CALLBACK_PLUGINS": str(PLUGINS),
        "ANSIBLE_CONNECTION_PLUGINS": str(PLUGINS),
        "ANSIBLE_HOME": str(here / "ansible"),
        "ANSIBLE_LIBRARY": str(SOURCE / "library"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible_results",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(PROJECT),
    }
    run = subprocess.run(
        [PLAYBOOK, "-i", hosts, playbook, *options],
        capture_output=True,
        text=True,
        cwd=here,
        env=environment,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert lines, run.stdout + run.stderr
    return Played(run.returncode, tuple(Told(**json.loads(line)) for line in lines))
