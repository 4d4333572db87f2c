"""Bad and hostile input: it ends in a snapshot that can be reverted to, or in one clear line.

Never in a traceback, and never with a file changed that is not ours.
"""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyxlsnap
from pyxlsnap.cli import app
from pyxlsnap.disks import registry
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import (
    AlreadyExists,
    BadMemoryFile,
    ConfigError,
    DomainNotFound,
    PyxlsnapError,
    Refused,
    UsageError,
)
from pyxlsnap.guest import checks
from pyxlsnap.linux import files
from pyxlsnap.memory import write_header
from pyxlsnap.model import Disk, DiskRequest, DomainInfo, Metadata, RunState
from pyxlsnap.model import SnapshotConfig as Config
from pyxlsnap.xen.toolstack import Toolstack
from tests.unit.support import mounts, operations, streams
from tests.unit.support.example import new_world
from tests.unit.support.guest import FakeGuest, config_json
from tests.unit.support.hostile import HOSTILE
from tests.unit.support.outcomes import check_clear, check_refused, create_and_revert
from tests.unit.support.qemu import DOMID, SIZE, Qemu, content, qemu_img, tags, write
from tests.unit.support.trees import names, tree
from tests.unit.support.values import UUID
from tests.unit.support.world import World

PACKAGE = Path(pyxlsnap.__file__).parent
#: what a program may give, though no command line can
ANY_TEXT = st.text(max_size=20) | HOSTILE
#: names of files, and what only looks like one
FILE_NAMES = (
    HOSTILE
    | st.sampled_from(
        ["-rf", "..", ".", "", "a/../b", "none/a", "json:{}", "nbd:a:1", "a,b", "a=b"]
    )
    | st.integers(200, 300).map(lambda length: "x" * length)
    | st.integers(70, 90).map(lambda length: "€" * length)
)


class TestWhatIsAskedFor:
    @given(
        name=st.none() | st.just("snap") | ANY_TEXT,
        description=st.none() | ANY_TEXT,
        file=FILE_NAMES | ANY_TEXT,
        external=st.none() | FILE_NAMES | ANY_TEXT,
    )
    @settings(max_examples=150)
    def test_is_taken_or_refused(
        self, name: str | None, description: str | None, file: str, external: str | None
    ) -> None:
        with new_world() as world:
            guest = world.guest(world.image("xvda"))
            there = str(world.root / "images")
            request = DiskRequest("xvda", f"{there}/{external}", "qcow2") if external else None
            wanted = Config(name, description, f"{there}/{file}", (request,) if request else None)
            create_and_revert(world, guest, wanted)

    @given(HOSTILE.filter(bool) | st.integers(1, 400).map(lambda n: "n" * n))
    @settings(max_examples=60)
    def test_of_a_domain_of_any_name(self, name: str) -> None:
        with new_world() as world:
            guest = world.guest(world.image("xvda"), name=name)
            assert create_and_revert(world, guest, Config("snap")) or not _is_utf8(name)

    def test_a_name_as_long_as_can_be(self, world: World) -> None:
        guest = world.guest(world.image("xvda"))
        longest = str(world.root / ("x" * 251))  # its cfgfile has four more
        assert create_and_revert(world, guest, Config("n" * 127, memory_path=longest))
        with pytest.raises(Refused, match="File name too long: choose another name"):
            operations.create(world.host, "vm1", Config(memory_path=longest + "x"))
        with pytest.raises(Refused, match="File name too long"):
            operations.create(world.host, "vm1", Config(memory_path=f"{longest}xxxxx/a"))

    def test_what_no_cfgfile_can_say_is_named(self, world: World) -> None:
        world.guest()
        for wanted, says in (
            (Config(memory_path="/a\0b"), "memory_path: the text has a NUL"),
            (Config(description="\udcff"), r"description: \\xff is not UTF-8"),
            (Config(disks=(DiskRequest("xvda", "/\0", "raw"),)), "disk 'xvda': the text has a NUL"),
        ):
            with pytest.raises(ConfigError, match=says):
                operations.create(world.host, "vm1", wanted)

    @pytest.mark.parametrize("digits", ["²", "٣", "9" * 5000, "1²"])
    def test_digits_that_are_no_domid_are_a_name(self, digits: str) -> None:
        class Domains(Toolstack):
            _context: Any

            def __init__(self) -> None:
                self._context = self

            def domains(self) -> list[DomainInfo]:
                return [DomainInfo(3, UUID, False, False, "", False, 1)]

            def name_of(self, domid: int) -> str:
                return "vm1"

            def domid_of(self, name: str) -> int | None:
                return None

        with pytest.raises(DomainNotFound):
            Domains().find(digits)
        assert Domains().find("3").domid == Domains().find("003").domid == 3


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _put(what: str, path: Path) -> None:
    if what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "device":
        os.mknod(path, 0o020600, os.makedev(1, 3))
    elif what == "file":
        path.write_text("somebody's")
    elif what == "link":
        path.with_name("target").write_text("somebody's")
        path.symlink_to("target")
    else:
        path.symlink_to("loop" if what == "loop" else "nowhere")


