"""The commands of the guide, off Xen; tests/lab/test_guide.py runs those that need a real one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.disks import plugins
from pyxlsnap.model import SnapshotConfig as Config
from tests.guide import IN_LAB, blocks, man_blocks, pages
from tests.playbook import PLAYBOOK, SOURCE
from tests.project import PROJECT
from tests.readme import Block
from tests.unit.support import operations, scenes
from tests.unit.support.hosted import Hosted, load, save
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.waiting import eventually

#: the blocks that are run here
HERE = {
    ("backups", 0), ("backups", 1), ("backups", 2), ("backups", 3), ("backups", 4),
    ("clones", 0), ("clones", 1), ("clones", 2),
    ("disaster-recovery", 0), ("disaster-recovery", 1),
    ("library", 0), ("library", 4),
    ("many-hosts", 0), ("many-hosts", 1), ("many-hosts", 2), ("many-hosts", 3),
    ("sandboxes", 0), ("sandboxes", 1),
}  # fmt: skip


def test_there_is_a_test_for_each_block() -> None:
    found = {(page, number) for page in pages() for number in range(len(blocks(page)))}
    assert found == HERE | IN_LAB
    assert not HERE & IN_LAB


class Site:
    """A fake host with the guests of the guide, and a shell on it."""

    def __init__(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = Hosted(here, monkeypatch)
        self.world = self.host.world
        self.guest = self.world.guest(self.world.image("xvda", "then"), name="web1")
        self.guest.memory = "then"
        (self.world.root / "net" / "isolated" / "bridge").mkdir(parents=True)
        self.bin = here / "bin"
        self.bin.mkdir()
        self.host.script(self.bin / "pyxlsnap")
        self.program("python3", f'exec {sys.executable} "$@"')

    def program(self, name: str, text: str) -> None:
        """Put a program where the shell looks first."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def ours(self, text: str) -> str:
        """A text of the guide, with the places of this host."""
        for theirs, here in (
            ("/var/lib/xen/snapshots", self.world.directory),
            ("/var/lib/pyxlsnap", self.world.root / "journals"),
            ("/usr/local/sbin", self.bin),
            ("<uuid>", UUID),
        ):
            text = text.replace(theirs, str(here))
        return text

    def run(self, page: str, number: int, cwd: Path = PROJECT) -> str:
        """Run a block of the guide, every command of which must work; what it printed."""
        return self.run_block(blocks(page)[number], cwd)

    def run_block(self, block: Block, cwd: Path = PROJECT) -> str:
        words = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}[block.language]
        return self.shell([*words, self.ours(block.text)], cwd)

    def shell(self, words: list[str], cwd: Path) -> str:
        """Run a program on this host."""
        save(self.world)
        environment = os.environ | self.host.variables()
        environment["PATH"] = f"{self.bin}:{PLAYBOOK.parent}:{os.environ['PATH']}"
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)
        load(self.world)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_every_night(site: Site) -> None:
    other = site.world.guest(site.world.image("xvdb", "then"), name="db1", uuid=OTHER_UUID)
    other.memory = "then"
    said = site.run("backups", 0)
    assert [line.partition(":")[0] for line in said.splitlines()] == ["web1", "db1"]
    for uuid in (UUID, OTHER_UUID):
        (cfgfile,) = (site.world.directory / uuid).glob("nightly-*.cfg")
        assert cfgfile.with_suffix(".save").exists()


def test_the_units_of_the_timer() -> None:
    service, timer = ConfigParser(), ConfigParser()
    for parser, number in ((service, 1), (timer, 2)):
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(blocks("backups")[number].text)
    assert service["Service"]["KillMode"] == "process"
    start = service["Service"]["ExecStart"].split()
    assert [Path(start[1]).name, *start[2:]] == ["nightly.py", "7", "web1", "db1"]
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_the_timer_is_enabled(site: Site) -> None:
    site.program("systemctl", 'echo "$*"')
    assert site.run("backups", 3).splitlines() == [
        "daemon-reload",
        "enable --now pyxlsnap-nightly.timer",
    ]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_takes_the_units_of_the_timer(tmp_path: Path) -> None:
    for number, kind in ((1, "service"), (2, "timer")):
        text = blocks("backups")[number].text
        (tmp_path / f"pyxlsnap-nightly.{kind}").write_text(text)
    units = list(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "pyxlsnap-nightly" in line] == []


def test_a_snapshot_is_deleted(site: Site) -> None:
    operations.create(site.world.host, "web1", Config("before-upgrade"))
    site.run("backups", 4)
    assert not list((site.world.directory / UUID).iterdir())


def test_a_sandbox(site: Site) -> None:
    assert "would revert web1 to clean" in site.run("sandboxes", 0)
    site.guest.memory = "dirty"
    site.world.storage.content["xvda"] = "dirty"
    said = site.run("sandboxes", 1).splitlines()
    domid = site.host.guest.domid
    assert said == [
        f"web1 is clean, domid {domid - 1}",
        "first running",
        f"web1 is clean, domid {domid}",
        "second running",
    ]
    assert (site.host.guest.memory, site.world.storage.content["xvda"]) == ("then", "then")


