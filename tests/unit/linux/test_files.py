"""Files are whole or not there, and nothing that exists is replaced."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxlsnap.errors import AlreadyExists, Refused
from pyxlsnap.linux import files
from pyxlsnap.linux.files import (
    NewFile,
    make_directory,
    mount_point,
    open_regular,
    refuse_existing,
    remove_directories,
)
from pyxlsnap.linux.processes import holders, process_name
from tests.unit.support.waiting import open_descriptors


def no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["links", "no links"])
def directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A directory, on a filesystem with hard links and on one without."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    return tmp_path


def publish(path: Path, data: bytes = b"new") -> None:
    with NewFile(path) as new:
        new.file.write(data)
        new.publish()


def test_a_published_file_is_whole_and_private(directory: Path) -> None:
    publish(directory / "a")
    assert (directory / "a").read_bytes() == b"new"
    assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o600
    assert list(directory.iterdir()) == [directory / "a"]


def test_before_it_is_published_the_name_is_free(directory: Path) -> None:
    with NewFile(directory / "a") as new:
        new.file.write(b"new")
        assert not (directory / "a").exists()
        assert stat.S_IMODE(new.temporary.stat().st_mode) == 0o600


def test_a_file_that_exists_is_never_replaced(directory: Path) -> None:
    (directory / "a").write_text("old")
    with pytest.raises(AlreadyExists) as caught:
        publish(directory / "a")
    assert caught.value.where == str(directory / "a")
    assert (directory / "a").read_text() == "old"
    assert list(directory.iterdir()) == [directory / "a"]


@pytest.mark.parametrize("target", ["elsewhere", "nonexistent"])
def test_a_link_at_the_name_is_never_followed(directory: Path, target: str) -> None:
    (directory / "elsewhere").write_text("old")
    (directory / "a").symlink_to(directory / target)
    with pytest.raises(AlreadyExists):
        publish(directory / "a")
    assert (directory / "a").is_symlink()
    assert (directory / "elsewhere").read_text() == "old"
    assert not (directory / "nonexistent").exists()


def test_a_directory_at_the_name_is_never_replaced(directory: Path) -> None:
    (directory / "a").mkdir()
    with pytest.raises(AlreadyExists):
        publish(directory / "a")
    assert (directory / "a").is_dir()


def test_a_failed_publish_leaves_the_temporary_file_to_its_owner(directory: Path) -> None:
    (directory / "a").write_text("old")
    new = NewFile(directory / "a")
    with pytest.raises(AlreadyExists):
        new.publish()
    assert new.temporary.exists()
    new.discard()
    assert list(directory.iterdir()) == [directory / "a"]


def test_a_name_that_is_not_durable_is_taken_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "sync_directory", fails)
    new = NewFile(directory / "a")
    with pytest.raises(OSError, match="Input/output error"):
        new.publish()
    assert list(directory.iterdir()) == [new.temporary]
    new.discard()
    assert not list(directory.iterdir())


def test_other_errors_of_link_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(OSError, match="Input/output error"):
        publish(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_discard_is_idempotent_and_spares_a_published_file(tmp_path: Path) -> None:
    with NewFile(tmp_path / "a") as new:
        new.publish()
        new.discard()
    new.discard()
    assert (tmp_path / "a").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_does_not_fit_on_the_disk_is_removed_all_the_same(tmp_path: Path) -> None:
    """Closing a file writes what is buffered, and fails once more."""
    with files_of_at_most(100):
        new = NewFile(tmp_path / "a")
        new.file.write(bytes(1000))
        with pytest.raises(OSError, match="File too large"):
            new.publish()
        new.discard()
    assert new.file.closed
    assert not list(tmp_path.iterdir())


def test_the_temporary_name_can_be_given(tmp_path: Path) -> None:
    with NewFile(tmp_path / "a", temporary=tmp_path / "t") as new:
        assert (tmp_path / "t").exists()
        new.publish()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("there", ["file", "link"])
def test_a_temporary_name_that_is_taken_is_refused(tmp_path: Path, there: str) -> None:
    (tmp_path / "victim").write_text("old")
    if there == "link":
        (tmp_path / "t").symlink_to(tmp_path / "victim")
    else:
        (tmp_path / "t").write_text("old")
    with pytest.raises(Refused, match="File exists"):
        NewFile(tmp_path / "a", temporary=tmp_path / "t")
    assert (tmp_path / "victim").read_text() == "old"
    assert (tmp_path / "t").exists()


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"cannot write in {tmp_path}/b: No such file"):
        NewFile(tmp_path / "b" / "a")


def test_what_is_buffered_comes_before_what_libxl_writes(tmp_path: Path) -> None:
    with NewFile(tmp_path / "a") as new:
        new.file.write(b"header")
        os.write(new.fileno(), b"stream")
        new.publish()
    assert (tmp_path / "a").read_bytes() == b"headerstream"


def test_refuse_existing_sees_dangling_links(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "a")
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(AlreadyExists):
        refuse_existing(tmp_path / "a")


class TestDirectories:
    def test_are_made_private_with_their_parents(self, tmp_path: Path) -> None:
        made = make_directory(tmp_path / "a" / "b")
        assert made == [tmp_path / "a", tmp_path / "a" / "b"]
        assert {stat.S_IMODE(d.stat().st_mode) for d in made} == {0o700}

    def test_that_exist_are_not_ours(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        assert make_directory(tmp_path) == []
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755

    def test_one_that_another_operation_makes_meanwhile_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two domains, snapshotted for the first time at the same moment."""
        missing = [tmp_path / "a", tmp_path / "a" / "b"]
        (tmp_path / "a").mkdir()
        monkeypatch.setattr(files, "missing_directories", lambda _: missing)
        assert make_directory(missing[-1]) == [missing[-1]]

    def test_of_operations_that_begin_at_once(self, tmp_path: Path) -> None:
        """On a host where nothing has run yet; some of the operations fail, and undo."""
        ready, failed = threading.Barrier(4), []

        def operate(number: int) -> None:
            for turn in range(300):
                ready.wait(60)
                try:
                    made = make_directory(tmp_path / "xen" / "snapshots" / str(number))
                except Refused as e:
                    failed.append(f"{turn}: {e}")
                else:
                    remove_directories(made)

        threads = [threading.Thread(target=operate, args=[n]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []

    @pytest.mark.parametrize("number", [0, 1])
    def test_whose_parent_is_removed_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """Another operation has failed, and removed what it had made."""
        (tmp_path / "a").mkdir()
        mkdir, calls = Path.mkdir, []

        def racing(self: Path, mode: int = 0o777) -> None:
            calls.append(self)
            if len(calls) == number + 1:
                remove_directories([tmp_path / "a"])
            mkdir(self, mode)

        monkeypatch.setattr(Path, "mkdir", racing)
        make_directory(tmp_path / "a" / "b" / "c")
        assert (tmp_path / "a" / "b" / "c").is_dir()

    def test_that_can_never_be_made(self) -> None:
        with pytest.raises(Refused, match="cannot create the directory /proc/none"):
            make_directory(Path("/proc/none/b"))

    def test_are_durable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[Path] = []
        monkeypatch.setattr(files, "sync_directory", synced.append)
        make_directory(tmp_path / "a" / "b")
        assert synced == [tmp_path, tmp_path / "a"]

    def test_are_removed_again(self, tmp_path: Path) -> None:
        made = make_directory(tmp_path / "a" / "b")
        assert len(remove_directories(made)) == 2
        assert not list(tmp_path.iterdir())

    def test_with_something_in_them_stay(self, tmp_path: Path) -> None:
        made = make_directory(tmp_path / "a" / "b")
        (tmp_path / "a" / "other").touch()
        assert remove_directories(made) == [f"removed the directory {tmp_path}/a/b"]
        assert (tmp_path / "a" / "other").exists()

    @pytest.mark.parametrize("where", ["file", "file/a", "link", "link/a"])
    def test_in_the_place_of_something_else_are_refused(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(Refused, match="directory"):
            make_directory(tmp_path / where)
        assert {p.name for p in tmp_path.iterdir()} == {"file", "link"}

    def test_a_dangling_link_on_the_way_is_named(self, tmp_path: Path) -> None:
        """A volume that is not mounted."""
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(Refused, match=f"{tmp_path}/link: File exists"):
            make_directory(tmp_path / "link" / "a" / "b")


class TestOpenRegular:
    def test_reads_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x")
        with open_regular(tmp_path / "a") as file:
            assert file.read() == b"x"

    def test_does_not_wait_for_a_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a")
        with pytest.raises(OSError, match="not a regular file"), open_regular(tmp_path / "a"):
            pass

    @pytest.mark.parametrize("path", ["/dev/null", "/"])
    def test_takes_nothing_else(self, path: str) -> None:
        before = open_descriptors()
        with pytest.raises(OSError), open_regular(Path(path)):  # noqa: PT011
            pass
        assert open_descriptors() == before


@contextmanager
def python(code: str, *arguments: Path) -> Iterator[int]:
    """A process that runs ``code`` and has said that it did, until it is told to end."""
    code += "\nprint('done', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, sys\n" + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "done\n"
        yield process.pid
        process.stdin.close()


class TestHolders:
    HOLD = "file = open(sys.argv[1], 'rb')"

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        path = tmp_path / "image"
        path.write_bytes(b"x")
        return path

    def test_are_the_processes_that_have_it_open(self, image: Path) -> None:
        assert holders(image) == []
        with python(self.HOLD, image) as a, python(self.HOLD, image) as b:
            assert sorted(holders(image)) == sorted([a, b])
            assert process_name(a).startswith("python")
        assert holders(image) == []

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_whatever_its_name(self, image: Path, link: Callable[[Path, Path], None]) -> None:
        link(image, image.with_name("link"))
        with python(self.HOLD, image) as pid:
            assert holders(image.with_name("link")) == [pid]
        with python(self.HOLD, image.with_name("link")) as pid:
            assert holders(image) == [pid]

    def test_a_file_that_was_renamed_is_the_same_file(self, image: Path) -> None:
        with python(self.HOLD, image) as pid:
            moved = image.rename(image.with_name("moved"))
            image.write_bytes(b"another")
            assert holders(moved) == [pid]
            assert holders(image) == []

    def test_two_nodes_of_a_block_device_are_one_device(self, tmp_path: Path) -> None:
        for name, minor in (("a", 1), ("b", 1), ("c", 2)):
            try:
                os.mknod(tmp_path / name, stat.S_IFBLK, os.makedev(254, minor))
            except PermissionError:
                pytest.skip("no device nodes can be made here")
        with python("os.open(sys.argv[1], os.O_PATH)", tmp_path / "a") as pid:
            assert holders(tmp_path / "b") == [pid]
            assert holders(tmp_path / "c") == []

    def test_this_process_is_none(self, image: Path) -> None:
        with image.open("rb"):
            assert holders(image) == []

    def test_a_process_whose_first_thread_has_ended_is_one(self, image: Path) -> None:
        """As a QEMU that was killed, one of whose threads still writes."""
        code = (
            "import ctypes, threading\n"
            "def rest():\n"
            "    while open('/proc/self/stat').read().split()[2] != 'Z':\n"
            "        pass\n"
            "    print('done', flush=True)\n"
            "    sys.stdin.read()\n"
            "    os._exit(0)\n"
            "threading.Thread(target=rest).start()\n"
            "ctypes.CDLL(None).syscall(60, 0)"
        )
        with python(f"{self.HOLD}\n{code}", image) as pid:
            assert holders(image) == [pid]

    def test_a_process_that_has_ended_is_none(self, image: Path) -> None:
        ended = "os.waitid(os.P_PID, os.fork() or sys.exit(), os.WEXITED | os.WNOWAIT)"
        with python(f"{self.HOLD}\n{ended}", image) as pid:
            assert holders(image) == [pid]

    def test_a_file_that_is_not_there(self, image: Path) -> None:
        with pytest.raises(FileNotFoundError):
            holders(image.with_name("none"))

    def test_a_process_that_has_gone_has_a_name_all_the_same(self) -> None:
        assert process_name(2**22 + 1) == "?"


@pytest.mark.parametrize("directory", ["/proc", "/proc/1/task", "/proc/none/at/all"])
def test_the_mount_point_of_a_directory(directory: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    assert mount_point(Path(directory)) == mount_point(tmp_path / "link") == "/proc"
