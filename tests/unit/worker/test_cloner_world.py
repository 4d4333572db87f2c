"""Many clones through one warm process on a fake host, where something changes between two."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap import Cloner
from pyxlsnap.clone_file import find_clone
from pyxlsnap.errors import BadMemoryFile, Busy, ConfigError, PyxlsnapError, Refused
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.results import Cloned
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.hosted import Hosted, load, save
from tests.unit.support.values import OTHER_UUID, UUID

pytestmark = pytest.mark.usefixtures("nothing_is_left")

CLONE = "vm1-a"


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """A host with a guest and a snapshot of the guest, which has gone on since."""
    host = Hosted(tmp_path, monkeypatch)
    host.world.guest(host.world.image("xvda"), host.world.image("xvdb")).memory = "then"
    done = host.run("snapshot-create", "vm1", "--name=snap")
    assert done.returncode == 0, done.stderr
    host.guest.memory = "since"
    host.serve(monkeypatch)
    return host


@pytest.fixture
def cloner(hosted: Hosted) -> Iterator[Cloner]:
    with Cloner(snapshot(hosted).with_suffix(".cfg"), CLONE, monitor=False) as found:
        yield found


def snapshot(host: Hosted) -> Path:
    return host.world.directory / UUID / "snap.save"


def clone(host: Hosted, cloner: Cloner) -> Cloned:
    save(host.world)
    try:
        return cloner.clone()
    finally:
        load(host.world)


def find(host: Hosted, name: str = CLONE) -> FakeGuest:
    (found,) = [g for g in host.world.host.guests if g.exists and g.name == name]
    return found


def disks(host: Hosted) -> set[str]:
    """The disks of clones that are there."""
    found = (host.world.root / "images").glob("xvd?.*")
    return {str(path) for path in found if path.suffix != ".qcow2"}


def test_each_is_made_anew_and_the_snapshot_is_only_read(hosted: Hosted, cloner: Cloner) -> None:
    before = snapshot(hosted).read_bytes()
    made: list[Cloned] = []
    for n in range(4):
        made.append(clone(hosted, cloner))
        assert find(hosted).memory == "then"
        assert {disk.target for disk in made[n].disks} == disks(hosted)
        assert Journal(made[n].uuid).read() is None
        find(hosted).memory = f"used {n}"
    assert len({m.domid for m in made}) == 4
    assert len({m.uuid for m in made}) == 1
    assert [m.replaced for m in made] == [False, True, True, True]
    assert find(hosted, "vm1").memory == "since"
    assert snapshot(hosted).read_bytes() == before


def test_each_configuration_is_that_of_its_own_disks(hosted: Hosted) -> None:
    seen: list[str] = []

    def edit(values: dict[str, list[dict[str, str]]]) -> None:
        seen.append(values["disks"][0]["pdev_path"])

    with Cloner(snapshot(hosted).with_suffix(".cfg"), CLONE, edit=edit, monitor=False) as cloner:
        targets = [clone(hosted, cloner).disks[0].target for _ in range(3)]
    assert seen == targets
    assert targets[0] == targets[2] != targets[1]


def memory_file_damaged(host: Hosted) -> None:
    os.truncate(snapshot(host), snapshot(host).stat().st_size - 5)


def memory_file_replaced(host: Hosted) -> None:
    path = snapshot(host)
    found = path.stat()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(bytes(found.st_size))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def memory_file_gone(host: Hosted) -> None:
    snapshot(host).unlink()


def cfgfile_gone(host: Hosted) -> None:
    snapshot(host).with_suffix(".cfg").unlink()


def cfgfile_wrong(host: Hosted) -> None:
    snapshot(host).with_suffix(".cfg").write_text("name = ")


def disk_snapshot_gone(host: Hosted) -> None:
    del host.world.storage.snapshots["xvdb", "snap"]


def kernel_gone(host: Hosted) -> None:
    host.world.kernel.unlink()


def renamed(host: Hosted) -> None:
    find(host).configuration = find(host).configuration.with_name("evidence")


CHANGES: dict[Callable[[Hosted], None], type[PyxlsnapError]] = {
    memory_file_damaged: BadMemoryFile,
    memory_file_replaced: BadMemoryFile,
    memory_file_gone: BadMemoryFile,
    cfgfile_gone: ConfigError,
    cfgfile_wrong: ConfigError,
    disk_snapshot_gone: Refused,
    kernel_gone: Refused,
    renamed: Refused,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_world_is_noticed(
    hosted: Hosted, cloner: Cloner, change: Callable[[Hosted], None]
) -> None:
    domid = clone(hosted, cloner).domid
    before = disks(hosted)
    change(hosted)
    with pytest.raises(CHANGES[change]):
        clone(hosted, cloner)
    (old,) = [g for g in hosted.world.host.guests if g.domid == domid]
    assert old.runs
    assert disks(hosted) == before
    assert find_clone(CLONE)


def test_a_world_that_is_as_before_again_is_noticed_too(hosted: Hosted, cloner: Cloner) -> None:
    path = snapshot(hosted)
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(BadMemoryFile):
        clone(hosted, cloner)
    path.with_suffix(".moved").rename(path)
    assert clone(hosted, cloner).name == "snap"


def test_a_clone_that_was_deleted_meanwhile_is_made(hosted: Hosted, cloner: Cloner) -> None:
    first = clone(hosted, cloner)
    find(hosted).exists = False
    for target in disks(hosted):
        Path(target).unlink()
    second = clone(hosted, cloner)
    assert (first.replaced, second.replaced) == (False, False)
    assert find(hosted).runs


def test_a_name_that_was_taken_meanwhile(hosted: Hosted, cloner: Cloner) -> None:
    kernel = str(hosted.world.kernel)
    hosted.world.host.start(config_of(name=CLONE, uuid=OTHER_UUID, kernel=kernel))
    with pytest.raises(Refused):
        clone(hosted, cloner)
    assert find(hosted).uuid == OTHER_UUID


def test_other_operations_come_between(hosted: Hosted, cloner: Cloner) -> None:
    uuid = clone(hosted, cloner).uuid
    lock = DomainLock(uuid, domain=CLONE)
    with pytest.raises(Busy):
        clone(hosted, cloner)
    lock.release()
    assert hosted.run("snapshot-create", "vm1", "--name=between").returncode == 0
    cfg = str(snapshot(hosted).with_suffix(".cfg"))
    assert hosted.run("snapshot-clone", cfg, CLONE, "--replace").returncode == 0
    assert clone(hosted, cloner).replaced
