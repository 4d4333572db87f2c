"""Clean Debian systems in which packages are built and tried.

A system is made once by mmdebstrap, from the Debian mirror that this machine uses, and kept in the
cache. A command runs in a copy of it that is thrown away: an overlay in memory, in namespaces of
its own.
"""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.harness import cache, image

#: the kind of its directories in the cache
KIND = "chroot"
#: of the memory for what a command writes
OVERLAY_SIZE = "3G"

# What runs as root outside of the chroot: the arguments are the chroot, an empty directory, and
# pairs of a directory and its place in the chroot. The command comes from stdin.
_ENTER = """\
set -eu
base=$1 scratch=$2 network=$3
shift 3
mount -t tmpfs -o size=$SIZE overlay "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay \
  -o "lowerdir=$base,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
cd "$scratch/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmp tmp
mount -t tmpfs run run
if [ "$network" = yes ]; then cp /etc/resolv.conf etc/resolv.conf; else ip link set lo up; fi
while [ $# -gt 0 ]; do
  mkdir -p ".$2"
  mount --bind "$1" ".$2"
  shift 2
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8 \
  DEBIAN_FRONTEND=noninteractive chroot . /bin/sh -eu
"""


class CommandFailed(Exception):
    """A command in a chroot failed; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Chroot:
    """A Debian release with some packages; :meth:`ensure` it before :meth:`run`."""

    suite: str
    packages: tuple[str, ...]
    variant: str = "minbase"

    @property
    def key(self) -> str:
        return cache.digest(self.suite, *self._options(), *image.age(self.suite))

    @property
    def root(self) -> Path:
        """The root of the system, for commands that only read."""
        return cache.home() / f"{KIND}-{self.key}" / "root"

    def ensure(self, say: cache.Say) -> None:
        """Build the system if the cache does not have it."""
        cache.built(KIND, self.key, lambda new: self._build(new, say), say)

    def run(
        self,
        script: str,
        *,
        log: Path,
        binds: Mapping[Path, str] | None = None,
        network: bool = False,
    ) -> None:
        """Run a shell script as root in a copy of the system; nothing of the copy stays.

        :param log: gets all that the script writes.
        :param binds: directories of this machine, and their places there.
        :raises CommandFailed: the script ended with another status than 0.
        """
        pairs = [str(word) for pair in (binds or {}).items() for word in pair]
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        if not network:
            spaces.append("--net")
        enter = _ENTER.replace("$SIZE", OVERLAY_SIZE)
        with tempfile.TemporaryDirectory(dir=cache.home()) as scratch, log.open("ab") as file:
            words = [str(self.root), scratch, "yes" if network else "no", *pairs]
            done = subprocess.run(
                cache.privileged(["unshare", *spaces, "sh", "-c", enter, "sh", *words]),
                input=script.encode(),
                stdout=file,
                stderr=file,
            )
        if done.returncode:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise CommandFailed(f"failed in Debian {self.suite} ({done.returncode}):\n{end}")

    def _build(self, new: Path, say: cache.Say) -> None:
        what = " ".join(self.packages[:3])
        say(f"making a Debian {self.suite} with {what} …; takes minutes")
        root, lines = new / "root", image.sources(self.suite)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("mmdebstrap", *self._options(), *_keys_of(lines)),
            *(f"--aptopt={setting}" for setting in image.apt_options()),
            *(self.suite, str(root), *lines),
        ]
        with (new / "mmdebstrap.log").open("w") as file:
            done = subprocess.run(
                cache.privileged(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        if done.returncode:
            tail = "\n".join((new / "mmdebstrap.log").read_text().splitlines()[-20:])
            raise CommandFailed(f"{shlex.join(command)}\nfailed ({done.returncode}):\n{tail}")

    def _options(self) -> list[str]:
        """What mmdebstrap is told on every machine."""
        return [
            *("--mode=root", f"--variant={self.variant}", "--components=main"),
            *(["--include=" + ",".join(self.packages)] if self.packages else []),
            *('--aptopt=Apt::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"'),
            "--dpkgopt=force-unsafe-io",
            "--skip=cleanup/apt/lists",  # packages can be added in a copy
            # A copy is no running system: nothing may be started there.
            r"--customize-hook=printf '#!/bin/sh\nexit 101\n' >"
            '"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"',
        ]


def _keys_of(lines: Sequence[str]) -> list[str]:
    """Hooks that copy the keys that sources name, where the chroot does not have them."""
    names = sorted({name for line in lines for name in re.findall(r"signed-by=([^\]\s]+)", line)})
    return [
        f'--customize-hook=[ -e "$1"{shlex.quote(name)} ] || '
        f'install -D -m 644 {shlex.quote(name)} "$1"{shlex.quote(name)}'
        for name in names
    ]
