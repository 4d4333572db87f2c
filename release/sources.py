"""The two source packages: pyxlsnap, and qemu.qmp, which Debian 12 and 13 do not have.

qemu.qmp is a package of its own beside pyxlsnap, and not carried in it: Debian's policy (4.13) asks
for that; the package of a later Debian, which has the same name, takes its place without a change
here; and its licence is another one.
"""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from release import dist
from release.changelog import debian_changelog, upstream_version
from tests.lab.harness import cache
from tests.project import PROJECT

QMP_VERSION = "0.0.6"
QMP_SHA256 = "a3c25d871fab549122b2340810de1f99481002c942a2132476b062aacdbf6e92"
QMP_DEBIAN = PROJECT / "release" / "python-qemu-qmp" / "debian"
DEBIAN = PROJECT / "debian"


@dataclass(frozen=True, slots=True)
class Source:
    """A source package: its upstream archive and its ``debian`` directory."""

    name: str
    version: str
    archive: Path
    debian: Path

    @property
    def directory(self) -> str:
        """The name of the directory in which it is built."""
        return f"{self.name}-{self.version}"

    def unpack(self, where: Path, suite: str) -> None:
        """Lay the source package for a Debian release into a directory."""
        shutil.copy(self.archive, where / f"{self.name}_{self.version}.orig.tar.gz")
        shutil.unpack_archive(self.archive, where / "unpacked")
        (upstream,) = (where / "unpacked").iterdir()
        tree = upstream.rename(where / self.directory)
        (where / "unpacked").rmdir()
        shutil.copytree(self.debian, tree / "debian")
        changelog = debian_changelog(self.name, self.version, suite)
        (tree / "debian" / "changelog").write_text(changelog)

    def digest(self) -> str:
        """A key for all that it consists of."""
        files = sorted(path for path in self.debian.rglob("*") if path.is_file())
        parts = [part for path in files for part in (path.name, path.read_bytes())]
        return cache.digest(self.name, self.version, self.archive.read_bytes(), *parts)


def all_sources(where: Path, say: cache.Say) -> list[Source]:
    """Both, in the order in which they are built; archives are made in a directory."""
    return [
        Source("python-qemu-qmp", QMP_VERSION, _qmp_archive(say), QMP_DEBIAN),
        Source("pyxlsnap", upstream_version(), dist.sdist(where), DEBIAN),
    ]


def _qmp_archive(say: cache.Say) -> Path:
    """The sdist of qemu.qmp, from the Python package index that this machine uses.

    :raises RuntimeError: the index gave something else.
    """
    requirement = f"qemu.qmp=={QMP_VERSION}"

    def fetch(new: Path) -> None:
        say(f"fetching the source of {requirement}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(new)]
        subprocess.run([*pip, "--no-binary", "qemu.qmp", requirement], check=True)

    directory = cache.built("orig", cache.digest(requirement), fetch, say)
    (archive,) = directory.iterdir()
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != QMP_SHA256:
        raise RuntimeError(f"{archive} is not the {requirement} that is known: sha256 {found}")
    return archive
