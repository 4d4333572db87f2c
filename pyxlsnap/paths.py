"""Every place on the host that pyxlsnap knows.

Used as ``paths.JOURNALS``, never imported by name, so that a test moves a place by one patch here.
"""

from pathlib import Path

#: the locks of domains; gone after a reboot
LOCKS = Path("/run/pyxlsnap")
#: the journals of operations under way
JOURNALS = Path("/var/lib/pyxlsnap")
#: a directory for each domain: its snapshots, where the user names no other place
SNAPSHOTS = Path("/var/lib/xen/snapshots")
#: where xl's monitors write their logs, and ours
XEN_LOGS = Path("/var/log/xen")
#: core dumps of guests that crashed
DUMPS = Path("/var/lib/xen/dump")
#: the sockets of each guest's QEMU
QEMU_SOCKETS = Path("/run/xen")
#: xl.conf(5)
XL_CONF = Path("/etc/xen/xl.conf")
#: the lock under which xl starts a domain
XL_LOCK = Path("/run/lock/xl")
#: a status file for each domain that libvirt manages
LIBVIRT_DOMAINS = Path("/run/libvirt/libxl")
#: what the kernel says of processes
PROC = Path("/proc")
#: what the kernel says of devices
SYS = Path("/sys")
#: device nodes
DEV = Path("/dev")