ANYTHING = ["file", "link", "dangling", "loop", "directory", "socket", "fifo", "device"]


class TestWhatIsThere:
    @pytest.mark.parametrize("what", ANYTHING)
    @pytest.mark.parametrize("name", ["a.save", "a.cfg"])
    def test_at_a_name_of_ours_stays(self, world: World, what: str, name: str) -> None:
        guest = world.guest(world.image("xvda"))
        _put(what, world.root / name)
        wanted = Config("snap", memory_path=str(world.root / "a.save"))
        assert create_and_revert(world, guest, wanted) is None

    @pytest.mark.parametrize("what", ANYTHING)
    def test_in_the_place_of_a_directory(self, world: World, what: str) -> None:
        """One that was named, and the one of all snapshots."""
        guest = world.guest(world.image("xvda"))
        _put(what, world.root / "there")
        wanted = Config("snap", memory_path=str(world.root / "there" / "a.save"))
        assert bool(create_and_revert(world, guest, wanted)) == (what == "directory")
        _put(what, world.directory)
        assert bool(create_and_revert(world, guest, Config("s"))) == (what == "directory")

    def test_a_directory_that_is_a_link(self, world: World) -> None:
        (world.root / "elsewhere").mkdir()
        world.directory.symlink_to("elsewhere")
        guest = world.guest(world.image("xvda"))
        snapshot = create_and_revert(world, guest, Config("snap"))
        assert snapshot
        assert (world.root / "elsewhere" / UUID / "snap.cfg").exists()

    @pytest.mark.parametrize("what", [*ANYTHING, "nothing", "empty"])
    @pytest.mark.parametrize("command", ["snapshot-create", "snapshot-revert"])
    def test_as_a_cfgfile(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, command: str
    ) -> None:
        path = tmp_path / "-a\nb\udcff"
        if what != "nothing":
            _put(what, path) if what != "empty" else path.touch()
        status = app.main([command, "vm1", str(path)])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pyxlsnap: ")
        assert err.count("\n") == 1
        if what == "empty":  # nothing is wrong with it, but there is no Xen here
            assert (status, "cannot talk to Xen" in err) == (3, True)
        else:
            assert (status, r"-a\nb\xff" in err) == (2, True)


