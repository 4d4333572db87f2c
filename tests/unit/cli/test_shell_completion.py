"""Completion in real shells, on a terminal, as a user has it."""

import os
import pty
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARE = Path(__file__).resolve().parents[3] / "docs" / "share"
BASH = SHARE / "bash-completion" / "completions" / "pyxlsnap"
ZSH = SHARE / "zsh" / "site-functions"
#: what `xl list` says; what is offered to a shell is evaluated by it
LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  2048     2     r-----     100.0
$(touch${IFS}evaluated)                      1   128     1     -b----       0.1
a name                                       2   128     1     -b----       0.1
web-server.1                                 3   128     1     -b----       0.1
"""
_SHOW = "pyxlsnap() { printf 'GOT'; printf '<%s>' \"$@\"; printf 'END\\n'; }"
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], f". {BASH}"),
    "zsh": (["zsh", "-f", "-i"], f"fpath=({ZSH} $fpath); autoload -U compinit; compinit -u -D"),
}


class Shell:
    """An interactive shell in a directory."""

    def __init__(self, command: list[str], here: Path) -> None:
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.chdir(here)
            path = f"{here}:{os.environ['PATH']}"
            os.execvpe(command[0], command, {"PATH": path, "TERM": "dumb", "HOME": str(here)})
        self._said = b""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, what: str) -> str:
        """What it has said since the last call, up to that."""
        end = time.monotonic() + 120
        while what.encode() not in self._said:
            if not select.select([self._fd], [], [], end - time.monotonic())[0]:
                raise AssertionError(f"no {what!r} in {self._said.decode(errors='replace')!r}")
            self._said += os.read(self._fd, 4096)
        said, _, self._said = self._said.partition(what.encode())
        return said.decode(errors="replace")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    command, load = SHELLS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]}")
    (tmp_path / "snap one.cfg").touch()
    (tmp_path / "xl").write_text(f"#!/bin/sh\ncat <<'END'\n{LIST}END\n")
    (tmp_path / "xl").chmod(0o755)
    found = Shell(command, tmp_path)
    found.type(f"{load}; {_SHOW}; printf 'REA%s\\n' DY\n")
    found.wait_for("READY\r\n")
    yield found
    found.close()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("snapshot-cr\t", "<snapshot-create>"),
        ("--js\t snapshot-rec\t", "<--json><snapshot-recover>"),
        ("snapshot-create --li\t", "<snapshot-create><--live>"),
        ("snapshot-create --max-d\t 1 w\t", "<snapshot-create><--max-downtime><1><web-server.1>"),
        ("snapshot-recover w\t", "<snapshot-recover><web-server.1>"),
        ("snapshot-revert w\t ./sn\t", "<snapshot-revert><web-server.1><./snap one.cfg>"),
        ("snapshot-revert w\t a.cfg --fo\t", "<snapshot-revert><web-server.1><a.cfg><--force>"),
        (
            "snapshot-create w\t sn\t --dr\t",
            "<snapshot-create><web-server.1><snap one.cfg><--dry-run>",
        ),
    ],
)
def test_a_line_is_completed(shell: Shell, typed: str, words: str) -> None:
    shell.type(f"pyxlsnap {typed}\n")
    shell.wait_for("GOT")
    assert shell.wait_for("END") == words


@pytest.mark.parametrize("begun", ["", "a", "\\$"])
def test_names_that_a_shell_would_evaluate_are_not_offered(
    shell: Shell, tmp_path: Path, begun: str
) -> None:
    shell.type(f"pyxlsnap snapshot-create {begun}\t\t\x15printf 'D%s\\n' ONE\n")
    shell.wait_for("DONE")
    assert not (tmp_path / "evaluated").exists()
