"""Which strategies work at the same time: beside the memory of the guest, and in a revert."""

import threading
from typing import Any

import pytest

from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.lvm.thick import LvmThick
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.registry import lanes, revert_all
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


class TestRevert:
    def test_kinds_of_storage_of_ours_are_put_back_at_the_same_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = threading.Barrier(2, timeout=20)
        for kind in (RawFile, BlockCopy):
            monkeypatch.setattr(kind, "revert", lambda _: both.wait())
        revert_all([of(RawFile, "xvda"), of(BlockCopy, "xvdb")])

    def test_those_of_other_packages_are_put_back_before_ours_one_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[tuple[str, threading.Thread]] = []

        def revert(strategy: Any) -> None:
            done.append((strategy.vdevs[0], threading.current_thread()))

        for kind in (FakeStrategy, RawFile):
            monkeypatch.setattr(kind, "revert", revert)
        revert_all([of(RawFile, "xvda"), of(FakeStrategy, "xvdb"), of(Another, "xvdc")])
        assert [vdev for vdev, _ in done] == ["xvdb", "xvdc", "xvda"]
        assert {thread for _, thread in done[:2]} == {threading.current_thread()}
