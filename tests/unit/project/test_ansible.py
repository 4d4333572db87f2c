"""The Ansible module and the playbook, run by Ansible on small worlds in the place of Xen hosts."""

import ast
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from docs.commands import commands
from pyxlsnap.cli.parser import build_parser
from tests.playbook import PLAYBOOK, SOURCE, Played, play
from tests.unit.support import scenes
from tests.unit.support.hosted import Hosted, Scene, load, save
from tests.unit.support.values import UUID

yaml = pytest.importorskip("yaml")  # Ansible brings it
pytestmark = pytest.mark.skipif(not PLAYBOOK.exists(), reason="there is no Ansible")

MODULE = SOURCE / "library" / "xen_snapshot.py"
UPGRADE = SOURCE / "upgrade.yml"
ALL_GUESTS = SOURCE / "all-guests.yml"


#: Ansible runs the tasks of such a host on this machine
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


def _listed(*names: str) -> list[dict[str, Any]]:
    """What ``xl list -l`` says of domains, as far as the playbook reads it."""
    return [{"domid": n, "config": {"c_info": {"name": name}}} for n, name in enumerate(names)]


def _program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho {shlex.quote(says)}\n")
    path.chmod(0o755)
    return path


class Site:
    """The hosts that Ansible knows: Xen hosts, each with a guest vm1, and such guests."""

    def __init__(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = here
        self.hosts: dict[str, Hosted] = {}
        self._monkeypatch = monkeypatch
        self._inventory: dict[str, Any] = {}

    def dom0(
        self, name: str, scene: Scene = scenes.plain, domain: str = "vm1", **variables: object
    ) -> Hosted:
        """Add a Xen host."""
        where = self.here / name
        where.mkdir()
        host = self.hosts[name] = Hosted(where, self._monkeypatch)
        host.world.guest(host.world.image("xvda", "then"), name=domain).memory = "then"
        xl = _program(where / "xl", json.dumps(_listed("Domain-0", domain)))
        command = host.script(where / "pyxlsnap", scene)
        self._add(name, "xen", pyxlsnap=str(command), xl=str(xl), **variables)
        return host

    def guest(self, name: str, **variables: object) -> None:
        """Add a guest of the Xen host ``xen-<name>``; its tasks run on this machine."""
        self._add(name, "guests", **({"dom0": f"xen-{name}", "domain": "vm1"} | variables))

    def reaches_all(self) -> None:
        """Run the tasks of guests that are found on this machine, too."""
        self._inventory["running_guests"] = {"vars": LOCAL}

    def _add(self, name: str, group: str, **variables: object) -> None:
        hosts = self._inventory.setdefault(group, {"hosts": {}})["hosts"]
        hosts[name] = LOCAL | variables

    def play(self, playbook: Path, *options: str) -> Played:
        """Run a playbook."""
        for host in self.hosts.values():
            save(host.world)
        played = play(self.here, self._inventory, playbook, *options)
        for host in self.hosts.values():
            load(host.world)
        return played

    def tasks(self, *tasks: dict[str, Any], options: tuple[str, ...] = ()) -> Played:
        """Run tasks on all Xen hosts; they are numbered from 0."""
        named = [{"name": str(number), **task} for number, task in enumerate(tasks)]
        path = self.here / "tasks.yml"
        path.write_text(yaml.dump([{"hosts": "xen", "gather_facts": False, "tasks": named}]))
        return self.play(path, *options)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def task(**options: object) -> dict[str, Any]:
    """A task of the module, with the command of its host."""
    return {"xen_snapshot": {"executable": "{{ pyxlsnap }}", "domain": "vm1", **options}}


# The module


def test_a_snapshot_and_a_revert_to_it(site: Site) -> None:
    host = site.dom0("xen")
    cfgfile = "{{ taken.result.cfgfile }}"
    change = f'sed -i \'s/"xvda": "then"/"xvda": "now"/\' {site.here}/xen/host.json'
    played = site.tasks(
        task(name="first", live=True) | {"register": "taken"},
        {"ansible.builtin.shell": change},
        task(operation="revert", cfgfile=cfgfile, running=True, monitor=False),
        task(operation="recover", domain=UUID),
    )
    assert played.status == 0, played
    recovered = played.of("3", "xen").result
    assert (recovered["changed"], recovered["result"]["lines"]) == (False, [])
    taken, reverted = (played.of(n, "xen").result for n in ("0", "2"))
    assert (taken["changed"], taken["exit_code"]) == (True, 0)
    assert taken["result"]["name"] == "first"
    assert taken["result"]["live"]
    assert reverted["result"]["disks"] == ["xvda"]
    assert host.world.storage.content == {"xvda": "then"}
    assert host.guest.domid == reverted["result"]["domid"]


def test_check_mode_is_the_dry_run(site: Site) -> None:
    host = site.dom0("xen")
    played = site.tasks(
        task(name="first"),
        task(operation="recover"),
        task(domain="vm9"),
        options=("--check",),
    )
    plan, skipped, failed = (played.of(str(n), "xen") for n in range(3))
    assert plan.result["result"]["operation"] == "create"
    assert plan.result["changed"]
    assert skipped.outcome == "skipped"
    assert (failed.outcome, failed.result["exit_code"]) == ("failed", 3)
    assert failed.result["error"]["class"] == "DomainNotFound"
    assert failed.result["error"]["nearest"] == ["vm1"]
    assert not host.world.storage.snapshots


@pytest.mark.soak
def test_a_risky_revert_needs_force(site: Site) -> None:
    host = site.dom0("xen")
    played = site.tasks(task(name="first"))
    host.world.host.version = (4, 99)
    cfgfile = played.of("0", "xen").result["result"]["cfgfile"]
    revert = task(operation="revert", cfgfile=cfgfile)
    refused = site.tasks(revert).of("0", "xen")
    assert (refused.outcome, refused.result["exit_code"]) == ("failed", 5)
    assert refused.result["msg"].endswith("(here: force: true)")
    assert refused.result["error"]["reasons"]
    done = site.tasks(task(operation="revert", cfgfile=cfgfile, force=True)).of("0", "xen")
    assert (done.outcome, done.result["exit_code"]) == ("ok", 0)


@pytest.mark.soak
def test_a_failure_that_needs_a_person_says_which_command(site: Site) -> None:
    site.dom0("xen", scenes.no_resume)
    told = site.tasks(task()).of("0", "xen")
    assert (told.outcome, told.result["exit_code"], told.result["changed"]) == ("failed", 4, True)
    assert told.result["finish"].startswith("pyxlsnap ")
    assert told.result["msg"].endswith(f"to finish: {told.result['finish']}")


#: options of a task, and what its message says
WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"operation": "revert"}, "cfgfile"),
    ({"operation": "create", "domain": None}, "domain"),
    ({"operation": "create", "force": True}, "create has no option force"),
    ({"operation": "revert", "cfgfile": "/c", "live": True}, "revert has no option live"),
    ({"operation": "recover", "cfgfile": "/c"}, "recover has no option cfgfile"),
    ({"operation": "revert", "cfgfile": "/c", "running": True, "paused": True}, "running|paused"),
    ({"domain": "--version"}, "'--version'"),
    ({"name": "--live"}, "must not start with '-'"),
    ({"executable": "/nowhere/pyxlsnap"}, "/nowhere/pyxlsnap"),
)


