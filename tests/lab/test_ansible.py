"""The Ansible playbook on real guests: the module runs in the dom0, Ansible on this machine."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.harness.lab import Lab
from tests.playbook import SOURCE, play

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]

STEPS = """\
- name: The upgrade
  ansible.builtin.shell: "sleep 5; test {{ inventory_hostname }} != pvh"
"""


def test_a_guest_whose_upgrade_fails_is_reverted(lab: Lab, tmp_path: Path) -> None:
    steps = tmp_path / "steps.yml"
    steps.write_text(STEPS)
    dom0 = {
        "ansible_connection": "ansible_dom0",
        "ansible_port": lab.dom0.port,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    local = {"ansible_connection": "local", "dom0": "xen1"}
    inventory = {
        "xen": {"hosts": {"xen1": dom0}},
        "guests": {"hosts": {"pvh": local, "pv": local | {"live": False}}},
    }
    pvh, pv = lab.guest("pvh"), lab.guest("pv")
    before = {guest.name: guest.domid() for guest in (pvh, pv)}
    old, mark = pvh.assert_healthy(), pvh.mark()
    pv.assert_healthy()

    extra = ("-e", f"upgrade_tasks={steps}", "-e", "at_a_time=1")
    played = play(tmp_path, inventory, SOURCE / "upgrade.yml", *extra)

    assert played.status == 2, played
    taken = {name: played.of("Take a snapshot", name).result["result"] for name in before}
    assert (taken["pvh"]["live"], taken["pv"]["live"]) == (True, False)
    reverted = played.of("Revert to the snapshot", "pvh").result["result"]
    assert reverted["domid"] == pvh.domid() != before["pvh"]
    assert pv.domid() == before["pv"]
    said = played.of("Report the guest as failed", "pvh").result["msg"]
    assert said.endswith(f"the guest is back at {taken['pvh']['cfgfile']}")
    # It has counted on during the upgrade, and then from the snapshot once more.
    counted = [tick.n for tick in pvh.ticks_since(mark)]
    assert any(later < earlier for earlier, later in pairwise(counted)), counted
    assert min(counted) > old.n
    pv.assert_healthy()
    pvh.assert_healthy()
