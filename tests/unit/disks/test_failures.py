"""What the system says of a disk's files, as the error of that disk."""

import os
from pathlib import Path

import pytest

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.model import Disk
from tests.unit.support.system_calls import full_disk

DISK = Disk("xvda", "/disk.raw", "raw")


def test_errors_name_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"^xvda: /some: No space") as caught,
        os_errors(DISK, Path("/some")),
    ):
        raise full_disk()
    assert caught.value.vdev == "xvda"
    with pytest.raises(DiskError, match=r"^xvda: .*/none: No such"), os_errors(DISK, Path("/some")):
        (tmp_path / "none").stat()
    with (
        pytest.raises(Refused, match=r"^xvda: /some: "),
        os_errors(DISK, Path("/some"), refuse=True),
    ):
        os.fsync(1 << 20)
