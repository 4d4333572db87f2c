"""The process that watches a domain: how it starts, what it says, how it ends."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap import api
from pyxlsnap.errors import OperationFailed, UsageError
from tests.unit.support import monitor_site
from tests.unit.support.monitor_site import Watch
from tests.unit.support.processes import lives
from tests.unit.support.sites import import_from, write_site
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually


class Watcher:
    """Watching processes started from now on run this in the place of a watch."""

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "domid").write_text("1")
        self.site = write_site(
            here, before="pyxlsnap.monitor.__main__", site="tests.unit.support.monitor_site"
        )

    def set(self, scenario: Callable[[Watch], None]) -> None:
        assert scenario in monitor_site.SCENARIOS
        (self.here / "scenario").write_text(scenario.__name__)

    @property
    def pid(self) -> int:
        return int((self.here / "pid").read_text())

    def log(self, line: str) -> str:
        """Its log, once the line is in it."""
        end = time.monotonic() + 10
        path = self.here / "pyxlsnap-vm_1.log"
        while not (path.exists() and line in path.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        return path.read_text()

    def ended(self) -> bool:
        """Whether it ends soon. Whoever reaps it, once its parent has ended, may take seconds."""
        return eventually(lambda: not lives(self.pid))


@pytest.fixture
def watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    found = Watcher(tmp_path)
    import_from(found.site, monkeypatch)
    yield found
    if (tmp_path / "pid").exists() and not found.ended():
        os.kill(found.pid, signal.SIGKILL)
        pytest.fail("it is still there")


def test_it_goes_on_by_itself_and_ends_at_sigterm(watcher: Watcher) -> None:
    watcher.set(monitor_site.watch)
    api.start_monitor(UUID.upper())
    with pytest.raises(ChildProcessError):  # not ours to wait for
        os.waitpid(-1, os.WNOHANG)
    assert os.getsid(watcher.pid) != os.getsid(0)
    assert Path(f"/proc/{watcher.pid}/cwd").readlink() == Path("/")
    open_files = {os.readlink(p) for p in Path(f"/proc/{watcher.pid}/fd").iterdir()}  # noqa: PTH115
    assert str(watcher.here / "pyxlsnap-vm_1.log") in open_files
    assert not [f for f in open_files if f.startswith("pipe:")]
    os.kill(watcher.pid, signal.SIGTERM)
    assert "stopped by SIGTERM" in watcher.log("stopped by SIGTERM")
    assert watcher.ended()


def test_it_ends_when_there_is_nothing_to_watch(watcher: Watcher) -> None:
    watcher.set(monitor_site.nothing_to_watch)
    api.start_monitor(UUID)
    assert watcher.ended()
    assert f"watching vm/1 ({UUID})" in watcher.log("watching")


def test_a_later_failure_is_in_its_log(watcher: Watcher) -> None:
    watcher.set(monitor_site.goes_wrong_later)
    api.start_monitor(UUID)
    assert "ERROR vm1 is down" in watcher.log("ERROR")
    assert watcher.ended()


def test_its_log_is_added_to(watcher: Watcher) -> None:
    watcher.set(monitor_site.writes_from_c)
    for count in (1, 2):
        api.start_monitor(UUID)
        assert watcher.ended()
        assert watcher.log("from C").count("from C") == count


def test_a_second_one_leaves_it_to_the_first(watcher: Watcher) -> None:
    watcher.set(monitor_site.watch)
    api.start_monitor(UUID)
    first = watcher.pid
    api.start_monitor(UUID)
    assert watcher.pid == first
    os.kill(first, signal.SIGTERM)
    assert watcher.ended()


def test_one_that_watches_the_domain_before_is_not_taken_for_one_of_this(watcher: Watcher) -> None:
    """A revert has destroyed that domain; its process may not have seen this yet."""
    watcher.set(monitor_site.watch)
    api.start_monitor(UUID)
    first = watcher.pid
    (watcher.here / "domid").write_text("2")
    api.start_monitor(UUID)
    second = watcher.pid
    assert second != first
    os.kill(first, 0)
    api.start_monitor(UUID)  # the second is enough
    assert watcher.pid == second
    os.kill(first, signal.SIGTERM)
    os.kill(second, signal.SIGTERM)
    assert watcher.ended()


def test_a_log_that_is_a_link_is_not_followed(watcher: Watcher) -> None:
    precious = watcher.here / "precious"
    precious.write_text("precious")
    (watcher.here / "pyxlsnap-vm_1.log").symlink_to(precious)
    watcher.set(monitor_site.writes_from_c)
    api.start_monitor(UUID)
    assert watcher.ended()
    assert precious.read_text() == "precious"


def test_a_domain_that_is_not_there(watcher: Watcher) -> None:
    watcher.set(monitor_site.watch)
    other = UUID.replace("c0de", "beef")
    with pytest.raises(OperationFailed, match=f"did not start: there is no domain {other}"):
        api.start_monitor(other)


@pytest.mark.parametrize(
    ("scenario", "why"),
    [(monitor_site.has_a_bug, "a bug"), (monitor_site.aborts, "its process ended")],
)
def test_a_watch_that_does_not_begin(
    watcher: Watcher, scenario: Callable[[Watch], None], why: str
) -> None:
    watcher.set(scenario)
    with pytest.raises(OperationFailed, match=f"did not start: {why}"):
        api.start_monitor(UUID)


def test_a_name_in_place_of_a_uuid(watcher: Watcher) -> None:
    with pytest.raises(UsageError, match="'vm1' is not a domain's uuid"):
        api.start_monitor("vm1")