def test_wrong_options_change_nothing(site: Site) -> None:
    host = site.dom0("xen")
    tasks = []
    for options, _ in WRONG:
        given = task(**options)["xen_snapshot"]
        wanted = {k: v for k, v in given.items() if v is not None}
        tasks.append({"xen_snapshot": wanted, "ignore_errors": True})
    played = site.tasks(*tasks)
    for number, (_, says) in enumerate(WRONG):
        told = played.of(str(number), "xen")
        assert told.outcome == "failed"
        assert says in told.result["msg"]
    assert not host.world.storage.snapshots


def test_the_module_has_every_option_of_its_commands() -> None:
    tree = ast.parse(MODULE.read_text())
    texts = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    documented = yaml.safe_load(texts["DOCUMENTATION"])["options"]
    assert documented.keys() == texts["OPTIONS"].keys()
    for name, option in documented.items():
        described = {k: v for k, v in option.items() if k != "description"}
        assert described == {"type": "str"} | texts["OPTIONS"][name], name
    known = {
        action.dest
        for command, parser in commands(build_parser()).items()
        if command.removeprefix("snapshot-") in texts["OPTIONS"]["operation"]["choices"]
        for action in parser._actions
        if action.dest not in ("help", "dry_run")
    }
    assert known == documented.keys() - {"operation", "executable"}


