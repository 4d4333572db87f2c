"""What is built for others: versions, dates and what the packages say of themselves."""

import configparser
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime
from fnmatch import fnmatch
from pathlib import Path

import pytest

from docs import conf
from pyxlsnap import paths
from pyxlsnap.clone_file import CloneFile
from pyxlsnap.journal import Journal
from pyxlsnap.version import VERSION
from release import __main__ as release
from release import changelog, deb, dist, sources
from tests.lab.harness import image, support
from tests.project import PROJECT, UNIT

TOLD = tomllib.loads((PROJECT / "pyproject.toml").read_text())
#: 2026-11-29 23:00 UTC
SOME_DAY = 1795993200
SCRIPTS = sorted(path for path in sources.DEBIAN.iterdir() if path.suffix in (".prerm", ".postrm"))


def older(first: str, second: str) -> bool:
    """Whether dpkg takes one version for older than another."""
    compared = subprocess.run(["dpkg", "--compare-versions", first, "lt", second])
    return compared.returncode == 0


def full_version(suite: str) -> str:
    text = changelog.debian_changelog("pyxlsnap", changelog.upstream_version(), suite)
    return text.split("(")[1].split(")")[0]


def released(monkeypatch: pytest.MonkeyPatch, on: date | None) -> None:
    """Have the changelog say this; the tree is of a known day, also where there is no git."""
    monkeypatch.setattr(changelog, "release_date", lambda: on)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(SOME_DAY))


@pytest.mark.parametrize(
    ("heading", "found"),
    [
        (f"## {VERSION} - 2026-12-01", date(2026, 12, 1)),
        (f"## {VERSION} - not released yet", None),
        (f"## {VERSION}0 - 2026-12-01", None),
        ("## Unreleased", None),
    ],
)
def test_the_date_of_a_release_is_that_of_its_heading(heading: str, found: date | None) -> None:
    text = f"# Changelog\n\n{heading}\n\n### Added\n\n## 0.0.1 - 2020-01-01\n"
    assert changelog.release_date(text) == found


def test_the_man_pages_have_the_date_of_the_release() -> None:
    found = changelog.release_date()
    assert found is None or conf.today == str(found)


def test_a_package_is_newer_than_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    released(monkeypatch, None)
    before = {suite: full_version(suite) for suite in deb.SUITES}
    released(monkeypatch, date(2026, 12, 1))
    after = {suite: full_version(suite) for suite in deb.SUITES}
    for versions in (before, after):
        assert older(versions["bookworm"], versions["trixie"])
    assert older(before["trixie"], after["bookworm"])
    # A package of Debian itself takes the place of ours.
    assert older(after["trixie"], f"{VERSION}-1")


def test_the_time_in_packages_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    released(monkeypatch, None)
    now = int(datetime.now(UTC).timestamp())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(now))
    assert changelog.moment().timestamp() <= now


