"""The journal of a domain is whole or absent, and one of another release is left alone."""

import json
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.errors import AlreadyExists, Refused
from pyxlsnap.journal import (
    VERSION,
    CloneEntry,
    CreateEntry,
    DeleteEntry,
    Entry,
    Journal,
    RevertEntry,
)
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.request import CloneRequest, CreateRequest, DeleteRequest, RevertRequest
from pyxlsnap.results import CloneDisk
from tests.unit.support.entries import clone_entry, create_entry, delete_entry, revert_entry
from tests.unit.support.values import UUID

_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=30)
_TEXTS = st.lists(_TEXT, max_size=3).map(tuple)
_DISKS = (DiskRequest("a"), DiskRequest("b", "/p", "qcow2"))
_CONFIGS = st.builds(
    SnapshotConfig,
    name=st.none() | _TEXT,
    memory_path=st.none() | _TEXT,
    disks=st.sampled_from([None, (), _DISKS]),
)
_COMMON: dict[str, st.SearchStrategy[Any]] = {
    "uuid": st.just(UUID),
    "domain": _TEXT,
    "name": _TEXT,
    "memory_path": _TEXT,
    "cfgfile": _TEXT,
    "disks": st.just(_DISKS),
    "devices": st.tuples(*[st.builds(Disk, _TEXT, _TEXT, _TEXT)] * 2),
    "kinds": st.dictionaries(_TEXT, _TEXT, max_size=3),
    "paused": st.booleans(),
    "monitor": st.booleans(),
    "started": st.floats(0, 1e11),
}
_CREATES = st.builds(
    CreateEntry,
    **_COMMON,
    request=st.builds(
        CreateRequest,
        domain=_TEXT,
        config=_CONFIGS,
        live=st.booleans(),
        max_downtime=st.none() | st.floats(0, 1e6),
        max_rate=st.none() | st.floats(1, 1e6),
    ),
    domid=st.integers(1, 32767),
    temporary=_TEXTS,
    directories=_TEXTS,
    disk_state=st.dictionaries(_TEXT, _TEXT, max_size=3),
)
_REVERTS = st.builds(
    RevertEntry,
    **_COMMON,
    request=st.builds(
        RevertRequest,
        domain=_TEXT,
        cfgfile=_TEXT,
        config=st.none() | _CONFIGS,
        running=st.booleans(),
        force=st.booleans(),
    ),
    domid=st.none() | st.integers(1, 32767),
    boot=_TEXT,
    destroy_begun=st.booleans(),
    restored_domid=st.none() | st.integers(1, 32767),
    replaced_uuid=_TEXT,
    user_informed=st.booleans(),
    present_cfgfile=_TEXT,
)

_DELETES = st.builds(
    DeleteEntry,
    **_COMMON,
    request=st.builds(DeleteRequest, cfgfile=_TEXT, config=st.none() | _CONFIGS),
    begun=st.booleans(),
)

_CLONES = st.builds(
    CloneEntry,
    **_COMMON,
    request=st.builds(
        CloneRequest,
        domain=_TEXT,
        cfgfile=_TEXT,
        disks=st.sampled_from([(), _DISKS]),
        bridge=_TEXT,
        edited=_TEXT,
        replace=st.booleans(),
    ),
    origin=_TEXT,
    created=st.none() | st.integers(0, 1 << 40),
    mounts=st.dictionaries(_TEXT, _TEXT, max_size=3),
    boot=_TEXT,
    children=st.lists(st.builds(CloneDisk, *[_TEXT] * 6), max_size=2).map(tuple),
    disk_state=st.dictionaries(_TEXT, _TEXT, max_size=3),
    domid=st.none() | st.integers(1, 32767),
    changes=_TEXTS,
    replace_begun=st.booleans(),
    restored_domid=st.none() | st.integers(1, 32767),
    deleting=st.booleans(),
)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(paths, "JOURNALS", tmp_path / "journals")
    return Journal(UUID)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(entry=_CREATES | _REVERTS | _DELETES | _CLONES)
def test_what_is_written_is_read(journal: Journal, entry: Entry) -> None:
    journal.write(entry)
    assert Journal(UUID).read() == entry
    journal.clear()
    assert journal.read() is None
    assert not list(journal.path.parent.iterdir())


def test_what_is_left_of_an_earlier_clone_is_read(journal: Journal) -> None:
    entry = clone_entry(leftovers=(clone_entry(disk_state={"xvda child": "old"}),))
    journal.write(entry)
    assert journal.read() == entry


def test_is_private(journal: Journal) -> None:
    journal.write(create_entry())
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_one_that_is_there_is_not_overwritten(journal: Journal) -> None:
    journal.write(create_entry())
    with pytest.raises(AlreadyExists):
        journal.write(revert_entry())
    assert journal.read() == create_entry()
    assert list(journal.path.parent.iterdir()) == [journal.path]