# The playbook


STEPS = """\
- name: The upgrade
  ansible.builtin.command: "test {{ inventory_hostname }} != {{ bad | default('none') }}"
"""


def upgraded(site: Site, *options: str, playbook: Path = UPGRADE) -> Played:
    """Run the playbook with an upgrade that fails on the guest that is ``bad``."""
    steps = site.here / "steps.yml"
    steps.write_text(STEPS)
    return site.play(playbook, "-e", f"upgrade_tasks={steps}", "-e", "reach_s=1", *options)


def test_a_guest_whose_upgrade_fails_is_reverted(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.dom0(f"xen-{name}")
        site.guest(name)
    domids = {name: host.guest.domid for name, host in site.hosts.items()}
    played = upgraded(site, "-e", "bad=b", "-e", "at_a_time=2")
    assert played.status == 2
    for name in ("a", "b", "c"):
        assert played.of("Take a snapshot", name).outcome == "ok"
        changed = site.hosts[f"xen-{name}"].guest.domid != domids[f"xen-{name}"]
        assert changed == (name == "b")
    said = played.of("Report the guest as failed", "b").result["msg"]
    cfgfile = played.of("Take a snapshot", "b").result["result"]["cfgfile"]
    assert said.startswith('b: the upgrade failed at "The upgrade"')
    assert said.endswith(f"the guest is back at {cfgfile}")
    order = [t.host for t in played.told if t.task == "Take a snapshot"]
    assert order[2] == "c"  # two at a time
    assert played.told.index(played.of("The upgrade", "a")) < played.told.index(
        played.of("Take a snapshot", "c")
    )


@pytest.mark.soak
def test_a_guest_without_a_snapshot_is_not_upgraded(site: Site) -> None:
    site.dom0("xen-a", scenes.last_step_fails)
    site.dom0("xen-b")
    site.guest("a")
    site.guest("b")
    played = upgraded(site)
    assert ("The upgrade", "ok") in played.tasks("b")
    assert played.tasks("a")[-1] == ("Take a snapshot", "failed")


@pytest.mark.soak
def test_a_guest_that_cannot_be_reached_afterwards_is_reverted(site: Site) -> None:
    host = site.dom0("xen-a")
    before = host.guest.domid
    connection = "{{ 'ansible_dom0' if taken is defined else 'local' }}"
    site.guest("a", ansible_connection=connection, ansible_port=1, dom0_within=0.2)
    played = upgraded(site)
    assert ("The upgrade", "unreachable") in played.tasks("a")
    assert played.of("See whether the guest can be reached", "a").outcome == "failed"
    assert played.of("Revert to the snapshot", "a").outcome == "ok"
    assert host.guest.domid != before


def test_a_guest_whose_dom0_cannot_be_reached_is_not_said_to_be_back(site: Site) -> None:
    gone = site.here / "gone"
    look = f"{{{{ lookup('pipe', 'test -e {gone} && echo ansible_dom0 || echo local') }}}}"
    host = site.dom0("xen-a", ansible_connection=look, ansible_port=1, dom0_within=0.2)
    before = host.guest.domid
    site.guest("a")
    steps = site.here / "fails.yml"
    fails = {"ansible.builtin.shell": f"touch {gone}; exit 1"}
    steps.write_text(yaml.dump([{"name": "The upgrade", **fails}]))
    played = site.play(UPGRADE, "-e", f"upgrade_tasks={steps}", "-e", "reach_s=1")
    assert played.status != 0
    assert played.tasks("a")[-1] == ("Revert to the snapshot", "unreachable")
    assert host.guest.domid == before


@pytest.mark.parametrize(
    ("before", "after", "state", "outcome"),
    [
        ("", "", "running", "ok"),
        ("old.service", "old.service", "degraded", "ok"),
        ("", "new.service", "degraded", "failed"),
        ("old.service", "old.service new.service", "degraded", "failed"),
        ("old.service", "", "running", "ok"),
    ],
)
def test_only_a_service_that_the_upgrade_has_broken_is_a_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch, before: str, after: str, state: str, outcome: str
) -> None:
    """The tasks of the Debian upgrade that look at services."""
    fake, seen = site.here / "systemctl", site.here / "seen"
    fake.write_text(
        "#!/bin/sh\n"
        f"if [ $1 = is-system-running ]; then echo {state}; test {state} = running; exit; fi\n"
        f"units='{before}'; test -e {seen} && units='{after}'; touch {seen}\n"
        f'for unit in $units; do echo "$unit loaded failed failed A service"; done\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(site.here), prepend=":")
    site.dom0("xen")
    listed = yaml.safe_load((SOURCE / "upgrade-debian.yml").read_text())
    tasks = [t for t in listed if "systemctl" in str(t.get("ansible.builtin.command"))]
    path = site.here / "tasks.yml"
    path.write_text(yaml.dump([{"hosts": "xen", "gather_facts": False, "tasks": tasks}]))
    played = site.play(path)
    assert [told for _, told in played.tasks("xen")] == ["ok", "ok", outcome]


def test_a_guest_that_cannot_be_reached_before_is_left_alone(site: Site) -> None:
    host = site.dom0("xen-a")
    before = host.guest.domid
    site.guest("a", ansible_connection="ansible_dom0", ansible_port=1, dom0_within=0.2)
    played = upgraded(site)
    assert played.tasks("a")[-1] == ("Reach the guest", "failed")
    assert not host.world.storage.snapshots
    assert host.guest.domid == before


@pytest.mark.soak
def test_the_playbook_in_check_mode_changes_nothing(site: Site) -> None:
    host = site.dom0("xen-a")
    site.guest("a")
    before = host.guest.domid
    played = upgraded(site, "--check")
    assert played.status == 0, played
    assert not host.world.storage.snapshots
    assert host.guest.domid == before


def test_the_example_inventory_and_upgrade_are_those_of_the_playbook(tmp_path: Path) -> None:
    inventory = yaml.safe_load((SOURCE / "inventory.yml").read_text())
    for variables in inventory["guests"]["hosts"].values():
        assert variables["dom0"] in inventory["xen"]["hosts"]
        assert variables["domain"]
    (play_,) = yaml.safe_load(UPGRADE.read_text())
    assert (SOURCE / play_["vars"]["upgrade_tasks"]).exists()


def test_every_guest_of_the_xen_hosts_is_upgraded(site: Site) -> None:
    for name, domain in (("xen-a", "web1"), ("xen-b", "db1"), ("xen-c", "router")):
        site.dom0(name, domain=domain)
    domids = {name: host.guest.domid for name, host in site.hosts.items()}
    # The inventory has one of them, under another name, and thinks that it is on another host.
    site.guest("web.example", dom0="xen-c", domain="web1")
    site.reaches_all()
    options = ("-e", "bad=db1", "--limit", "all:!router")
    played = upgraded(site, *options, playbook=ALL_GUESTS)
    taken = [(t.host, t.outcome) for t in played.told if t.task == "Take a snapshot"]
    assert sorted(taken) == [("db1", "ok"), ("web.example", "ok")]
    assert played.of("Report the guest as failed", "db1").outcome == "failed"
    changed = {n for n, host in site.hosts.items() if host.guest.domid != domids[n]}
    assert changed == {"xen-b"}
    assert {n for n, host in site.hosts.items() if host.world.storage.snapshots} == {
        "xen-a",
        "xen-b",
    }


NOTHING_UPGRADED = {
    "List the guests",
    "Keep their names",
    "See whether each name is that of one guest",
}


def test_no_guest_is_upgraded_if_two_have_one_name(site: Site) -> None:
    site.dom0("xen-a")
    site.dom0("xen-b")
    site.reaches_all()
    played = upgraded(site, playbook=ALL_GUESTS)
    assert played.status == 2
    assert {t.task for t in played.told} == NOTHING_UPGRADED


@pytest.mark.parametrize("domain", ["web1", "xen-a"])
def test_no_guest_is_upgraded_if_it_would_be_taken_for_another_host(
    site: Site, domain: str
) -> None:
    """Another guest's inventory host has its name, or a Xen host has."""
    site.dom0("xen-a", domain=domain)
    site.guest("web1", dom0="xen-a", domain="old")
    site.reaches_all()
    played = upgraded(site, playbook=ALL_GUESTS)
    assert played.status == 2
    assert {t.task for t in played.told} == NOTHING_UPGRADED
