"""The process that watches a domain: how it starts, what it says, how it ends."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest

from pyxlsnap import api
from pyxlsnap.errors import OperationFailed, UsageError
from tests.unit.support.standin import UUID

_SITE = """
import sys
if "pyxlsnap.monitor" in sys.orig_argv:
    import contextlib, logging, os, pathlib, time
    import pyxlsnap.monitor.actions, pyxlsnap.paths, pyxlsnap.xen.toolstack
    from pyxlsnap import cancel, errors
    HERE = pathlib.Path({here!r})
    class Found:
        name = "vm/1"
    @contextlib.contextmanager
    def toolstack(**_):
        class Host:
            def find(self, domain):
                if domain != {uuid!r}:
                    raise errors.DomainNotFound(f"there is no domain {{domain}}", domain=domain)
                return Found
        yield Host()
    def monitor(host, domain, *, on_ready, cancel):
        (HERE / "pid").write_text(str(os.getpid()))
{body}
    pyxlsnap.xen.toolstack.Toolstack = toolstack
    pyxlsnap.monitor.actions.monitor = monitor
    pyxlsnap.paths.XEN_LOGS = pyxlsnap.paths.LOCKS = HERE
"""
WATCH = """
on_ready()
while not cancel.is_set():
    time.sleep(0.01)
cancel.check()
"""


class Watcher:
    """Watching processes started from now on run this in the place of a watch."""

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "site").mkdir()

    def set(self, body: str) -> None:
        text = _SITE.format(here=str(self.here), uuid=UUID, body=indent(dedent(body), " " * 8))
        (self.here / "site" / "sitecustomize.py").write_text(text)

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
        end = time.monotonic() + 10
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return not Path(f"/proc/{self.pid}").exists()


@pytest.fixture
def watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    found = Watcher(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
    yield found
    if (tmp_path / "pid").exists() and not found.ended():
        os.kill(found.pid, signal.SIGKILL)
        pytest.fail("it is still there")


def test_it_goes_on_by_itself_and_ends_at_sigterm(watcher: Watcher) -> None:
    watcher.set(WATCH)
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
    watcher.set("on_ready()")
    api.start_monitor(UUID)
    assert watcher.ended()
    assert f"watching vm/1 ({UUID})" in watcher.log("watching")


def test_what_went_wrong_later_is_in_its_log(watcher: Watcher) -> None:
    watcher.set("on_ready()\nraise errors.NeedsAttention('vm1 is down', step='restart')")
    api.start_monitor(UUID)
    assert "ERROR vm1 is down" in watcher.log("ERROR")
    assert watcher.ended()


def test_its_log_is_added_to(watcher: Watcher) -> None:
    watcher.set("on_ready()\nos.write(2, b'from C\\n')")
    for count in (1, 2):
        api.start_monitor(UUID)
        assert watcher.ended()
        assert watcher.log("from C").count("from C") == count


def test_a_second_one_leaves_it_to_the_first(watcher: Watcher) -> None:
    watcher.set(WATCH)
    api.start_monitor(UUID)
    first = watcher.pid
    api.start_monitor(UUID)
    assert watcher.pid == first
    os.kill(first, signal.SIGTERM)
    assert watcher.ended()


def test_one_waits_for_that_of_the_domain_before(watcher: Watcher) -> None:
    """A revert has destroyed that domain; its process sees it soon."""
    watcher.set(WATCH)
    api.start_monitor(UUID)
    first = watcher.pid
    timer = threading.Timer(0.5, os.kill, (first, signal.SIGTERM))
    timer.start()
    api.start_monitor(UUID)
    timer.join()
    assert watcher.pid != first
    os.kill(watcher.pid, signal.SIGTERM)
    assert watcher.ended()


def test_a_log_that_is_a_link_is_not_followed(watcher: Watcher) -> None:
    precious = watcher.here / "precious"
    precious.write_text("precious")
    (watcher.here / "pyxlsnap-vm_1.log").symlink_to(precious)
    watcher.set("on_ready()\nos.write(2, b'from C\\n')")
    api.start_monitor(UUID)
    assert watcher.ended()
    assert precious.read_text() == "precious"


def test_a_domain_that_is_not_there(watcher: Watcher) -> None:
    watcher.set(WATCH)
    other = UUID.replace("c0de", "beef")
    with pytest.raises(OperationFailed, match=f"did not start: there is no domain {other}"):
        api.start_monitor(other)


@pytest.mark.parametrize(
    ("body", "why"), [("raise RuntimeError('a bug')", "a bug"), ("os.abort()", "its process ended")]
)
def test_a_watch_that_does_not_begin(watcher: Watcher, body: str, why: str) -> None:
    watcher.set(body)
    with pytest.raises(OperationFailed, match=f"did not start: {why}"):
        api.start_monitor(UUID)


def test_what_is_no_uuid(watcher: Watcher) -> None:
    with pytest.raises(UsageError, match="'vm1' is not a domain's uuid"):
        api.start_monitor("vm1")