def test_clearing_where_there_is_none_is_fine(journal: Journal) -> None:
    journal.clear()  # there is no directory, either
    journal.path.parent.mkdir()
    journal.clear()


def damaged(**changes: Any) -> bytes:
    """An entry as it is written, but for some values; ``None`` leaves one out."""
    values = {"version": VERSION, "operation": "create", **asdict(create_entry())}
    values |= changes
    return json.dumps({k: v for k, v in values.items() if v is not None}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"5",
        b"null",
        b"[]",
        b'"x"',
        b"[" * 100_000,
        damaged(operation="recover"),
        damaged(operation=None),
        damaged(disks=5),
        damaged(disks=[5]),
        damaged(disks=[]),  # as many as there are devices
        damaged(disks="xvda"),
        damaged(devices=None),
        damaged(uuid=7),
        damaged(domid="7"),
        damaged(domid=True),
        damaged(paused=1),
        damaged(kinds=[]),
        damaged(disk_state={"xvda overlay": 5}),
        damaged(temporary=[["/t"]]),
        damaged(unknown=1),
        damaged(destroy_begun=True),  # of a revert only
        damaged(request=5),
        damaged(request={"domain": "vm1", "unknown": 1}),
        damaged(version="1"),
        damaged(version=[]),
    ],
)
def test_damage_is_refused_and_kept(journal: Journal, data: bytes) -> None:
    journal.path.parent.mkdir()
    journal.path.write_bytes(data)
    with pytest.raises(Refused, match="cannot be read") as caught:
        journal.read()
    assert str(journal.path) in str(caught.value)
    assert journal.path.read_bytes() == data


@pytest.mark.parametrize(
    ("version", "says"),
    [(VERSION + 1, "a newer release"), (99, "a newer release"), (None, "an older release")],
)
def test_an_entry_of_another_release_is_left_alone(
    journal: Journal, version: int | None, says: str
) -> None:
    data = damaged(version=version, something_new=1)
    journal.path.parent.mkdir()
    journal.path.write_bytes(data)
    with pytest.raises(Refused) as caught:
        journal.read()
    for part in (says, str(journal.path), "was left as it is", f"snapshot-recover {UUID}"):
        assert part in str(caught.value)
    assert journal.path.read_bytes() == data


def test_a_create_is_recovered_before_anything_else(journal: Journal) -> None:
    journal.write(create_entry())
    for refuse in (journal.refuse_unfinished, journal.unfinished_revert):
        with pytest.raises(Refused, match=f"snapshot-recover {UUID}"):
            refuse()


def test_a_revert_is_finished_by_another_one(journal: Journal) -> None:
    journal.write(revert_entry(destroy_begun=True))
    assert journal.unfinished_revert() == revert_entry(destroy_begun=True)
    with pytest.raises(Refused, match=f"snapshot-recover {UUID}"):
        journal.refuse_unfinished()


def test_a_delete_is_finished_by_another_one_of_the_same_cfgfile(journal: Journal) -> None:
    journal.write(delete_entry(begun=True))
    assert journal.unfinished_delete("/m.cfg") == delete_entry(begun=True)
    for refuse in (
        journal.refuse_unfinished,
        journal.unfinished_revert,
        lambda: journal.unfinished_delete("/other.cfg"),
    ):
        with pytest.raises(Refused, match=f"was killed or failed: .*snapshot-recover {UUID}"):
            refuse()


def test_without_a_journal_nothing_is_in_the_way(journal: Journal) -> None:
    journal.refuse_unfinished()
    assert journal.unfinished_revert() is None


@pytest.mark.parametrize(
    "entry",
    [
        create_entry(disk_state={"xvda size": 1024}),
        create_entry(disk_state={"xvda size": None}),
        create_entry(kinds={"xvda": None}),
        create_entry(request=CreateRequest(domain="vm1", live=1)),  # type: ignore[arg-type]
        revert_entry(kinds={"xvda": 5}),
        revert_entry(paused=None),
    ],
)
def test_what_a_recovery_could_not_read_is_not_written(journal: Journal, entry: Entry) -> None:
    """A disk strategy of another package may give values of any type."""
    with pytest.raises(Refused, match="could not be read by a recovery"):
        journal.write(entry)
    assert journal.read() is None


def of_version_1(entry: Entry, *new: str) -> bytes:
    values = {"version": 1, "operation": entry.operation, **asdict(entry)}
    return json.dumps({k: v for k, v in values.items() if k not in new}).encode()


@pytest.mark.parametrize(
    ("entry", "new"),
    [(create_entry(), ("boot",)), (revert_entry(), ("disk_state",))],
)
def test_an_entry_of_version_1_is_read(
    journal: Journal, entry: Entry, new: tuple[str, ...]
) -> None:
    journal.path.parent.mkdir()
    journal.path.write_bytes(of_version_1(entry, *new))
    assert journal.read() == entry
