"""Hooks that use the guest's own agent: freeze its filesystems for a snapshot, and set its clock.

The agent is qemu-ga. The guest needs a channel for the agent in its xl.cfg::

    channel = [ 'name=org.qemu.guest_agent.0,connection=socket,path=/run/xen/qga-web1.sock' ]

usage: quiesce.py DOMAIN SOCKET NAME takes a snapshot with the help of the agent.
"""

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pyxlsnap

ANSWER_S = 4.0  # less than the limit of a hook, so that the hook can report what was wrong
LIMIT_S = 10.0


def ask(path: Path, command: str, **arguments: object) -> Any:
    """Send a command to the agent; returns its answer.

    :raises OSError: the agent cannot be reached, or does not answer in time.
    :raises RuntimeError: the command failed, or the agent closed the connection.
    :raises ValueError: the answer is not JSON.
    """
    sync = time.monotonic_ns() % 2**31
    requests = (
        {"execute": "guest-sync", "arguments": {"id": sync}},
        {"execute": command, "arguments": arguments},
    )
    # Both are closed in any case: QEMU accepts one client at a time.
    with socket.socket(socket.AF_UNIX) as agent, agent.makefile("rb") as lines:
        agent.settimeout(ANSWER_S)
        agent.connect(str(path))
        for request in requests:
            agent.sendall(json.dumps(request).encode() + b"\n")
        synchronized = False
        for line in lines:
            answer = json.loads(line)
            if synchronized and "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if synchronized:
                return answer["return"]
            # Answers to an earlier client may come first.
            synchronized = answer.get("return") == sync
    raise RuntimeError(f"{command}: the agent closed the connection")


def hooks(path: Path) -> pyxlsnap.Hooks:
    """The hooks for a guest; ``path`` is the socket of its agent."""

    def freeze(_: pyxlsnap.Moment) -> None:
        ask(path, "guest-fsfreeze-freeze")

    def thaw(_: pyxlsnap.Moment) -> None:
        ask(path, "guest-fsfreeze-thaw")

    def reverted(moment: pyxlsnap.Moment) -> None:
        if moment.state is pyxlsnap.RunState.RUNNING:
            # The filesystems were frozen when the memory was saved.
            ask(path, "guest-fsfreeze-thaw")
            ask(path, "guest-set-time", time=time.time_ns())

    return pyxlsnap.Hooks(
        before_suspend=freeze, after_resume=thaw, after_revert=reverted, limit_s=LIMIT_S
    )


def main() -> None:
    """Take a snapshot of a guest with an agent."""
    domain, path, name = sys.argv[1:]
    try:
        snapshot = pyxlsnap.create_snapshot(domain, name=name, hooks=hooks(Path(path)))
    except pyxlsnap.PyxlsnapError as e:
        sys.exit(f"{e}")
    print(snapshot.cfgfile)
    for warning in snapshot.warnings:
        print(warning, file=sys.stderr)
    if any(warning.startswith("the hook ") for warning in snapshot.warnings):
        sys.exit("the guest may still be frozen")


if __name__ == "__main__":
    main()
