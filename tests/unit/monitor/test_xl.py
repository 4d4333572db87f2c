"""xl's process is found by what it is: real processes of a program called xl."""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.linux.processes import started
from pyxlsnap.monitor import xl as module
from pyxlsnap.monitor.launch import ending_monitor
from pyxlsnap.monitor.xl import about_foreground, xl_monitor, xl_process
from tests.unit.support.memory_files import xl_file
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World


class Xl:
    """Starts processes of a program called xl, which read their standard input for ever."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.program = here / "bin" / "xl"
        self.program.parent.mkdir(parents=True)
        shutil.copy("/bin/dash", self.program)
        for name in ("create", "restore", "console"):  # scripts for that shell, with any arguments
            (here / name).write_text("read x\n")
        self.config = here / "web1.cfg"
        self.config.write_text('memory = 64\n# name = "no"\nname = "web1"  # its name\n')

    @contextmanager
    def running(
        self, *words: str, log: str = "", cwd: Path | None = None, stderr: bool = False
    ) -> Iterator[int]:
        out = (paths.XEN_LOGS / log).open("a") if log else None
        process = subprocess.Popen(
            ["xl", *words],
            executable=self.program,
            stdin=subprocess.PIPE,
            stdout=out or subprocess.DEVNULL,
            stderr=out if stderr else None,
            cwd=cwd or self.here,
        )
        words_of = Path(f"/proc/{process.pid}/cmdline")
        try:
            # Popen returns as soon as the new program is loaded, and its words are there later.
            assert eventually(lambda: bool(words_of.read_bytes()))
            yield process.pid
        finally:
            process.kill()
            process.communicate()
            if out:
                out.close()


@pytest.fixture
def xl(world: World) -> Xl:
    return Xl(world.root / "xl")


@pytest.mark.parametrize("words", [("-F",), ("-qF",), ("-F", "-p"), ("-F", "-f")])
def test_one_in_the_foreground_is_found_by_its_config_file(xl: Xl, words: tuple[str, ...]) -> None:
    with xl.running("create", *words, str(xl.config)) as pid:
        found = xl_process("web1")
        assert found
        assert (found.pid, found.foreground) == (pid, True)
        assert found.words[:2] == ("xl", "create")
        assert xl_monitor("web") is None
        assert xl_monitor("no") is None
    assert xl_monitor("web1") is None


def test_one_with_the_domains_log_comes_before_one_that_was_told_its_name(xl: Xl) -> None:
    """The lower pid is that of the first: the order in /proc tells nothing."""
    with (
        xl.running("create", "-F", str(xl.config)) as told,
        xl.running("create", str(xl.config), log="xl-web1.log") as logs,
        xl.running("create", "-F", str(xl.config)),
    ):
        found = xl_process("web1")
        assert found
        assert told != found.pid == logs
        assert found.has_log


def test_a_config_file_that_was_edited_since_tells_nothing(xl: Xl) -> None:
    with xl.running("create", "-F", str(xl.config)) as pid:
        found = xl_process("web1")
        assert found
        assert (found.pid, found.has_log) == (pid, False)
        assert abs(started(pid) - time.time()) < 60
        os.utime(xl.config, (time.time() + 10,) * 2)
        assert xl_process("web1") is None
    assert started(pid) == math.inf


@pytest.mark.parametrize(
    "words",
    [
        ("create", "web1.cfg", "-F"),
        ("create", "-F", "web1.cfg", "memory=32"),
        ("create", "-F", "web2.cfg", 'name="web1"', "disk=['/srv/a,qcow2,xvda,w']"),
        ("create", "--defconfig=web1.cfg", "-F"),
        ("create", "--defconfig", "web1.cfg", "-F"),
        ("create", "-Fqfweb1.cfg"),
        ("restore", "-F", "web1.cfg", "some.save"),
    ],
)
def test_its_command_line_is_read_as_xl_reads_it(xl: Xl, words: tuple[str, ...]) -> None:
    (xl.here / "web2.cfg").write_text("name='web2'\n")
    with xl.running(*words) as pid:
        assert xl_monitor("web1") == pid
        assert xl_monitor("web2") is None


def test_one_that_restored_a_domain_is_found_by_the_memory_file(xl: Xl, world: World) -> None:
    save = xl.here / "m.save"
    config = world.guest(name="web1").configuration.json
    save.write_bytes(xl_file(config.encode() + b"\0"))
    with xl.running("restore", "-F", str(save)) as pid:
        assert xl_monitor("web1") == pid


@pytest.mark.parametrize(
    "older",
    ["xl-web1.log.1", "xl-web1.log-20260101", "xl-web1.log.1.gz", "elsewhere/xl-web1.log.old", ""],
)
def test_its_log_may_have_another_name_by_now(xl: Xl, older: str) -> None:
    """After logrotate; "": the log was deleted."""
    (paths.XEN_LOGS / "elsewhere").mkdir()
    log = paths.XEN_LOGS / "xl-web1.log"
    with xl.running("create", "/gone.cfg", log=log.name) as pid:
        if older:
            log.rename(paths.XEN_LOGS / older)
            log.touch()
        else:
            log.unlink()
        found = xl_process("web1")
        assert found
        assert (found.pid, found.foreground) == (pid, False)


def waits(pid: int, domid: int, log: str = "xl-web1.log", name: str = "web1") -> None:
    """Let xl say that it watches a domain."""
    with (paths.XEN_LOGS / log).open("a") as file:
        file.write(f"Waiting for domain {name} (domid {domid}) to die [pid {pid}]\n")


def test_of_two_with_a_log_of_that_name_it_is_the_one_that_waits_for_the_domid(xl: Xl) -> None:
    """web1 was renamed, and another web1 created: libxl renames the log of the first one."""
    with xl.running("create", "a", log="xl-web1.log") as first:
        waits(first, 3)
        (paths.XEN_LOGS / "xl-web1.log").rename(paths.XEN_LOGS / "xl-web1.log.1")
        with xl.running("create", "b", log="xl-web1.log") as second:
            # Without what the log says, the present log comes before the older one.
            assert xl_monitor("web1") == xl_monitor("web1", 7) == second
            waits(second, 7)
            assert xl_monitor("web1") == xl_monitor("web1", 7) == second
            assert xl_monitor("web1-old", 3) == first
            assert xl_monitor("web1", 8) is None
        assert xl_monitor("web1", 7) is None


def test_one_that_starts_the_domain_again_waits_for_no_domid_yet(xl: Xl) -> None:
    with xl.running("create", "a", log="xl-web1.log") as pid:
        waits(pid, 3)
        with (paths.XEN_LOGS / "xl-web1.log").open("a") as log:
            log.write("Domain 3 has been destroyed.\nDone. Rebooting now\n")
        assert xl_monitor("web1", 4) == xl_monitor("web1", 3) == pid
        waits(pid, 4)
        assert xl_monitor("web1", 4) == pid
        assert xl_monitor("web1", 3) is None


def test_what_another_process_wrote_into_the_log_tells_nothing(xl: Xl) -> None:
    with xl.running("create", "a", log="xl-web1.log") as pid:
        waits(pid + 1, 3)
        assert xl_monitor("web1", 4) == pid


def test_one_in_the_foreground_is_found_by_its_standard_error(xl: Xl) -> None:
    with xl.running("create", "-F", "gone.cfg", log="out", stderr=True) as pid:
        assert xl_process("web1", 3) is None
        waits(pid, 3, "out")
        found = xl_process("web1", 3)
        assert found
        assert (found.pid, found.foreground, found.has_log) == (pid, True, True)


def test_one_with_another_domains_log_is_not_taken_for_ours(xl: Xl) -> None:
    """The config file may have been edited since."""
    with xl.running("create", str(xl.config), log="xl-web2.log") as pid:
        assert xl_monitor("web1") is None
        assert xl_monitor("web2") == pid
    with xl.running("create", str(xl.config), log="xl-web2.log.1"):
        assert xl_monitor("web1") is None


def test_other_processes_are_not_taken_for_one(xl: Xl) -> None:
    with xl.running("console", str(xl.config)):
        assert xl_monitor("web1") is None
    log = (paths.XEN_LOGS / "xl-web1.log").open("w")
    with log, subprocess.Popen(["/bin/sleep", "60"], stdout=log) as other:
        assert xl_monitor("web1") is None
        other.terminate()


def test_one_whose_program_was_upgraded(xl: Xl) -> None:
    with xl.running("create", "-F", str(xl.config)) as pid:
        xl.program.unlink()
        assert xl_monitor("web1") == pid


@pytest.mark.parametrize("unreadable", [Path.unlink, lambda p: p.write_bytes(b"\xff\0name")])
def test_a_config_file_that_says_nothing(xl: Xl, unreadable: Callable[[Path], object]) -> None:
    with xl.running("create", "-F", str(xl.config)):
        unreadable(xl.config)
        assert xl_monitor("web1") is None


#: a word of a command line, which the kernel gives as bytes without a NUL
WORD = st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(
    max_size=8
)


@given(st.lists(WORD.map(lambda word: os.fsdecode(word.replace(b"\0", b""))), max_size=6))
def test_any_command_line_can_be_read(words: list[str]) -> None:
    for command in ("create", "restore"):
        call = module._parsed(("xl", command, *words))
        assert call
        module._name_in(call, 0)
    module._parsed(tuple(words))


@given(st.text())
def test_any_config_file_can_be_read(text: str) -> None:
    assert module._last_name(f"{text}\nname = 'web1'\n") == "web1"
    module._last_name(text)


# What a snapshot means for one in the foreground


def test_a_snapshot_ends_one_in_the_foreground(xl: Xl, world: World) -> None:
    guest = world.guest(name="web1")
    assert ending_monitor(world.host, guest) is None
    with xl.running("create", "-F", str(xl.config)) as pid:
        found = ending_monitor(world.host, guest)
        (line,) = about_foreground(found, "web1", when="when the guest is suspended")
        assert (
            f"(pid {pid}: xl create -F {xl.config}), and ends when the guest is suspended" in line
        )
        assert "ExecStop=" in line
        world.host.version = (4, 20)
        assert ending_monitor(world.host, guest) is None
    with xl.running("create", str(xl.config), log="xl-web1.log"):
        world.host.version = (4, 17)
        found = ending_monitor(world.host, guest)
        assert found
        assert about_foreground(found, "web1", when="now") == []
