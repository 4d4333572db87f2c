"""The Debian packages: built in a clean chroot, compared, checked and tried."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from release.chroot import Chroot
from release.sources import DEBIAN, QMP_DEBIAN, Source, all_sources
from tests.lab.harness import cache

#: the releases that packages are built for
SUITES = ("bookworm", "trixie")
#: what checks packages; of each release the one that knows its rules
_CHECKERS = ("autopkgtest", "lintian")
_WORK = "/build"

_BUILD = """\
umask {umask}
export TZ={zone} "DEB_BUILD_OPTIONS=noautodbgsym parallel={jobs}"
cd {work}
for source in {directories}; do
  (cd "$source" && dpkg-buildpackage -us -uc)
  dpkg -i python3-qemu-qmp_*.deb
done
"""
_LINTIAN = """\
cd {work}
lintian --allow-root --fail-on error,warning --info --tag-display-limit 0 \
  --suppress-tags {known} *.changes
"""
_AUTOPKGTEST = """\
apt-get update -q
apt-get install -qy --no-install-recommends {work}/*.deb
cd {work}
autopkgtest --no-built-binaries {directory} -- null
"""
_TRIAL = (Path(__file__).parent / "trial.sh").read_text()
# What Debian's rules find in every package that is not in Debian, and has no bug number there.
_KNOWN_TAGS = ("initial-upload-closes-no-bugs",)


class Broken(Exception):
    """Packages are not as they must be; the text says what is wrong."""


def build_chroot(suite: str) -> Chroot:
    """The system in which the packages of a release are built: what they need, and no more."""
    return Chroot(suite, tuple(sorted(_build_depends())), variant="buildd")


def check_chroot(suite: str) -> Chroot:
    """The system in which they are checked: a Debian without a compiler and headers."""
    return Chroot(suite, _CHECKERS)


def ensure(suite: str, say: cache.Say) -> Path:
    """The directory of the packages for a release, from the cache or built once; not checked."""
    with _workplace() as work:
        sources = all_sources(work, say)
        chroot = build_chroot(suite)
        key = cache.digest(chroot.key, _BUILD, *(source.digest() for source in sources))

        def make(new: Path) -> None:
            chroot.ensure(say)
            _build(chroot, sources, new, say)

        return cache.built("deb", key, make, say)


def build_and_check(suite: str, dest: Path, say: cache.Say) -> list[Path]:
    """Build the packages for a release, twice, check them, and put them into a directory.

    :returns: the binary packages.
    :raises Broken: the builds differ, or the library is not tied to the Xen that it was built for.
    :raises CommandFailed: a build or a check failed; the log beside the packages says why.
    """
    first = ensure(suite, say)
    with _workplace() as work:
        sources = all_sources(work, say)
        again = work / "again"
        again.mkdir()
        _build(build_chroot(suite), sources, again, say, vary=True)
        _compare(first, again)
        check_abi(first, build_chroot(suite).root)
        _check(suite, first, sources[-1], work, say)
        shutil.rmtree(dest, ignore_errors=True)
        shutil.copytree(first, dest)
    return sorted(dest.glob("*.deb"))


def _build(
    chroot: Chroot, sources: Sequence[Source], dest: Path, say: cache.Say, *, vary: bool = False
) -> None:
    """Build all sources without a network.

    :param vary: in another place, time zone, and umask, and with another number of processes.
    """
    say(f"building the packages for Debian {chroot.suite}{' once more' if vary else ''}")
    place = "/elsewhere/deeper" if vary else _WORK
    with _workplace() as work:
        for source in sources:
            source.unpack(work, chroot.suite)
        script = _BUILD.format(
            work=place,
            umask="077" if vary else "022",
            zone="Pacific/Kiritimati" if vary else "UTC",
            jobs=1 if vary else 2,
            directories=" ".join(source.directory for source in sources),
        )
        try:
            chroot.run(script, log=dest / "build.log", binds={work: place})
        except BaseException:
            shutil.copy(dest / "build.log", cache.home() / f"failed-deb-{chroot.suite}.log")
            raise
        for path in work.iterdir():
            if path.is_file():
                shutil.copy(path, dest)


def _compare(first: Path, again: Path) -> None:
    """:raises Broken: two builds did not make the same packages, byte for byte."""
    made, other = ({path.name for path in where.glob("*.deb")} for where in (first, again))
    if made != other:
        raise Broken(f"a second build made {sorted(other)}, and not {sorted(made)}")
    for name in sorted(made):
        if (first / name).read_bytes() != (again / name).read_bytes():
            kept = Path(shutil.copy(again / name, cache.home() / name))
            raise Broken(f"a second build made another {name}: diffoscope {first / name} {kept}")


def check_abi(packages: Path, root: Path) -> None:
    """Check that apt installs the library only beside the libxl for which it was built.

    Debian has a package for each ABI of libxl, such as libxenmisc4.17.

    :param root: the system in which the packages were built.
    :raises Broken: the library does not depend on the libxl of that system, or on another one, too.
    """
    lists = (root / "var/lib/dpkg/info").glob("libxen*.list")
    built_for = {p.name.removesuffix(".list").partition(":")[0] for p in lists if _has_libxl(p)}
    (library,) = packages.glob("python3-pyxlsnap_*.deb")
    command = ["dpkg-deb", "--field", str(library), "Depends"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    wanted = set(re.findall(r"\blibxen(?:misc|light)[\d.]+", said))
    if len(built_for) != 1 or wanted != built_for:
        raise Broken(f"{library.name} was built for {sorted(built_for)}, and depends on: {said}")


def _has_libxl(file_list: Path) -> bool:
    """Whether a package has the library that programs for libxl are linked to."""
    return re.search(r"/libxenlight\.so\.[\d.]+$", file_list.read_text(), re.MULTILINE) is not None


def _check(suite: str, packages: Path, source: Source, work: Path, say: cache.Say) -> None:
    """Lintian for all that was built, the autopkgtest and trial.sh in systems without pyxlsnap.

    :raises CommandFailed: they found something.
    """
    chroot = check_chroot(suite)
    chroot.ensure(say)
    source.unpack(work, suite)
    for path in packages.iterdir():
        if path.suffix != ".log":
            shutil.copy(path, work)
    for name in ("lintian", "autopkgtest", "trial"):
        (packages / f"{name}.log").unlink(missing_ok=True)
    words = {"work": _WORK, "known": ",".join(_KNOWN_TAGS), "directory": source.directory}
    binds = {work: _WORK}
    say("asking lintian")
    chroot.run(_LINTIAN.format(**words), log=packages / "lintian.log", binds=binds)
    say("running the autopkgtest")
    log = packages / "autopkgtest.log"
    chroot.run(_AUTOPKGTEST.format(**words), log=log, binds=binds, network=True)
    say("trying upgrade, removal and purge")
    trial = f"PACKAGES={_WORK}\n{_TRIAL}"
    chroot.run(trial, log=packages / "trial.log", binds=binds, network=True)


def _build_depends() -> set[str]:
    """The packages that both sources need to be built, but for those that they make."""
    names: set[str] = set()
    for directory in (DEBIAN, QMP_DEBIAN):
        text = (directory / "control").read_text()
        (field,) = re.findall(r"^Build-Depends:((?:.*\n)(?: .*\n)*)", text, re.MULTILINE)
        names.update(re.sub(r"\(.*?\)|<.*?>", "", word).strip() for word in field.split(","))
    virtual = {"debhelper-compat": "debhelper", "dh-sequence-python3": "dh-python"}
    return {virtual.get(name, name) for name in names} - {"python3-qemu-qmp"}


@contextmanager
def _workplace() -> Iterator[Path]:
    """A directory for one build. Parts of it will belong to root."""
    directory = Path(tempfile.mkdtemp(prefix="build-", dir=cache.home()))
    try:
        yield directory
    finally:
        cache.remove(directory)