class TestSomebodyElse:
    """In a directory in which anybody may write."""

    @pytest.fixture
    def shared(self, world: World) -> Path:
        path = world.root / "shared"
        path.mkdir()
        path.chmod(0o777)
        return path

    @pytest.fixture
    def victim(self, world: World) -> Path:
        path = world.root / "victim"
        path.write_text("precious")
        return path

    def failing(self, world: World, guest: FakeGuest, shared: Path, victim: Path) -> PyxlsnapError:
        with pytest.raises(PyxlsnapError) as caught:
            operations.create(world.host, "vm1", Config("snap", memory_path=str(shared / "a")))
        check_clear(caught.value)
        assert victim.read_text() == "precious"
        assert guest.runs
        assert not world.storage.snapshots
        return caught.value

    @pytest.mark.parametrize("name", [".a.6767.tmp", ".a.cfg.6767.tmp"])
    @pytest.mark.parametrize("target", ["victim", "none"])
    def test_who_guesses_a_temporary_name_gains_nothing(
        self,
        world: World,
        shared: Path,
        victim: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        target: str,
    ) -> None:
        guest = world.guest(world.image("xvda"))
        monkeypatch.setattr(os, "urandom", lambda _: bytes.fromhex("6767"))
        (shared / name).symlink_to(victim.with_name(target))
        error = self.failing(world, guest, shared, victim)
        assert f"cannot write in {shared}: File exists" in str(error)
        assert names(shared) == [name]
        assert not victim.with_name("none").exists()

    @pytest.mark.parametrize("name", ["a", "a.cfg"])
    def test_who_takes_the_name_meanwhile_keeps_it(
        self, world: World, shared: Path, victim: Path, name: str
    ) -> None:
        guest = world.guest(world.image("xvda"))
        guest.while_suspending = lambda: (shared / name).symlink_to(victim)
        self.failing(world, guest, shared, victim)
        assert (shared / name).is_symlink()
        assert names(shared) == [name]

    @pytest.mark.parametrize("other", ["link", "file"])
    def test_who_takes_the_place_of_the_temporary_file_is_noticed(
        self, world: World, shared: Path, victim: Path, other: str
    ) -> None:
        guest = world.guest(world.image("xvda"))

        def swap() -> None:
            (temporary,) = shared.iterdir()
            temporary.unlink()
            if other == "link":
                temporary.symlink_to(victim)
            else:
                shutil.copy(victim, temporary)

        guest.while_suspending = swap
        error = self.failing(world, guest, shared, victim)
        assert "while it was written: choose a directory" in str(error)
        assert not (shared / "a").exists()


class TestMounts:
    """Each in a child with mounts of its own."""

    def test_a_read_only_directory(self, tmp_path: Path) -> None:
        mounts.in_own_mounts(mounts.read_only_directory, tmp_path)

    def test_a_read_only_journal(self, tmp_path: Path) -> None:
        mounts.in_own_mounts(mounts.read_only_journal, tmp_path)

    def test_another_filesystem(self, tmp_path: Path) -> None:
        mounts.in_own_mounts(mounts.another_filesystem, tmp_path)

    def test_a_filesystem_that_becomes_full(self, tmp_path: Path) -> None:
        mounts.in_own_mounts(mounts.full_filesystem, tmp_path)

    def test_no_place_for_a_temporary_file(self, tmp_path: Path) -> None:
        mounts.in_own_mounts(mounts.nothing_can_be_written, tmp_path)


