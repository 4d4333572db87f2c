"""The dom0 of an admin: no compiler, and the Debian packages in a local folder.

``apt`` in the dom0 reaches no mirror. So the folder has all that ``apt`` needs: our packages, and
those of Debian that the dom0 does not have yet.
"""

import shutil
from pathlib import Path

from release import deb

from . import cache, image
from .dom0 import Dom0
from .install import uninstall

#: where the packages are in the dom0; those of a later revision are in ``NEWER``
FOLDER, NEWER = "/srv/packages", "/srv/newer"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends"
SLOW = 600.0

_COMPILERS = (
    r"^(gcc|cpp|binutils)(-[0-9]+)?(-x86-64-linux-gnu)?$|"
    r"^(libc6-dev|libxen-dev|pkgconf|pkg-config)$"
)
# The image has no man pages, and keeps dpkg from unpacking some.
_BARE = rf"""
{APT} purge $(dpkg-query -W -f '${{Package}}\n' | grep -E '{_COMPILERS}')
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
test -z "$(command -v gcc cc)"
"""
_FETCH = """\
mkdir -p /packages/extra/partial
apt-get update -q
apt-get install -qy --no-install-recommends --download-only -o Dir::State::status=/packages/status \
  -o Dir::Cache::archives=/packages/extra /packages/*.deb
rm -rf /packages/extra/partial /packages/extra/lock
"""
_REVISE = rf"""
mkdir -p {NEWER}
for package in {FOLDER}/pyxlsnap_*.deb {FOLDER}/python3-pyxlsnap_*.deb; do
  rm -rf /tmp/tree
  dpkg-deb -R "$package" /tmp/tree
  sed -i -E 's/(~deb[0-9]+u)1/\12/g' /tmp/tree/DEBIAN/control
  dpkg-deb -b -Znone --root-owner-group /tmp/tree {NEWER} >/dev/null
done
rm -r /tmp/tree
"""


def make_bare(dom0: Dom0) -> None:
    """Take the lab's pyxlsnap, and everything that could compile one, from the dom0."""
    uninstall(dom0)
    dom0.run(f"set -e; {_BARE}", timeout=SLOW)


def deliver(dom0: Dom0, say: cache.Say) -> None:
    """Put the packages for the dom0's Debian into its folder."""
    status = dom0.read("/var/lib/dpkg/status")
    suite = image.wanted().suite
    ours = deb.ensure(suite, say)

    def fetch(new: Path) -> None:
        for path in ours.glob("*.deb"):
            shutil.copy(path, new)
        (new / "status").write_bytes(status)
        chroot = deb.check_chroot(suite)
        chroot.ensure(say)
        say("fetching what the dom0 does not have")
        chroot.run(_FETCH, log=new / "apt.log", binds={new: "/packages"}, network=True)
        for path in (new / "extra").glob("*.deb"):
            shutil.copy(path, new)
        cache.remove(new / "extra")
        for path in new.iterdir():
            if path.suffix != ".deb":
                path.unlink()

    key = cache.digest(ours.name, status, _FETCH)
    dom0.push(cache.built("folder", key, fetch, say), FOLDER)


def revise(dom0: Dom0) -> None:
    """Make packages of a later revision from those in the folder."""
    dom0.run(f"set -e; {_REVISE}", timeout=SLOW)
