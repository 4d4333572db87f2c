"""In dom0: the LVM strategies against the real LVM, without any guest.

usage: lvm_check.py thin|thick|space. Makes a volume group on a file, with a thin pool and a thick
volume, and removes it in the end. Prints JSON: the seconds that things took, the longest of each.
Ends with 1 if anything is wrong. Each takes some minutes: LVM waits for udev again and again.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.disks import in_use
from pyxlsnap.disks.lvm.commands import Volume, free_space, is_lvm, is_thin, volumes
from pyxlsnap.disks.lvm.names import mapped_name
from pyxlsnap.disks.lvm.thick import LvmThick, needed
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest

VG = "xlsnap-check"
FILE = Path("/var/tmp/xlsnap-check.img")
MIB = 2**20
SIZE = 8 * MIB
THIN, THICK = "disk-thin", "disk-thick"
KINDS: dict[str, type[LvmThin] | type[LvmThick]] = {THIN: LvmThin, THICK: LvmThick}
KILLS = 2

seconds: dict[str, float] = {}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[what] = round(max(seconds.get(what, 0.0), time.monotonic() - began), 2)


@contextmanager
def refused(kind: type[Exception], *words: str) -> Iterator[None]:
    try:
        yield
    except kind as e:
        said = str(e)
    else:
        raise AssertionError(f"no {kind.__name__} about {words}")
    print(f"as it should: {said}", file=sys.stderr)
    assert all(word in said for word in words)


def path(lv: str) -> Path:
    return Path("/dev") / VG / lv


def strategy(
    lv: str,
    name: str,
    *,
    to: str = "",
    target: str = "",
    finishes: Mapping[str, str] | None = None,
) -> DiskStrategy:
    disk = Disk("xvda", target or str(path(lv)), "raw", "phy")
    task = DiskTask(name, finishes=finishes)
    return KINDS[lv]([(disk, DiskRequest("xvda", path=to))], task)


def write(lv: str, seed: str, *, at: int = 0, length: int = SIZE) -> None:
    with path(lv).open("r+b") as device:
        device.seek(at)
        device.write(random.Random(seed).randbytes(length))
        device.flush()
        os.fsync(device.fileno())


def digest(lv: str) -> str:
    return hashlib.sha256(path(lv).read_bytes()).hexdigest()


def found() -> dict[str, Volume]:
    return volumes("xvda", VG)


def create(lv: str, name: str) -> DiskStrategy:
    one = strategy(lv, name)
    with timed(f"{lv}: check_create"):
        one.check_create(1)
    with timed(f"{lv}: create"):
        one.create()
    return one


def revert(lv: str, name: str, *, finishes: Mapping[str, str] | None = None) -> None:
    one = strategy(lv, name, finishes=finishes)
    one.check_revert()
    with timed(f"{lv}: revert"):
        one.revert()
    with timed(f"{lv}: finish_revert"):
        assert one.finish_revert(2) == []


def check_back_and_forth(lv: str) -> None:
    """Any snapshot, in any order, again and again; nothing is left, the owner's tags stay."""
    assert is_lvm(str(path(lv)))
    assert is_thin(str(path(lv))) == (lv == THIN)
    run("lvchange", "--addtag", "owner", f"{VG}/{lv}")
    states = {}
    for name in ("one", "two"):
        write(lv, name)
        states[name] = digest(lv)
        print([a.where for a in create(lv, name).artefacts("x")], file=sys.stderr)
        write(lv, f"after {name}", at=MIB, length=2 * MIB + 4096)
    for turn, name in enumerate(("one", "two", "one", "one")):
        revert(lv, name)
        assert digest(lv) == states[name], (turn, name)
        assert found()[lv].tags == ("owner",)
        write(lv, f"turn {turn}", at=turn * MIB, length=MIB)
    assert sorted(v for v in found() if v.startswith(lv)) == [lv, f"{lv}-one", f"{lv}-two"]
    for name in states:
        run("lvremove", "-f", f"{VG}/{lv}-{name}")


def check_undo(lv: str) -> None:
    """What was made goes, what was there stays; another process can do it, too."""
    before = sorted(found())
    one = create(lv, "gone")
    with refused(AlreadyExists, f"{lv}-gone"):
        strategy(lv, "gone").check_create(1)
    stranger = strategy(lv, "gone")
    with refused(DiskError, "exists"):
        stranger.create()
    assert stranger.undo_create() == []
    assert f"{lv}-gone" in found()
    other = strategy(lv, "gone")
    other.adopt_create(1, began=0.0, state=one.state())
    run("dmsetup", "suspend", mapped_name(VG, lv))
    assert found()[lv].suspended
    other.settle()
    assert not found()[lv].suspended
    with timed(f"{lv}: undo_create"):
        assert other.undo_create() == [f"removed the volume {VG}/{lv}-gone"]
    assert one.undo_create() == []
    assert sorted(found()) == before
    named = strategy(
        lv, "x", to=str(path("my-own-name")), target=f"/dev/mapper/{mapped_name(VG, lv)}"
    )
    named.check_create(1)
    named.create()
    assert found()["my-own-name"].origin == lv
    named.undo_create()