class TestForgedMemoryFile:
    """What stands in a memory file need not have been written by us."""

    @given(
        st.dictionaries(
            st.sampled_from(["c_info", "b_info", "disks", "nics", "on_reboot", "pcidevs"]),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.sampled_from(["", "/", "a\0b", "\ud800"]),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(
                        st.sampled_from(
                            ["uuid", "name", "type", "vdev", "pdev_path", "bridge", "kernel"]
                        ),
                        inner,
                    )
                ),
                max_leaves=6,
            ),
        )
    )
    @settings(max_examples=150)
    def test_any_configuration(self, forged: dict[str, Any]) -> None:
        with new_world() as world:
            guest = world.guest(world.image("xvda"))
            values = json.loads(guest.configuration.json)
            for key, value in forged.items():
                values[key] = {**values[key], **value} if _both(values.get(key), value) else value
            self.revert(world, guest, json.dumps(values))

    @pytest.mark.parametrize(
        "name", ["../../../etc/passwd", "a\0b", "x" * 300, "a\nb", "-f", "\udcff", "vm1\u202e"]
    )
    def test_any_name(self, world: World, name: str) -> None:
        guest = world.guest(world.image("xvda"))
        self.revert(world, guest, config_json(*guest.configuration.disks, name=name))

    @pytest.mark.parametrize("uuid", ["../../x", "", "8A1F0C3E-0000-4000-8000-00000000C0DE", "\0"])
    def test_a_uuid_that_is_none(self, world: World, uuid: str) -> None:
        guest = world.guest(world.image("xvda"))
        error = self.revert(world, guest, config_json(uuid=uuid))
        assert isinstance(error, BadMemoryFile)

    @pytest.mark.parametrize("target", ["a\0b", "\ud800"])
    def test_a_disk_that_no_file_can_be(self, world: World, target: str) -> None:
        guest = world.guest(world.image("xvda"))
        error = self.revert(world, guest, config_json(Disk("xvda", target, "qcow2")))
        assert isinstance(error, BadMemoryFile)

    def revert(self, world: World, guest: FakeGuest, config_json: str) -> PyxlsnapError | None:
        memory = world.root / "forged.save"
        state = RunState.RUNNING
        with memory.open("xb") as file:
            meta = Metadata("snap", "", 0, state, (DiskRequest("xvda"),), {})
            write_header(file, config_json=config_json, metadata=meta)
            file.write(streams.hvm_stream())
        world.storage.snapshots["xvda", "snap"] = "then"
        before = tree(world.root)
        try:
            operations.revert(
                world.host, "vm1", Config(memory_path=str(memory)), world.root / "a.cfg", force=True
            )
        except PyxlsnapError as error:
            check_clear(error)
            check_refused(error)
            assert tree(world.root) == before
            assert guest.runs
            return error
        return None


def _both(a: object, b: object) -> bool:
    return isinstance(a, dict) and isinstance(b, dict)


