"""The file under a loop device: real ones."""

from pathlib import Path

from pyxlsnap.linux.loop import loop_file
from tests.unit.support.loop_files import looped


def test_the_file_that_it_has_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    with looped(file) as device:
        found = file.stat()
        assert loop_file(device) == (found.st_dev, found.st_ino)
        with looped(device) as upper:
            assert loop_file(upper) == (device.stat().st_rdev, 0)
    assert loop_file(tmp_path / "none") is None
    assert loop_file(file) is None
    assert loop_file(Path("/dev/null")) is None
