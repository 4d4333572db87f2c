"""Every feature of qcow2: a snapshot is refused before it is tried, or a revert to it works."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.errors import refusal
from tests.unit.support.qemu import DOMID, SIZE, Qemu, content, qemu_img, tags, write

_INCOMPATIBLE = 79  # offset in the header; 2 is "corrupt"

# By name: the options of qemu-img create, and what the refusal of an internal snapshot says.
FEATURES: dict[str, tuple[str, str]] = {
    "plain": ("", ""),
    "v2": ("compat=0.10", ""),
    "cluster": ("cluster_size=512", ""),
    "subclusters": ("extended_l2=on", ""),
    "zstd": ("compression_type=zstd", ""),
    "lazy": ("lazy_refcounts=on", ""),
    "allocated": ("preallocation=full", ""),
    "1-bit": ("refcount_bits=1", "counts references in 1 bit, which is enough for 0 snapshots"),
    "2-bit": ("refcount_bits=2", "counts references in 2 bits, which is enough for 1 snapshot,"),
    "4-bit": ("refcount_bits=4", ""),
    "64-bit": ("refcount_bits=64", ""),
    "data": ("data_file={}.data", "keeps its data in another file"),
    "raw-data": ("data_file={}.data,data_file_raw=on", "keeps its data in another file"),
    "bitmap": ("bitmap", "has bitmaps (b0)"),
    "idle-bitmap": ("bitmap --disable", "has bitmaps (b0)"),
}


class Case:
    """One disk of a QEMU, with a feature, and a directory for frozen files."""

    def __init__(self, qemu: Qemu, disk: Disk, directory: Path) -> None:
        self.qemu, self.disk, self.directory = qemu, disk, directory
        self.open: list[Qcow2] = []

    def has(self, options: str) -> "Case":
        """Make the disk anew; it begins with 1."""
        self.qemu.close()
        target = Path(self.disk.target)
        target.unlink()
        named = options.format(target.name)
        bitmap = options.startswith("bitmap")
        more = ["-o", named] if options and not bitmap else []
        qemu_img("create", "-q", "-f", "qcow2", *more, str(target), str(SIZE))
        write(self.disk, 1)
        if bitmap:
            qemu_img("bitmap", "--add", *options.split()[1:], str(target), "b0")
        self.qemu.start()
        return self

    def strategy(
        self,
        name: str = "snap",
        frozen: Path | None = None,
        finishes: Mapping[str, str] | None = None,
    ) -> Qcow2:
        path, form = (str(frozen), "qcow2") if frozen else ("", "")
        request = DiskRequest(self.disk.vdev, path, form)
        self.open.append(Qcow2([(self.disk, request)], DiskTask(name, finishes=finishes)))
        return self.open[-1]

    def goes_back(self, frozen: Path | None = None) -> None:
        """Take a snapshot, write on, revert to the snapshot, and boot again."""
        taking = self.strategy(frozen=frozen)
        taking.check_create(DOMID)
        taking.prepare()
        taking.create()
        taking.finish_create()
        taking.close()
        self.qemu.write("xvda", 2)
        self.qemu.close()
        assert content(self.disk) == 2
        reverting = self.strategy(frozen=frozen)
        reverting.check_revert()
        reverting.revert()
        assert content(self.disk) == 1
        self.qemu.start()
        self.qemu.has_opened()
        assert reverting.finish_revert(DOMID) == []


@pytest.fixture
def case(
    qemu: Qemu, disks: list[Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    monkeypatch.chdir(tmp_path)  # where qemu-img makes a data file
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = Case(qemu, disks[0], elsewhere)
    yield found
    for strategy in found.open:
        strategy.close()


@pytest.mark.parametrize("feature", FEATURES)
def test_an_internal_snapshot_is_refused_or_comes_back(case: Case, feature: str) -> None:
    options, says = FEATURES[feature]
    case.has(options)
    if not says:
        case.goes_back()
        return
    said = refusal(lambda: case.strategy().check_create(DOMID))
    assert said.startswith(f"xvda: {case.disk.target} {says}")


@pytest.mark.parametrize("feature", FEATURES)
def test_an_external_snapshot_beside_the_disk_comes_back(case: Case, feature: str) -> None:
    case.has(FEATURES[feature][0]).goes_back(Path(case.disk.target).with_suffix(".frozen"))


@pytest.mark.parametrize("feature", ["plain", "data", "raw-data"])
def test_an_external_snapshot_elsewhere_comes_back(case: Case, feature: str) -> None:
    """QEMU looks for a data file from its working directory, wherever the image is."""
    case.has(FEATURES[feature][0]).goes_back(case.directory / "a")


class TestReferences:
    """4 bits count to 15; a revert needs two references beside those of the snapshots."""

    def fill(self, case: Case, count: int) -> None:
        case.has("refcount_bits=4").qemu.close()
        for number in range(count):
            qemu_img("snapshot", "-c", f"s{number}", case.disk.target)
        case.qemu.start()

    def test_the_last_that_fits_comes_back(self, case: Case) -> None:
        self.fill(case, 11)
        case.goes_back()

    def test_one_more_is_refused(self, case: Case) -> None:
        self.fill(case, 12)
        said = refusal(lambda: case.strategy().check_create(DOMID))
        assert "counts references in 4 bits, which is enough for 13 snapshots, and needs 14" in said

    def test_snapshots_that_came_since_are_found_before_the_destroy(self, case: Case) -> None:
        self.fill(case, 13)
        said = refusal(lambda: case.strategy("s1").check_revert())
        assert "which is enough for 13 snapshots, and needs 14" in said

    def test_the_one_that_an_interrupted_revert_kept_counts_once(self, case: Case) -> None:
        self.fill(case, 12)
        case.qemu.close()
        killed = case.strategy("s1")
        killed.check_revert()
        qemu_img("snapshot", "-c", "s1.pre-revert", case.disk.target)
        reverting = case.strategy("s1", finishes=killed.state())
        reverting.check_revert()
        reverting.revert()
        assert len(tags(case.disk)) == 13


class TestFoundBeforeARevert:
    """What came after the snapshot, and with which qemu-img cannot apply the snapshot."""

    @pytest.fixture
    def taken(self, case: Case) -> Case:
        case.has("").qemu.close()
        qemu_img("snapshot", "-c", "snap", case.disk.target)
        case.strategy().check_revert()
        return case

    def test_a_bitmap(self, taken: Case) -> None:
        qemu_img("bitmap", "--add", taken.disk.target, "backup")
        said = refusal(taken.strategy().check_revert)
        assert "has bitmaps (backup)" in said
        qemu_img("bitmap", "--remove", taken.disk.target, "backup")
        taken.strategy().check_revert()

    def test_damage(self, taken: Case) -> None:
        with open(taken.disk.target, "r+b") as image:
            image.seek(_INCOMPATIBLE)
            image.write(b"\2")
        assert "is marked as corrupt" in refusal(taken.strategy().check_revert)