class TestDisks:
    #: names that mean something to QEMU, to its monitor, to a shell, or to LVM, elsewhere
    NAMES = (
        "-o",
        "--help",
        "nbd:localhost:10809",
        "json:{}",
        "file:a",
        "a,b",
        "a=b,c",
        "a b",
        "a\nb",
        "it's",
        'say "a"',
        "$(touch here)",
        "`touch here`; touch here",
        "%s%n",
        "back\\slash",
        "é€",
        "x" * 230,
    )

    @pytest.fixture
    def odd(self, run_dir: Path) -> Iterator[tuple[Qemu, list[Disk]]]:
        found = []
        for number, name in enumerate(self.NAMES):
            directory = run_dir / f"json:{{,=' {number}"
            directory.mkdir()
            disk = Disk(f"xvda{number + 1}", str(directory / name), "qcow2")
            qemu_img("create", "-q", "-f", "qcow2", disk.target, str(SIZE))
            write(disk, 1)
            found.append(disk)
        qemu = Qemu(run_dir, {d.vdev: d.target for d in found})
        yield qemu, found
        qemu.close()

    @pytest.mark.parametrize("where", ["internal", "external"])
    def test_a_path_is_a_path(
        self, odd: tuple[Qemu, list[Disk]], where: str, run_dir: Path, monkeypatch: Any
    ) -> None:
        qemu, found = odd
        monkeypatch.chdir(run_dir)
        task = DiskTask("snap")
        if where == "internal":
            requests = [DiskRequest(d.vdev) for d in found]
        else:
            requests = [
                DiskRequest(
                    d.vdev, str(Path(d.target).with_name(f"{Path(d.target).name}~")), "qcow2"
                )
                for d in found
            ]
        strategy = Qcow2(list(zip(found, requests, strict=True)), task)
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.create()
        strategy.finish_create()
        artefacts = strategy.artefacts("vm1")
        for disk in found:
            qemu.write(disk.vdev, 2)
        strategy.close()
        qemu.close()
        assert [plain_content(d, run_dir) for d in found] == [2] * len(found)

        strategy.check_revert()
        strategy.revert()
        assert [plain_content(d, run_dir) for d in found] == [1] * len(found)
        strategy.finish_revert(DOMID)
        for artefact in artefacts:  # what it says is to be pasted
            command = artefact.delete.rpartition("domain off: ")[2]
            run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
            assert run.returncode == 0, (command, run.stderr)
        assert not any("snap" in tags(disk) for disk in found)
        assert not any(Path(r.path).exists() for r in requests if r.path)
        assert not (run_dir / "here").exists()

    @pytest.mark.parametrize(
        "target",
        ["nbd:localhost:10809", 'json:{"driver":"null-co"}', "-o", "file:/a.qcow2", "a.qcow2"],
    )
    @pytest.mark.parametrize("form", ["qcow2", "raw"])
    def test_what_is_no_absolute_path_is_never_handed_on(self, target: str, form: str) -> None:
        with pytest.raises(Refused, match=r"xvda: its path .* does not begin with /"):
            registry.strategies([(Disk("xvda", target, form), DiskRequest("xvda"))], DiskTask("s"))

    def test_because_qemu_img_would_take_it_for_something_else(self, tmp_path: Path) -> None:
        said = qemu_img("info", "--output=json", 'json:{"driver":"null-co","size":512}')
        assert json.loads(said)["format"] == "null-co"

    @pytest.mark.parametrize("length", [219, 225, 229, 230])
    def test_a_guest_is_not_held_up_by_the_length_of_a_name(
        self, run_dir: Path, length: int
    ) -> None:
        """Before each resume an overlay is renamed, which a name that is too long would prevent."""
        disk = Disk("xvda", str(run_dir / ("x" * length)), "qcow2")
        qemu_img("create", "-q", "-f", "qcow2", disk.target, str(SIZE))
        qemu = Qemu(run_dir, {disk.vdev: disk.target})
        request = DiskRequest("xvda", str(run_dir / "frozen"), "qcow2")
        strategy = Qcow2([(disk, request)], DiskTask("snap"))
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.settle()
        strategy.undo_create()
        strategy.close()
        qemu.close()
        assert {p.name for p in run_dir.iterdir() if p.is_file()} == {"x" * length}

    @pytest.mark.parametrize("form", ["qcow2", "raw"])
    def test_what_a_revert_could_not_keep_is_refused_beforehand(
        self, run_dir: Path, form: str
    ) -> None:
        disk = Disk("xvda", str(run_dir / ("x" * 150)), form, "qdisk")
        qemu_img("create", "-q", "-f", form, disk.target, str(SIZE))
        qemu = Qemu(run_dir, {disk.vdev: disk.target}) if form == "qcow2" else None
        request = DiskRequest("xvda", str(run_dir / "frozen"), form)
        (strategy,) = registry.strategies([(disk, request)], DiskTask("n" * 100, asked=True))
        with open(disk.target, "rb") if qemu is None else _nothing():
            with pytest.raises(Refused, match="choose a shorter name for the snapshot") as caught:
                strategy.check_create(DOMID)
            check_clear(caught.value)
            shutil.copy(disk.target, request.path)
            with pytest.raises(Refused, match="choose a shorter name for the snapshot"):
                strategy.check_revert()
        strategy.close()
        if qemu:
            qemu.close()

    def test_a_directory_that_qemu_cannot_be_told_of(self, run_dir: Path) -> None:
        there = run_dir / "\udcff"
        there.mkdir()
        real = Disk("xvda", str(there / "a"), "qcow2")
        qemu_img("create", "-q", "-f", "qcow2", real.target, str(SIZE))
        (run_dir / "link").symlink_to(real.target)
        disk = Disk("xvda", str(run_dir / "link"), "qcow2")
        qemu = Qemu(run_dir, {disk.vdev: disk.target})
        strategy = Qcow2([(disk, DiskRequest("xvda", f"{run_dir}/b", "qcow2"))], DiskTask("s"))
        with pytest.raises(Refused, match=r"xvda: .*\\xff/a is not UTF-8") as caught:
            strategy.check_create(DOMID)
        check_clear(caught.value)
        strategy.close()
        qemu.close()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def plain_content(disk: Disk, directory: Path) -> int:
    """The disk's first byte; qemu-io, which looks for options in names, gets a plain one."""
    link = directory / "plain"
    link.unlink(missing_ok=True)
    link.symlink_to(disk.target)
    return content(Disk(disk.vdev, str(link), "qcow2"))


