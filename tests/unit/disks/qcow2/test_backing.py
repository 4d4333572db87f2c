"""Chains of images with files missing, at any depth and by any name."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap.disks.qcow2.backing import chain_files, refuse_broken
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.qemu import qemu_img


def chain(directory: Path, relative: list[bool]) -> list[Path]:
    """A chain, the lowest file first; each but that names the one below."""
    paths = [directory / f"d{n}" / f"image {n}.qcow2" for n in range(len(relative) + 1)]
    for n, path in enumerate(paths):
        path.parent.mkdir()
        below = []
        if n:
            name = os.path.relpath(paths[n - 1], path.parent) if relative[n - 1] else paths[n - 1]
            below = ["-b", str(name), "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", *below, str(path), *(["1M"] * (n == 0)))
    return paths


@settings(max_examples=12)
@given(relative=st.lists(st.booleans(), min_size=1, max_size=4), data=st.data())
def test_the_file_that_is_missing_is_named(relative: list[bool], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        paths = chain(Path(name), relative)
        top = Disk("xvda", str(paths[-1]), "qcow2")
        assert chain_files(paths[-1]) == paths[::-1]
        refuse_broken(top, paths[-1])
        gone = data.draw(st.integers(0, len(paths) - 2))
        paths[gone].unlink()
        assert chain_files(paths[-1]) == paths[gone:][::-1]
        with pytest.raises(Refused) as caught:
            refuse_broken(top, paths[-1])
        assert f"stands on {paths[gone]}, and there is no such file" in str(caught.value)


def test_a_link_to_an_image_leads_to_what_it_stands_on(tmp_path: Path) -> None:
    paths = chain(tmp_path, [True])
    (tmp_path / "link").symlink_to(paths[1])
    assert chain_files(tmp_path / "link") == [tmp_path / "link", paths[0]]


def test_a_chain_that_bites_its_tail_ends(tmp_path: Path) -> None:
    paths = chain(tmp_path, [False])
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(paths[1]), "-F", "qcow2", str(paths[0]))
    assert chain_files(paths[1]) == [paths[1], paths[0]]
    with pytest.raises(Refused):
        refuse_broken(Disk("xvda", str(paths[1]), "qcow2"), paths[1])


def test_a_name_that_only_qemu_understands_ends_the_list(tmp_path: Path) -> None:
    (image,) = chain(tmp_path, [])
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "nbd://host/x", "-F", "raw", str(image))
    assert chain_files(image) == [image]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    paths = chain(tmp_path, [False, False])
    paths[0].write_bytes(b"no image" * 1000)
    with pytest.raises(Refused, match=r"xvda: qemu-img info failed: .*image 0\.qcow2"):
        refuse_broken(Disk("xvda", str(paths[2]), "qcow2"), paths[2])
