"""Versions and dates: all follow from ``pyxlsnap/version.py``, CHANGELOG.md and git."""

import os
import re
import subprocess
from datetime import UTC, date, datetime
from email.utils import format_datetime
from pathlib import Path

from pyxlsnap.version import VERSION
from tests.project import PROJECT

MAINTAINER = "pyxlsnap maintainers <maintainers@pyxlsnap.example>"
#: the numbers of Debian's releases, by their names
DEBIAN = {"bookworm": 12, "trixie": 13}


def release_date(text: str | None = None) -> date | None:
    """The date of this version in the changelog (its text); ``None``: it is not released yet."""
    text = (PROJECT / "CHANGELOG.md").read_text() if text is None else text
    found = re.search(rf"^## {re.escape(VERSION)} - (\d{{4}}-\d\d-\d\d)$", text, re.MULTILINE)
    return date.fromisoformat(found[1]) if found else None


class NoDate(Exception):
    """Nothing tells the day of this tree; the text says what is missing."""


def commit_date(tree: Path = PROJECT) -> date:
    """The day of the last commit, in UTC; without git that of ``$SOURCE_DATE_EPOCH``.

    :raises NoDate: there is neither, as in a tree that was unpacked from an archive.
    """
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or _committed(tree)
    try:
        return datetime.fromtimestamp(int(seconds), UTC).date()
    except (ValueError, OverflowError) as e:
        raise NoDate(f"SOURCE_DATE_EPOCH is no time: {seconds!r}") from e


def _committed(tree: Path) -> str:
    command = ["git", "log", "-1", "--format=%ct"]
    try:
        run = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as e:
        said = getattr(e, "stderr", "") or str(e)
        raise NoDate(
            f"git does not tell the day of {tree} ({said.strip()}): set SOURCE_DATE_EPOCH to the "
            f"seconds since 1970, or date the release in CHANGELOG.md"
        ) from e
    return run.stdout


def day() -> date:
    """The day that everything built from this tree is dated with."""
    return release_date() or commit_date()


def moment() -> datetime:
    """The time in everything that is built: when the day began.

    It must have passed: only later times are replaced by it.
    """
    return datetime(day().year, day().month, day().day, tzinfo=UTC)


def upstream_version() -> str:
    """The version for Debian: before the release one that the release is newer than."""
    return VERSION if release_date() else f"{VERSION}~git{commit_date():%Y%m%d}"


def debian_changelog(source: str, version: str, suite: str) -> str:
    """The ``debian/changelog`` of a source package for a Debian release.

    The packages of a newer Debian are newer, so an upgrade of Debian upgrades them.
    """
    return (
        f"{source} ({version}-1~deb{DEBIAN[suite]}u1) {suite}; urgency=medium\n\n"
        f"  * Build of {source} {version} for Debian {DEBIAN[suite]}.\n\n"
        f" -- {MAINTAINER}  {format_datetime(moment())}\n"
    )