def test_the_day_of_a_tree_is_that_of_its_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    # Git shall take no other repository for this one, nor the settings of whoever runs the test.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(changelog.NoDate, match="set SOURCE_DATE_EPOCH"):
        changelog.commit_date(tmp_path)
    if shutil.which("git"):
        for name in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{name}_NAME", "a")
            monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.example")
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{SOME_DAY} +1400")
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        commit = ["git", "-c", "core.hooksPath=", "-c", "commit.gpgSign=false", "commit", "-q"]
        subprocess.run([*commit, "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
        assert changelog.commit_date(tmp_path) == date(2026, 11, 29)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(SOME_DAY + 86400))
    assert changelog.commit_date(tmp_path) == date(2026, 11, 30)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(changelog.NoDate, match="yesterday"):
        changelog.commit_date(tmp_path)


def test_without_a_day_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def untold() -> None:
        raise changelog.NoDate("untold")

    monkeypatch.setattr(release, "build_dist", untold)
    monkeypatch.setattr(sys, "argv", ["release", "dist"])
    assert release.main() == 1
    assert capsys.readouterr().err == "untold\n"


def test_dpkg_reads_the_changelog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(monkeypatch, None)
    text = tmp_path / "changelog"
    text.write_text(changelog.debian_changelog("pyxlsnap", "1.2.3", "trixie"))
    run = subprocess.run(
        ["dpkg-parsechangelog", "-l", text], check=True, capture_output=True, text=True
    )
    assert "Version: 1.2.3-1~deb13u1\n" in run.stdout
    assert "Distribution: trixie\n" in run.stdout
    assert run.stderr == ""


def archive(mtime: int, owner: str, *names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = len(name), mtime, owner
            tar.addfile(member, io.BytesIO(name.encode()))
    return packed.getvalue()


def test_an_sdist_has_nothing_of_the_machine_that_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released(monkeypatch, None)
    one = dist.reproducible(archive(1, "ann", "p/a", "p/b"))
    other = dist.reproducible(archive(2, "bob", "p/b", "p/a"))
    assert one == other
    with tarfile.open(fileobj=io.BytesIO(one)) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        assert {name: file.read() for name, file in contents.items() if file} == {
            "p/a": b"p/a",
            "p/b": b"p/b",
        }


def test_packages_are_made_for_each_released_debian_of_the_lab() -> None:
    suites = {release.suite for release in image.RELEASES.values()}
    assert set(deb.SUITES) == suites - set(image.ROLLING)
    assert set(deb.SUITES) == set(changelog.DEBIAN)
    assert f"SUITES ?= {' '.join(deb.SUITES)}\n" in (PROJECT / "Makefile").read_text()


def test_each_python_of_the_lab_is_named_in_the_metadata() -> None:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Programming Language :: Python :: {ours}" in TOLD["project"]["classifiers"]


def test_the_packages_depend_on_what_the_metadata_names() -> None:
    (required,) = [word for word in TOLD["project"]["dependencies"] if word.startswith("qemu.qmp")]
    least, below = re.findall(r"[\d.]+$|[\d.]+(?=,)", required)
    override = (sources.DEBIAN / "py3dist-overrides").read_text().split(maxsplit=1)[1]
    assert override == f"python3-qemu-qmp (>= {least}), python3-qemu-qmp (<< {below})\n"
    assert not older(sources.QMP_VERSION, least)
    assert older(sources.QMP_VERSION, below)
    assert TOLD["project"]["optional-dependencies"] == {"cli": ["tqdm>=4.60"]}
    assert "python3-tqdm" in (sources.DEBIAN / "control").read_text()


def test_the_chroot_has_what_the_packages_are_built_with() -> None:
    packages = deb.build_chroot("bookworm").packages
    assert {"debhelper", "dh-python", "libxen-dev", "python3-setuptools-scm"} <= set(packages)
    assert not [name for name in packages if "qemu" in name or not re.fullmatch(r"[\w.+-]+", name)]


@pytest.mark.parametrize(
    ("depends", "tied"),
    [
        ("libc6 (>= 2.34), libxenmisc4.17 (>= 4.17.7+13), libxenstore4 (>= 4.16.0)", True),
        ("libxenmisc4.20 (>= 4.20.4)", False),
        ("libxenmisc4.17, libxenmisc4.20", False),
        ("libc6 (>= 2.34), libxenstore4 (>= 4.16.0)", False),
    ],
)
def test_the_library_depends_on_the_libxl_that_it_was_built_for(
    tmp_path: Path, depends: str, tied: bool
) -> None:
    system, tree = tmp_path / "system", tmp_path / "tree"
    for directory in (info := system / "var/lib/dpkg/info", control := tree / "DEBIAN"):
        directory.mkdir(parents=True)
    (info / "libxenmisc4.17:amd64.list").write_text("/.\n/usr/lib/libxenlight.so.4.17\n")
    (info / "libxenstore4:amd64.list").write_text("/.\n/usr/lib/libxenstore.so.4\n")
    (info / "libxen-dev:amd64.list").write_text("/.\n/usr/lib/libxenlight.so\n")
    control.chmod(0o755)
    (control / "control").write_text(
        "Package: python3-pyxlsnap\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b.example>\n"
        f"Depends: {depends}\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path], check=True, capture_output=True)
    with nullcontext() if tied else pytest.raises(deb.Broken, match=r"libxenmisc4\.17"):
        deb.check_abi(tmp_path, system)


def test_one_maintainer_is_named_everywhere() -> None:
    for directory in (sources.DEBIAN, sources.QMP_DEBIAN):
        assert f"Maintainer: {changelog.MAINTAINER}\n" in (directory / "control").read_text()
    (told,) = TOLD["project"]["maintainers"]
    assert f"{told['name']} <{told['email']}>" == changelog.MAINTAINER


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_dash_reads(script: Path) -> None:
    run = subprocess.run(["sh", "-n", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_scripts_name_the_places_of_the_library() -> None:
    script = (sources.DEBIAN / "python3-pyxlsnap.postrm").read_text()
    assert f"journals={paths.JOURNALS}\n" in script
    assert f"snapshots={paths.SNAPSHOTS}\n" in script
    assert f"rm -f {paths.XEN_LOGS}/pyxlsnap-*.log " in script
    assert fnmatch(Journal("some-uuid").path.name, "*.journal")
    assert fnmatch(CloneFile("some-uuid").path.name, "*.clone")
    rotated = (sources.DEBIAN / "python3-pyxlsnap.logrotate").read_text()
    assert f"{paths.XEN_LOGS}/pyxlsnap-*.log {{" in rotated


@pytest.fixture
def purge(tmp_path: Path) -> Callable[[], str]:
    """Runs the script of a purge on directories below ``tmp_path``; returns what it says."""

    def run() -> str:
        text = (sources.DEBIAN / "python3-pyxlsnap.postrm").read_text()
        for place in (paths.JOURNALS, paths.SNAPSHOTS, paths.XEN_LOGS):
            text = text.replace(str(place), str(tmp_path / place.name))
        done = subprocess.run(
            ["sh", "-s", "purge"], input=text, check=True, capture_output=True, text=True
        )
        assert done.stdout == ""
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("file", "about"),
    [("u.journal", "unfinished operations"), ("u.clone", "clones and their disks")],
)
def test_a_purge_leaves_what_only_we_know(
    tmp_path: Path, purge: Callable[[], str], file: str, about: str
) -> None:
    kept = tmp_path / paths.JOURNALS.name / file
    kept.parent.mkdir()
    kept.write_text("precious")
    assert purge() == f"pyxlsnap: left {kept.parent}, which describes {about}\n"
    assert kept.read_text() == "precious"


def test_a_purge_removes_our_logs_and_an_empty_directory(
    tmp_path: Path, purge: Callable[[], str]
) -> None:
    (tmp_path / paths.JOURNALS.name).mkdir()
    logs = tmp_path / paths.XEN_LOGS.name
    logs.mkdir()
    for name in ("pyxlsnap-web1.log", "pyxlsnap-web1.log.2.gz", "xl-web1.log"):
        (logs / name).touch()
    (tmp_path / paths.SNAPSHOTS.name).mkdir()
    assert purge() == f"pyxlsnap: left the snapshots in {tmp_path / paths.SNAPSHOTS.name}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshots", "xen"]
    assert [path.name for path in logs.iterdir()] == ["xl-web1.log"]
    assert purge() != ""  # a second purge ends well, too


@pytest.mark.parametrize("name", ["pyxlsnap.prerm", "python3-pyxlsnap.prerm"])
def test_what_a_removal_asks_can_be_asked(name: str) -> None:
    (ask,) = re.findall(r"ask='(.*)'", (sources.DEBIAN / name).read_text())
    run = subprocess.run([sys.executable, "-c", ask], cwd=PROJECT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_package_has_the_unit_and_does_not_start_it() -> None:
    rules = (sources.DEBIAN / "rules").read_text()
    assert f"UNIT = {UNIT.stem}\n" in rules
    assert "--no-start --no-stop-on-upgrade" in rules
    unit = configparser.ConfigParser(strict=False)
    unit.read(UNIT)
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def dry_make(*words: str) -> list[str]:
    """The commands that make would run; the settings of a make that runs this test do not count."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "SUITES")}
    run = subprocess.run(
        ["make", "-n", *words], cwd=PROJECT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_release_runs_everything_on_each_xen_of_the_lab() -> None:
    lines = dry_make("release", "MAKE=echo made")  # (make runs these commands also with -n)
    on_each = [f"made {what} XEN={xen}" for xen in image.RELEASES for what in ("lab", "soak")]
    assert [line for line in lines if line.startswith("made ")] == [
        *("made check", "made html", "made unit"),
        *on_each,
        *("made fuzz", "made deb"),
    ]
    assert lines[-1].endswith(" -m release rest")


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_twine_checks_before_the_packages_are_built() -> None:
    verbs = [line.partition(" -m release ")[2] for line in dry_make("deb")]
    assert [verb for verb in verbs if verb] == ["dist", f"deb {' '.join(deb.SUITES)}"]


def test_what_is_left_to_a_person_begins_with_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    released(monkeypatch, None)
    first = release.rest()[1]
    assert f"## {VERSION} - YYYY-MM-DD" in first
    released(monkeypatch, date(2026, 12, 1))
    assert first not in release.rest()
    assert any(f"dist/pyxlsnap-{VERSION}.tar.gz" in line for line in release.rest())


def test_what_the_tests_have_written_is_committed_before_the_tag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "uncommitted", lambda: ["README.md"])
    steps = release.rest()
    (commit,) = [n for n, line in enumerate(steps) if "has written (README.md)" in line]
    assert commit < next(n for n, line in enumerate(steps) if "push the tag" in line)
    monkeypatch.setattr(release, "uncommitted", list)
    assert not any("has written" in line for line in release.rest())


def test_each_release_of_the_lab_that_the_readme_lacks_is_left_to_a_person(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released(monkeypatch, date(2026, 12, 1))
    seen = support.load()["4.17"]
    monkeypatch.setattr(support, "load", lambda: {"4.17": seen, "4.20": {}})
    asked = [line for line in release.rest() if "README's table of what works lacks" in line]
    assert [(line.split("`")[1], line.rpartition(" lacks results of ")[2]) for line in asked] == [
        ("make soak XEN=4.20", "Debian 13"),
        ("make soak XEN=unstable", "Debian unstable"),
    ]
    monkeypatch.setattr(support, "load", lambda: dict.fromkeys(image.RELEASES, seen))
    assert not any("README's table of what works lacks" in line for line in release.rest())
