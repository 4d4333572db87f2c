"""For developers: ``python -m release dist|deb|rest``. All results are in ``dist/``.

``make dist`` calls ``dist``; ``make deb`` calls ``dist``, then ``deb``. ``make release`` runs every
test on each Xen of the lab, ``make fuzz`` and ``make deb``, and ends with ``rest``.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from pyxlsnap.version import VERSION
from release import changelog, deb, dist
from release.chroot import CommandFailed
from tests.lab.harness import cache, support
from tests.lab.harness.image import RELEASES
from tests.project import PROJECT

DIST = PROJECT / "dist"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m release")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("dist", help="build and check the sdist and the wheel")
    debian = verbs.add_parser("deb", help="build and check the Debian packages")
    debian.add_argument("suites", nargs="*", metavar="SUITE", help=" ".join(deb.SUITES))
    verbs.add_parser("rest", help="say what a release still needs from a person")
    arguments = parser.parse_args()
    try:
        match arguments.verb:
            case "dist":
                build_dist()
            case "deb":
                return build_debs(arguments.suites or deb.SUITES)
            case "rest":
                print("\n".join(rest()))
    except changelog.NoDate as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build_dist() -> None:
    """Build sdist and wheel into dist/, in the place of older ones."""
    DIST.mkdir(exist_ok=True)
    for old in (*DIST.glob("*.tar.gz"), *DIST.glob("*.whl")):
        old.unlink()
    made = dist.sdist(DIST)
    wheel = dist.wheel(made, DIST)
    dist.check(made, wheel)
    _name([made, wheel])


def build_debs(suites: list[str] | tuple[str, ...]) -> int:
    """Build the packages for some Debian releases into dist/SUITE/."""
    say = cache.progress()
    for suite in suites:
        if suite not in deb.SUITES:
            print(f"{suite}: packages are made for {' and '.join(deb.SUITES)}", file=sys.stderr)
            return 2
        try:
            _name(deb.build_and_check(suite, DIST / suite, say))
        except (CommandFailed, deb.Broken) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def rest() -> list[str]:
    """What is left to a person, in order."""
    undated = (
        f"date CHANGELOG.md (## {VERSION} - YYYY-MM-DD) and the man pages (docs/conf.py, `make "
        f"docs`), commit, and begin again"
    )
    steps = [
        *([] if changelog.release_date() else [undated]),
        *(
            f"run `make soak XEN={name}`, and commit what it writes: README's table of what works"
            f" lacks results of Debian {RELEASES[name].debian}"
            for name in support.lacking(support.load())
        ),
        *(
            [f"commit what `make soak` has written ({', '.join(changed)}), and build again"]
            if (changed := uncommitted())
            else []
        ),
        "run `make bench` while nothing else runs; read its report, those of `make soak` and"
        " `make fuzz`, and README's tables",
        f"put an address that is read in the place of {changelog.MAINTAINER}, in debian/control,"
        " release/python-qemu-qmp/debian/control, release/changelog.py and pyproject.toml",
        "name the project's site: [project.urls] in pyproject.toml, Homepage in debian/control",
        f"sign and push the tag v{VERSION}",
        f"upload dist/pyxlsnap-{VERSION}.tar.gz to PyPI (twine upload); not the wheel: it works"
        " only with the Xen and the C library that it was built against",
        "sign and publish the packages in dist/bookworm and dist/trixie",
        "set the next version in pyxlsnap/version.py, with a heading in CHANGELOG.md",
    ]
    return ["left to a person:", *(f"  {n}. {step}" for n, step in enumerate(steps, 1))]


def uncommitted() -> list[str]:
    """The files that differ from the last commit; none in a tree without git."""
    command = ["git", "-C", str(PROJECT), "diff", "--name-only", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # there is no git
        return []
    return done.stdout.split() if done.returncode == 0 else []


def _name(files: list[Path]) -> None:
    for file in files:
        print(f"built {file.relative_to(PROJECT)}: {file.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    sys.exit(main())
