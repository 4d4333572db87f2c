"""Which strategies take disk snapshots at the same time, beside the memory of the guest."""

from typing import Any

import pytest

from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.lvm.thick import LvmThick
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.registry import lanes
from tests.unit.support.strategy import FakeBeside, FakeStrategy


def of(kind: type[Any], *vdevs: str) -> Any:
    """A strategy that needs no disks."""
    found = object.__new__(kind)
    found.vdevs = vdevs
    return found


class Another(FakeBeside):
    """Of a third package."""

    kind = "another"


class TestLanes:
    def test_kinds_of_storage_of_ours_work_at_the_same_time(self) -> None:
        raw, block = of(RawFile, "xvda"), of(BlockCopy, "xvdb")
        assert lanes([raw, block]) == ((raw,), (block,))

    def test_lvm_does_one_after_the_other(self) -> None:
        """Thin and thick volumes may be in one group, which LVM locks."""
        thin, thick = of(LvmThin, "xvda"), of(LvmThick, "xvdb")
        assert lanes([thin, thick]) == ((thin, thick),)

    def test_those_of_other_packages_are_one_group_and_apart_from_ours(self) -> None:
        theirs, raw, others = of(FakeBeside, "xvda"), of(RawFile, "xvdb"), of(Another, "xvdc")
        assert lanes([theirs, raw, others]) == ((theirs, others), (raw,))

    @pytest.mark.parametrize("strategy", [of(FakeStrategy, "xvda"), of(FakeBeside)])
    def test_a_strategy_that_cannot_or_has_nothing_to_take_is_in_none(self, strategy: Any) -> None:
        """Its snapshots follow the memory."""
        assert lanes([strategy]) == ()
