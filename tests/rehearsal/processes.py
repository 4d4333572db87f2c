"""What other processes may hold, and the limits of ours."""

from tests.rehearsal.condition import Condition

# A process that has the lock of the domain, as another operation has. (Its parent goes on when it
# has the lock.)
_LOCKS = """
import fcntl, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
os.closerange(0, 3)
time.sleep(1000)
"""


def _limited(what: str, option: str, value: int, *, off_xen_only: bool = False) -> Condition:
    """A limit of the shell that starts the revert; root may raise it again."""
    return Condition(
        name=f"a limit for {what}",
        before=f"ulimit -S{option} {value}",
        status=0,
        off_xen_only=off_xen_only,
    )


CONDITIONS = (
    Condition(
        name="another operation at work",
        do=(f"python3 -c '{_LOCKS}' {{lock}} >{{spare}}",),
        status=3,
        says="another snapshot operation on",
        undo=("kill $(cat {spare})",),
        lab=True,
    ),
    Condition(
        name="a lock file that nobody holds",
        do=("touch {lock}",),
        status=0,
    ),
    Condition(
        name="an image open in another process",
        do=("sleep 1000 <{internal} >/dev/null 2>&1 & echo $! >{spare}",),
        status=3,
        says="{internal} is in use by sleep",
        undo=("kill $(cat {spare})",),
        lab=True,
    ),
    Condition(
        name="a program that looks at each disk for a moment",
        # (A program counts as a command of LVM by its name. In the lab it would end too soon.)
        do=(
            "mkdir {spare} && cp $(command -v sleep) {spare}/lvs",
            "{spare}/lvs 8 <{internal} >/dev/null 2>&1 &",
        ),
        status=0,
        undo=("rm -r {spare}",),
        off_xen_only=True,
    ),
    Condition(
        name="a frozen file open in another process",
        do=("sleep 1000 <{frozen} >/dev/null 2>&1 & echo $! >{spare}",),
        status=0,
        undo=("kill $(cat {spare})",),
    ),
    _limited("open files", "n", 24),
    _limited("the size of files", "f", 64),
    _limited("processor time", "t", 1, off_xen_only=True),  # (Python's start takes longer there)
    _limited("memory", "v", 400_000),
    Condition(
        name="the QEMU of the domain stopped",
        do=("kill -STOP {pid}",),
        status=3,
        says="of {domain} is stopped, and would not end with the domain",
        undo=("kill -CONT {pid}",),
        off_xen_only=True,  # (a guest whose disks stand still misses its ticks)
    ),
    Condition(
        name="xl's lock held",
        do=(f"python3 -c '{_LOCKS}' {{xl_lock}} >{{spare}}",),
        status=3,
        says="has held xl's lock {xl_lock} for",
        undo=("kill $(cat {spare})",),
        off_xen_only=True,  # (tests/lab/test_host_needs.py does it)
    ),
)
