"""The way of a new user: all that the README says to type, and the programs of the guide.

Nothing is copied here: what is run is what stands in the code blocks, with guests of the lab for
those that they name. test_packages.py installs the packages. To build in a dom0 takes long under
emulation:
`make test` uses the package that the lab has, and installs natively (unit: test_packaging.py).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyxlsnap.version import VERSION
from tests.guide import blocks
from tests.lab.harness import cache
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import Guest
from tests.lab.harness.install import uninstall, wheels
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import SLOW, SNAPSHOTS, goes_back
from tests.project import SHARE, UNIT, copy_of_the_project
from tests.readme import shell_lines, texts

CLONE, WHEELS = "/tmp/clone", "/tmp/wheels"
# (Optimizing is a quarter of what pip does under emulation.)
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "CFLAGS": "-O0"}
#: what the embedder of the guide has of its own
HOOKS = """\
freeze, thaw, set_clock = [
    lambda moment, name=name: print(name, moment.domain, moment.domid, moment.uuid)
    for name in ("freeze", "thaw", "set_clock")
]
"""


def install(dom0: Dom0, clone: Path) -> None:
    """Type what the README says of sources; nothing of the clone is left afterwards."""
    dom0.push(copy_of_the_project(clone), CLONE)
    dom0.push(wheels(dom0, cache.progress()), WHEELS)
    lines = shell_lines("From source")
    assert len(lines) > 3
    for line in lines:
        dom0.run(line, cwd=CLONE, env=OFFLINE, timeout=SLOW)
    dom0.run(["rm", "-r", CLONE, WHEELS])


def check_installed(dom0: Dom0) -> None:
    assert dom0.run(["pyxlsnap", "--version"]).out == f"pyxlsnap {VERSION}\n"
    shared = [path.relative_to(SHARE) for path in SHARE.rglob("*") if path.is_file()]
    installed = dom0.run(["cat", *map(str, shared)], cwd="/usr/local/share").out
    assert installed == "".join((SHARE / path).read_text() for path in shared)
    assert dom0.run(["systemctl", "is-enabled", UNIT.name]).out == "enabled\n"
    verified = dom0.run(["systemd-analyze", "verify", UNIT.name], check=False)
    assert (verified.rc, verified.out, verified.err) == (0, "", "")


def as_shown(dom0: Dom0, block: str) -> None:
    """Type a command, and see the lines below it: numbers may be others, and lines more."""
    command, *lines = block.splitlines()
    assert command.startswith("# pyxlsnap ")
    said = dom0.run(command.removeprefix("# "), timeout=SLOW).out
    rest = iter(said.splitlines())
    for line in lines:
        parts = re.split(r"…|\b\d+(?:\.\d+)?\b", line)
        pattern = re.compile(".*".join(map(re.escape, parts)))
        assert any(map(pattern.fullmatch, rest)), f"not said, or not then: {line}\n{said}"


@pytest.mark.usefixtures("tidy")
def test_the_commands(lab: Lab) -> None:
    commands(lab)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_way_of_a_new_user(spent_lab: Lab, tmp_path: Path) -> None:
    uninstall(spent_lab.dom0)
    install(spent_lab.dom0, tmp_path)
    check_installed(spent_lab.dom0)
    interpreter = "/opt/pyxlsnap/bin/python3"
    commands(spent_lab)
    programs(spent_lab, interpreter)


def commands(lab: Lab) -> None:
    """Type the README's commands, for a guest of the lab."""
    create, revert = texts("console")
    guest = lab.guest("pvh")
    before = guest.assert_healthy()
    as_shown(lab.dom0, of_ours(create, guest))
    later, mark = guest.wait_advance(6), guest.mark()
    as_shown(lab.dom0, of_ours(revert, guest))
    assert before.n < goes_back(guest, mark, later).n


def programs(lab: Lab, interpreter: str) -> None:
    """Run the guide's programs, which use an embedder's hooks and a second guest, too."""
    simple, repeated, concurrent, hooked = (
        b.text for b in blocks("library") if b.language == "python"
    )
    guest = lab.guest("pvh")
    old = guest.domid()
    said = python(guest, interpreter, simple)
    assert any("domain now suspended" in line for line in said)
    assert guest.domid() != old

    told = f"{guest.name} {guest.domid()} {guest.uuid}"
    assert python(guest, interpreter, HOOKS + hooked) == [f"freeze {told}", f"thaw {told}"]

    old = guest.domid()
    python(guest, interpreter, repeated)
    assert guest.domid() not in (old, old + 1, old + 2)

    both = (guest, lab.guest("hvm"))
    had = cfgfiles(both)
    python(guest, interpreter, concurrent)
    assert [len(now - then) for now, then in zip(cfgfiles(both), had, strict=True)] == [1, 1]
    for each in both:
        each.assert_healthy()


def python(guest: Guest, interpreter: str, block: str) -> list[str]:
    """Run a program of the guide's; what it printed."""
    program = [interpreter, "-c", of_ours(block, guest)]
    return guest.dom0.run(program, timeout=SLOW).out.splitlines()


def cfgfiles(guests: Sequence[Guest]) -> list[set[str]]:
    """Those of each guest's snapshots."""
    # A guest without any has no directory either.
    words = [["find", f"{SNAPSHOTS}/{guest.uuid}", "-name", "*.cfg"] for guest in guests]
    return [set(guests[0].dom0.run(find, check=False).out.split()) for find in words]


def of_ours(text: str, web1: Guest) -> str:
    """What is said of web1, of a guest of ours, which has one disk more."""
    for theirs, ours in (
        ("/srv/web1.qcow2", web1.disks["xvda"]),
        ("disks: xvda", f"disks: {', '.join(web1.disks)}"),
        ("<uuid>", web1.uuid),
        ("web1", web1.name),
        ("db1", "hvm"),
    ):
        text = text.replace(theirs, ours)
    return text
