"""A read-only block device that another domain may write to: Xen gives it to no guest then."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks import read_only
from pyxlsnap.disks.read_only import refuse_written
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped

DOMID, OTHER = 7, 9


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_only, "_GOES_S", 0.1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    with looped(path) as device:
        yield Disk("xvdb", str(device), "raw", "phy", readwrite=False)


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "SYS", tmp_path / "sys")
    found = tmp_path / "sys/bus/xen-backend/devices"
    found.mkdir(parents=True)
    monkeypatch.setattr(paths, "XEN_SCRIPTS", tmp_path)
    (tmp_path / "block").write_text("check_sharing()\n")
    return found


def serve(backends: Path, disk: Disk, domid: int, mode: str) -> Path:
    number = Path(disk.target).stat().st_rdev
    backend = backends / f"vbd-{domid}-51728"
    backend.mkdir()
    (backend / "physical_device").write_text(f"{os.major(number):x}:{os.minor(number):x}\n")
    (backend / "mode").write_text(f"{mode}\n")
    return backend


def test_one_that_another_domain_may_write_to_is_refused(backends: Path, disk: Disk) -> None:
    backend = serve(backends, disk, OTHER, "w")
    for domid in (DOMID, None):
        for asked in (disk, replace(disk, backend="unknown")):  # libxl's JSON names no backend
            with pytest.raises(Refused, match=f"^xvdb: domain {OTHER} may write to {disk.target}"):
                refuse_written([asked], domid)
    refuse_written([disk], OTHER)  # it is the one that is destroyed
    shutil.rmtree(backend)
    refuse_written([disk], DOMID)


@pytest.mark.parametrize("mode", ["r", "w!", "(null)"])
def test_one_that_the_script_would_give_to_several(backends: Path, disk: Disk, mode: str) -> None:
    serve(backends, disk, OTHER, mode)
    refuse_written([disk], DOMID)


def test_another_script_in_the_place_of_xens(backends: Path, disk: Disk, tmp_path: Path) -> None:
    serve(backends, disk, OTHER, "w")
    (tmp_path / "block").write_text("exit 0\n")
    refuse_written([disk], DOMID)
    (tmp_path / "block").unlink()
    refuse_written([disk], DOMID)


def test_a_backend_of_another_device_or_without_one(backends: Path, disk: Disk) -> None:
    serve(backends, disk, OTHER, "w").joinpath("physical_device").write_text("1:2\n")
    (backends / "vbd-10-51728").mkdir()
    refuse_written([disk], DOMID)


def test_only_disks_for_which_that_script_looks(backends: Path, disk: Disk, tmp_path: Path) -> None:
    serve(backends, disk, OTHER, "w")
    for other in (
        replace(disk, readwrite=True),  # nobody else may have it: see checks.refuse_shared
        replace(disk, backend="qdisk"),
        replace(disk, script="block-iscsi"),
        replace(disk, backend_domain="driver"),
        replace(disk, target=str(tmp_path / "disk.raw")),
        replace(disk, target=str(tmp_path / "gone")),
        replace(disk, target=""),
    ):
        refuse_written([other], DOMID)
