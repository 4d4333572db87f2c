"""The sdist and the wheel."""

import gzip
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from release.changelog import moment
from tests.project import copy_of_the_project


def sdist(dest: Path) -> Path:
    """Build the sdist into a directory: the same bytes for the same files and the same day.

    :raises CalledProcessError: the build failed; stderr says why.
    """
    with tempfile.TemporaryDirectory() as directory:
        made = _build("sdist", copy_of_the_project(Path(directory) / "copy"), dest)
    made.write_bytes(reproducible(made.read_bytes()))
    return made


def wheel(source: Path, dest: Path) -> Path:
    """Build the wheel from an sdist into a directory.

    :raises CalledProcessError: the build failed; stderr says why.
    """
    with tempfile.TemporaryDirectory() as directory:
        shutil.unpack_archive(source, directory)
        (unpacked,) = Path(directory).iterdir()
        return _build("wheel", unpacked, dest)


def _build(kind: str, source: Path, dest: Path) -> Path:
    """Call the build backend; its notices are shown only if it fails."""
    command = ["-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(dest), str(source)]
    run = subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if run.returncode:
        print(run.stdout, file=sys.stderr)
        run.check_returncode()
    (made,) = dest.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def reproducible(archive: bytes) -> bytes:
    """The same ``.tar.gz`` for the same files: no dates, owners and order of this machine."""
    at = int(moment().timestamp())
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=at, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            content = old.extractfile(member)
            member.mtime, member.uid, member.gid = at, 0, 0
            member.uname = member.gname = "root"
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, content)
    return packed.getvalue()


def check(*files: Path) -> None:
    """Let twine check what PyPI will show.

    :raises CalledProcessError: twine found something; it printed what.
    """
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
