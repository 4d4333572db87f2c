"""The unit tests with the Python, the QEMU and the libxl that Debian will have next.

``python -m tests.newest``: in a clean Debian unstable, without a network. Words go to pytest.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from release.chroot import Chroot, CommandFailed
from tests.lab.harness import cache
from tests.project import PROJECT

_PACKAGES = (
    *("gcc", "libc6-dev", "pkg-config", "libxen-dev", "python3-dev", "python3-setuptools"),
    *("python3-cffi", "python3-qemu-qmp", "python3-tqdm", "python3-jsonschema"),
    *("python3-pytest", "python3-pytest-timeout", "python3-pytest-xdist", "python3-hypothesis"),
    *("qemu-system-x86", "qemu-utils", "e2fsprogs", "btrfs-progs", "xfsprogs", "zstd", "zsh"),
    *("bash-completion", "kmod", "procps", "python3-sphinx"),
)
CHROOT = Chroot("sid", _PACKAGES)
LOG = PROJECT / "build" / "newest.log"

# Not exec: this shell is the first process of its namespace, and reaps what others leave to it.
# Where nobody does, a test waits for ever for the end of a process that has ended.
_RUN = """\
uname -r
python3 --version
qemu-img --version | head -n 1
dpkg-query -W -f '${{Package}} ${{Version}}\n' libxen-dev qemu-system-x86 python3-cffi
cd {place}
python3 build_ffi.py
python3 build_ffi.py stream
python3 -m pytest -p no:cacheprovider {words} </dev/null
"""
# What is of the tree, or needs the pinned tools of tests/requirements.txt, and not of a Python.
_OTHERS = "--ignore=tests/unit/project"
_UNCOPIED = (
    *(".*", "__pycache__", "*.so", "*.o", "build", "dist", "*.egg-info"),
    "node_modules",
)
_PLACE = "/build"


def main(words: Sequence[str]) -> int:
    say = cache.progress()
    CHROOT.ensure(say)
    chosen = [*(words or ["tests/unit", _OTHERS]), f"-n{os.environ.get('JOBS') or 1}"]
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory) / "work"
        shutil.copytree(PROJECT, work, ignore=shutil.ignore_patterns(*_UNCOPIED))
        say(f"running the unit tests in Debian unstable; all that they say is in {LOG}")
        script = _RUN.format(place=_PLACE, words=" ".join(chosen))
        # The block devices and their users are looked up in /sys.
        binds = {work: _PLACE, Path("/sys"): "/sys"}
        try:
            CHROOT.run(script, log=LOG, binds=binds)
        except CommandFailed as error:
            print(error, file=sys.stderr)
            return 1
    said = LOG.read_text(errors="replace").splitlines()
    print("\n".join([*said[:6], said[-1]]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