# The source


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the package: module, the name that is called, the call."""
    for module, source in _sources():
        for node in ast.walk(source):
            if isinstance(node, ast.Call):
                yield module, ast.unparse(node.func), node


class TestSource:
    def test_nothing_goes_through_a_shell(self) -> None:
        shells = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
        for module, name, call in _calls():
            assert name.rpartition(".")[2] not in shells, module
            assert "shell" not in [k.arg for k in call.keywords], module

    def test_programs_are_run_where_they_are_known_to_be(self) -> None:
        runs = {m for m, name, _ in _calls() if re.fullmatch(r"subprocess\.(run|Popen)", name)}
        assert runs == {
            "disks/lvm/commands.py",
            "disks/qcow2/qemu.py",
            "disks/qcow2/killable.py",
            "disks/qcow2/trial.py",
            "guest/networks.py",
            "guest/qemu_version.py",
            "monitor/launch.py",
            "worker/start.py",
        }

    def test_no_text_is_sent_to_the_human_monitor(self) -> None:
        for module, source in _sources():
            texts = [n.value for n in ast.walk(source) if isinstance(n, ast.Constant)]
            assert not any("human-monitor" in t for t in texts if isinstance(t, str)), module

    def test_files_are_made_in_few_places_and_never_through_a_link(self) -> None:
        """With O_EXCL; locks and the log, which live on, at least with O_NOFOLLOW."""
        living = {"linux/locks.py", "monitor/process.py"}
        exclusive = {"linux/files.py", "disks/copy/content.py", "clone/line_files.py"}
        found = set()
        for module, source in _sources():
            # (A set of flags, in an expression that may have a name.)
            for node in ast.walk(source):
                if isinstance(node, ast.Assign | ast.Call):
                    text = ast.unparse(node)
                    if re.search(r"\bO_CREAT\b", text) and len(text) < 200:
                        found.add(module)
                        assert "O_NOFOLLOW" in text, module
                        assert "O_EXCL" in text or module in living, module
        assert found == living | exclusive

    def test_nothing_else_opens_a_file_for_writing(self) -> None:
        writers = {"write_text", "write_bytes", "touch", "mkstemp", "copyfile", "copy", "copy2"}
        opened = []
        for module, name, call in _calls():
            assert name.rpartition(".")[2] not in writers, (module, name)
            if name in ("open", "io.open") or (name.endswith(".open") and name != "os.open"):
                modes = [ast.unparse(a) for a in [*call.args, *(k.value for k in call.keywords)]]
                opened += [(module, m) for m in modes if re.fullmatch(r"'[rwxab+]+'", m)]
        assert {(module, mode) for module, mode in opened if mode != "'rb'"} == {
            ("journal.py", "'xb'"),
            ("create/last_time.py", "'xb'"),
            ("disks/qcow2/clones.py", "'wb'"),  # the descriptor of a new file
            ("worker/warm_client.py", "'wb'"),  # /dev/null
        }


def test_a_scratch_file_needs_no_disk() -> None:
    with files.scratch_file() as file:
        file.write(b"said")
        assert str(Path(f"/proc/self/fd/{file.fileno()}").readlink()).startswith("/memfd:")


def test_a_long_domain_name_is_no_error_of_the_system(world: World) -> None:
    guest = world.guest(name="n" * 300)
    assert checks.libvirt_reason(guest) == []


def test_the_errors_of_the_system_are_refusals_that_name_the_path() -> None:
    with pytest.raises(Refused, match="/etc/none: No such file"), files.refusing_os_errors():
        Path("/etc/none").stat()
    with pytest.raises(UsageError), files.refusing_os_errors():
        raise UsageError("x")


def test_what_is_in_the_way_is_named() -> None:
    with pytest.raises(AlreadyExists) as caught:
        files.refuse_existing(Path("/etc/passwd"))
    assert caught.value.where == "/etc/passwd"