def in_child(action: Callable[[], None], kill_after: float) -> None:
    """Run in a session of its own and kill all of it, LVM's command included."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            action()
        finally:
            os._exit(0)
    time.sleep(kill_after)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def check_killed(lv: str) -> None:
    """Killed at any time: create is undone, revert is run again, and both end well."""
    write(lv, "killed")
    state = digest(lv)
    before = sorted(found())
    for turn in range(KILLS):
        one = strategy(lv, "killed")
        in_child(one.create, seconds[f"{lv}: create"] * (turn + 0.5) / KILLS)
        other = strategy(lv, "killed")
        other.adopt_create(1, began=0.0, state=one.state())
        other.settle()
        print(f"killed create {turn}: {other.undo_create()}", file=sys.stderr)
        assert sorted(found()) == before
        assert digest(lv) == state
    create(lv, "killed")
    for turn in range(KILLS):
        write(lv, f"killed {turn}", at=MIB, length=5 * MIB)
        one = strategy(lv, "killed")
        one.check_revert()
        in_child(one.revert, seconds[f"{lv}: revert"] * (turn + 0.5) / KILLS)
        print(f"killed revert {turn}: {sorted(found())}", file=sys.stderr)
        assert is_lvm(str(path(lv)))
        assert is_thin(str(path(lv))) == (lv == THIN)
        revert(lv, "killed", finishes=one.state())
        assert digest(lv) == state
    assert sorted(found()) == sorted([*before, f"{lv}-killed"])
    run("lvremove", "-f", f"{VG}/{lv}-killed")


def check_open(lv: str) -> None:
    """While anybody has the disk open nothing is written."""
    create(lv, "open")
    write(lv, "open")
    state = digest(lv)
    in_use._UNUSED_S = 1.0
    with path(lv).open("rb"), refused(DiskError, "still in use by"):
        strategy(lv, "open").revert()
    assert digest(lv) == state
    assert not any(name.endswith(KEPT_SUFFIX) for name in found())
    in_use._UNUSED_S = 60.0
    run("lvremove", "-f", f"{VG}/{lv}-open")


def check_full_pool(lv: str) -> None:
    run("lvcreate", "-V", "64m", "-T", f"{VG}/pool", "-n", "filler")
    write("filler", "x", length=39 * MIB)
    with refused(Refused, "pool", "data", "% full"):
        strategy(lv, "full").check_create(1)
    assert f"{lv}-full" not in found()
    run("lvremove", "-f", f"{VG}/filler")


def check_full_group(lv: str) -> None:
    """As much as is needed is asked for, and with an extent less it is refused."""
    _, extent = free_space("xvda", VG)
    need = needed(SIZE, extent)
    create(lv, "exact")
    assert found()[f"{lv}-exact"].size == need, found()[f"{lv}-exact"]
    write(lv, "all of it")
    assert not found()[f"{lv}-exact"].invalid
    run("lvremove", "-f", f"{VG}/{lv}-exact")
    free, _ = free_space("xvda", VG)
    run("lvcreate", "-y", "-l", str((free - need) // extent + 1), "-n", "filler", VG)
    with refused(Refused, VG, "MiB free"):
        strategy(lv, "full").check_create(1)
    run("lvreduce", "-y", "-l", "-1", f"{VG}/filler")
    create(lv, "fits").undo_create()
    run("lvremove", "-f", f"{VG}/filler")


def check_invalid(lv: str) -> None:
    run("lvcreate", "-s", "-l", "1", "-n", f"{lv}-small", f"{VG}/{lv}")
    write(lv, "more than it can hold")
    with refused(Refused, "invalid"):
        strategy(lv, "small").check_revert()
    run("lvremove", "-f", f"{VG}/{lv}-small")


def set_up() -> None:
    with FILE.open("wb") as file:
        file.truncate(160 * MIB)
    loop = run("losetup", "-f", "--show", str(FILE)).strip()
    run("vgcreate", "-s", "1m", VG, loop)
    pool = ("-L", "40m", "--poolmetadatasize", "4m", "-n", "pool")
    run("lvcreate", "-y", "--type", "thin-pool", *pool, VG)
    run("lvcreate", "-V", f"{SIZE}b", "-T", f"{VG}/pool", "-n", THIN)
    run("lvcreate", "-y", "-L", f"{SIZE}b", "-n", THICK, VG)


def tear_down() -> None:
    subprocess.run(["vgremove", "-f", "-y", VG], stdin=subprocess.DEVNULL)
    for line in run("losetup", "-j", str(FILE)).splitlines():
        run("losetup", "-d", line.split(":")[0])
    FILE.unlink()


def main() -> int:
    modules = ("loop", "dm_thin_pool", "dm_snapshot")
    run("modprobe", "-a", *modules)
    checks: dict[str, list[tuple[Callable[[str], None], str]]] = {
        "thin": [(check, THIN) for check in CHECKS],
        "thick": [(check, THICK) for check in CHECKS],
        "space": [(check_full_pool, THIN), (check_full_group, THICK), (check_invalid, THICK)],
    }
    failed = []
    try:
        set_up()
        for check, lv in checks[sys.argv[1]]:
            print(f"--- {check.__name__} {lv}", file=sys.stderr, flush=True)
            try:
                check(lv)
            except Exception:
                traceback.print_exc()
                failed.append(f"{check.__name__} {lv}")
    finally:
        tear_down()
    print(json.dumps({"failed": failed, "seconds": seconds}))
    return 1 if failed else 0


CHECKS: tuple[Callable[[str], None], ...] = (
    check_back_and_forth,
    check_undo,
    check_killed,
    check_open,
)

if __name__ == "__main__":
    sys.exit(main())
