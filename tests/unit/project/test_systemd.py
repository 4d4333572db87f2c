"""The unit that recovers at boot: ordered as what starts the domains is, and before that."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

UNIT = Path(__file__).parents[3] / "pyxlsnap/systemd/pyxlsnap-recover.service"
DOCS = Path(__file__).parents[3] / "docs"
#: of Xen's own unit (tools/hotplug/Linux/systemd/xendomains.service.in)
OF_XEN = {
    "After": "proc-xen.mount xenstored.service xenconsoled.service xen-init-dom0.service "
    "network-online.target remote-fs.target",
}
#: what systemd makes of the header of Debian's /etc/init.d/xendomains
OF_DEBIAN = {
    "Wants": "network-online.target",
    "After": "network-online.target remote-fs.target xen.service drbd.service iscsi.service "
    "openvswitch-switch.service nfs-kernel-server.service",
    "Before": "corosync.service heartbeat.service libvirtd.service",
}


def ordering(text: str) -> dict[str, set[str]]:
    """The units that each key of a unit names."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, set()).update(value.split())
    return found


def test_a_worker_may_outlive_every_unit_that_is_shown() -> None:
    pages = [path.read_text() for path in DOCS.rglob("*.rst")]
    shown = [u for page in pages for u in re.findall(r"(?:^ {3}.*\n|^\n)+", page, re.MULTILINE)]
    services = [UNIT.read_text(), *(unit for unit in shown if "[Service]" in unit)]
    assert len(services) >= 3
    for service in services:
        assert ordering(dedent(service))["KillMode"] == {"process"}


@pytest.mark.parametrize("wanted", [OF_XEN, OF_DEBIAN], ids=["xen", "debian"])
def test_it_comes_after_all_that_xendomains_comes_after(wanted: dict[str, str]) -> None:
    ours = ordering(UNIT.read_text())
    for key, units in wanted.items():
        assert set(units.split()) <= ours[key], key
    assert "xendomains.service" in ours["Before"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("of", [OF_XEN, OF_DEBIAN], ids=["xen", "debian"])
def test_systemd_takes_it(of: dict[str, str], tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ExecStart=pyxlsnap ", "ExecStart=/bin/true "))
    for name in ("xendomains", "xen", "xenstored", "libvirtd", "iscsi"):
        lines = [f"{key}={value}" for key, value in of.items()] if name == "xendomains" else []
        service = ["[Service]", "ExecStart=/bin/true"]
        (tmp_path / f"{name}.service").write_text("\n".join(["[Unit]", *lines, *service, ""]))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit), str(tmp_path / "xendomains.service")],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
