"""The names of LVM volumes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.disks.lvm import names
from pyxlsnap.errors import Refused
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest
from tests.unit.support.lvm import VG, FakeLvm, strategy


class TestNames:
    names = st.from_regex(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,12}", fullmatch=True)

    @given(names, names)
    def test_the_kernels_name_leads_back_to_the_volume(self, vg: str, lv: str) -> None:
        mapped = names.mapped_name(vg, lv)
        assert names._split(mapped) == (vg, lv)
        assert names._split(f"{mapped}-real") is None  # a part of it

    @given(names, names)
    def test_both_forms_of_a_path_name_the_volume(self, vg: str, lv: str) -> None:
        here = names._by_form(Path("/dev/mapper") / names.mapped_name(vg, lv))
        assert here == (vg, lv)
        if vg not in (*names._NOT_GROUPS, ".", "..") and lv not in (".", ".."):
            assert names._by_form(Path("/dev") / vg / lv) == (vg, lv)

    @given(st.text("ab0@:+_.-", min_size=1, max_size=20), names)
    def test_a_name_is_refused_or_fits_lvm(self, name: str, lv: str) -> None:
        disk = Disk("xvda", f"/dev/vg/{lv}", "raw")
        try:
            found = names.place(disk, DiskRequest("xvda"), name)
        except Refused:
            return
        for made in (found.snapshot, found.kept, found.fresh):
            assert names._NAME.fullmatch(made)
            assert len(names.mapped_name("vg", made)) <= 122
        assert found.kept.endswith(KEPT_SUFFIX)
        assert found.fresh.endswith(KEPT_SUFFIX)
        assert len({found.lv, found.snapshot, found.kept, found.fresh}) == 4

    @pytest.mark.parametrize("bad", ["a@b", "a:b"])
    def test_what_lvm_does_not_allow_is_refused_in_one_line(self, bad: str, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match=rf"'{bad}': LVM allows no '{bad[1]}'.*xvda.*choose"):
            strategy(fake, "thin", bad)

    def test_a_name_that_gets_too_long_is_refused(self, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match=r"xvda: .* shorter name"):
            strategy(fake, "thin", "x" * 100)

    def test_a_name_that_lvm_reserves_is_refused(self, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match="reserves"):
            strategy(fake, "thin", "my_tmeta")
        strategy(fake, "thin", "my_volume")

    def test_an_external_name_is_taken_in_the_same_group(self, fake: FakeLvm) -> None:
        one = strategy(fake, "thin", lvs="a", to=str(fake.path("mine")), form="raw")
        one.check_create(1)
        one.create()
        assert fake.lvs["mine"].origin == "thin-a"

    @pytest.mark.parametrize(
        ("to", "form", "words"),
        [
            ("/dev/other/name", "", "cannot be a snapshot of a volume of vg-0.*',,xvda'"),
            ("/srv/file.img", "raw", "cannot be a snapshot of a volume of vg-0"),
            ("DEV/thin-a", "", "cannot be a snapshot"),
            ("DEV/a b", "", "cannot be a snapshot"),
            ("DEV/x.pre-revert", "", "deleted after a revert"),
            ("DEV/snapshot1", "", "reserves"),
            ("DEV/name", "qcow2", "raw, not qcow2"),
        ],
    )
    def test_other_external_requests_are_refused(
        self, fake: FakeLvm, to: str, form: str, words: str
    ) -> None:
        with pytest.raises(Refused, match=words):
            strategy(fake, "thin", lvs="a", to=to.replace("DEV", f"{fake.dev}/{VG}"), form=form)