def clone_names(site: Site) -> list[str]:
    load(site.world)
    return [g.name for g in site.world.host.guests if g.exists and g.name != "web1"]


def test_a_clone_and_its_replacement(site: Site) -> None:
    operations.create(site.world.host, "web1", Config("base"))
    said = site.run("clones", 0)
    assert said.count("vm1") >= 2
    assert clone_names(site) == ["vm1"]
    assert site.guest.exists


def test_a_clone_of_a_program(site: Site) -> None:
    operations.create(site.world.host, "web1", Config("base"))
    assert site.run("clones", 1) == "()\n"
    assert clone_names(site) == []


def test_a_clone_that_is_made_anew(site: Site) -> None:
    operations.create(site.world.host, "web1", Config("base"))
    assert site.run("clones", 2) == "first False\nsecond True\n"
    assert clone_names(site) == ["vm1"]


def test_a_snapshot_of_a_program(site: Site) -> None:
    said = site.run("library", 0)
    assert "Progress(phase='checking'" in said
    assert site.host.guest.runs
    assert not list((site.world.directory / UUID).iterdir())


def test_the_entry_point_of_a_disk_strategy_is_the_one_that_is_looked_for() -> None:
    text = blocks("library")[4].text
    ((group, entries),) = tomllib.loads(text)["project"]["entry-points"].items()
    assert group == plugins.GROUP
    assert [re.fullmatch(r"[\w.]+:\w+", value) is not None for value in entries.values()] == [True]


def test_a_crash_of_the_host(site: Site) -> None:
    site.host.run("snapshot-create", "web1", scene=scenes.everybody_is_killed)
    assert site.host.guest.suspended
    said = site.run("disaster-recovery", 0)
    assert f"{UUID}.journal" in said
    assert not site.host.guest.suspended
    assert list((site.world.root / "journals").iterdir()) == []


def test_a_damaged_guest(site: Site) -> None:
    operations.create(site.world.host, "web1", Config("weekly"))
    site.guest.memory = "damaged"
    assert "undo this revert: " in site.run("disaster-recovery", 1)
    assert site.host.guest.memory == "then"


def test_many_hosts_with_ssh(site: Site, tmp_path: Path) -> None:
    # Both hosts are this one, and the name that a snapshot gets by itself has the second.
    site.program("ssh", 'shift; sleep 1.1; exec "$@"')
    assert site.run("many-hosts", 3, cwd=tmp_path) == ""
    for host in ("xen1", "xen2"):
        document = json.loads((tmp_path / f"{host}.json").read_text())
        assert document["result"]["domain"] == "web1"
        lines = (tmp_path / f"{host}.log").read_text().splitlines()
        assert json.loads(lines[0])["step"] == "checking"


@pytest.mark.skipif(not PLAYBOOK.exists(), reason="there is no Ansible")
@pytest.mark.soak
def test_many_hosts_with_ansible(site: Site, tmp_path: Path) -> None:
    where = tmp_path / "ansible"
    shutil.copytree(SOURCE, where)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    guests = {"web1": local | {"dom0": "xen1"}}
    inventory = {"xen": {"hosts": {"xen1": local}}, "guests": {"hosts": guests}}
    (where / "inventory.yml").write_text(json.dumps(inventory))
    (where / "upgrade-debian.yml").write_text("- ansible.builtin.command: 'true'\n")
    assert '"operation": "create"' in site.run("many-hosts", 0, cwd=where)
    site.run("many-hosts", 1, cwd=where)
    assert len(list((site.world.directory / UUID).glob("before-upgrade-*.cfg"))) == 1
    listed = [{"domid": 5, "config": {"c_info": {"name": "web1"}}}]
    site.program("xl", f"echo {shlex.quote(json.dumps(listed))}")
    assert "web1" in site.run("many-hosts", 2, cwd=where).partition("PLAY RECAP")[2]


# pyxlsnap(1); those that shorten a chain are run by tests/unit/disks/qcow2/test_man_page.py


def next_second() -> None:
    """Wait until the clock shows another second."""
    now = int(time.time())
    assert eventually(lambda: int(time.time()) != now)


def test_the_examples_of_the_man_page(site: Site, tmp_path: Path) -> None:
    before_upgrade, places, in_a_script = man_blocks("EXAMPLES")
    assert "web1 is back at before-upgrade" in site.run_block(before_upgrade)
    srv = tmp_path / "srv"
    (srv / "snap").mkdir(parents=True)
    chosen = replace(places, text=places.text.replace("/srv", str(srv)))
    assert f"revert: pyxlsnap snapshot-revert web1 {srv}" in site.run_block(chosen, tmp_path)
    if shutil.which("jq"):
        next_second()  # both snapshots are named after the second they are made in
        asked = replace(in_a_script, text=f'{in_a_script.text}test -s "$cfg"\n')
        site.run_block(asked)
