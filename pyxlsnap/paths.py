"""All fixed paths on the host.

Use them as ``paths.JOURNALS``, and never import them by name: so a test patches only this module.
"""

from pathlib import Path
from typing import NamedTuple

#: the locks of domains, and how long their last snapshots took; empty after a reboot
LOCKS = Path("/run/pyxlsnap")
#: the journals of operations under way
JOURNALS = Path("/var/lib/pyxlsnap")
#: snapshots, in a directory for each domain, unless the user names another place
SNAPSHOTS = Path("/var/lib/xen/snapshots")
#: the logs of the monitors, xl's and ours
XEN_LOGS = Path("/var/log/xen")
#: core dumps of guests that crashed
DUMPS = Path("/var/lib/xen/dump")
#: the sockets of each guest's QEMU
QEMU_SOCKETS = Path("/run/xen")
#: xl.conf(5)
XL_CONF = Path("/etc/xen/xl.conf")
#: the scripts that libxl starts for disks and network devices
XEN_SCRIPTS = Path("/etc/xen/scripts")
#: the locks of the scripts that libxl starts
SCRIPT_LOCKS = Path("/run/xen-hotplug")
#: the lock that xl holds while it starts a domain
XL_LOCK = Path("/run/lock/xl")
#: a status file for each domain that libvirt manages
LIBVIRT_DOMAINS = Path("/run/libvirt/libxl")
#: the processes, from the kernel
PROC = Path("/proc")
#: the devices, from the kernel
SYS = Path("/sys")
#: the network interfaces, from the kernel
NETWORK = Path("/sys/class/net")
#: device nodes
DEV = Path("/dev")


class Places(NamedTuple):
    """Paths that are compiled into libxl; "" for what is not known."""

    #: the directory where libxl keeps the configurations of the domains, and a QEMU's saved state
    state: str = ""
    #: the directory of the logs of QEMU and of the scripts
    logs: str = ""
    #: the program that reads a memory file
    save_helper: str = ""
    #: the directory of the scripts
    scripts: str = ""
    #: another libxl, or none, is now in the place of the one that this process has loaded
    replaced: bool = False
