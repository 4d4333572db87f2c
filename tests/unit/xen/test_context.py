"""A context where there is no Xen, and in processes that must not use one."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.errors import ClosedError, ForkedError, XenUnavailable
from pyxlsnap.xen.callbacks import Bridge
from pyxlsnap.xen.context import Context, why_another_xen, why_no_xen
from pyxlsnap.xen.ffi import XEN_RELEASE, C, ffi
from pyxlsnap.xen.toolstack import Toolstack
from pyxlsnap.xen.xenstore import Xenstore
from tests.unit.support.resources import Resources, python
from tests.unit.support.waiting import on_xen


@on_xen
def test_no_xen_is_one_line_and_leaves_nothing() -> None:
    before = Resources()
    for _ in range(3):
        with pytest.raises(XenUnavailable) as caught:
            Toolstack()
        assert re.fullmatch(r"cannot talk to Xen: .* does not run under Xen: .*", str(caught.value))
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("there", "allowed", "says"),
    [
        ([], True, "does not run under Xen: run pyxlsnap in the dom0"),
        (
            ["sys/hypervisor/uuid", "proc/xen/capabilities"],
            True,
            "a guest of Xen: run pyxlsnap in dom0",
        ),
        (
            ["proc/xen/capabilities", "dev/xen/privcmd"],
            False,
            "a guest of Xen: run pyxlsnap in dom0",
        ),
        (
            ["dom0", "dev/xen/privcmd"],
            False,
            "no permission to use /dev/xen/privcmd: run pyxlsnap as root",
        ),
        (
            ["dom0", "proc/xen/privcmd"],
            False,
            "no permission to use /proc/xen/privcmd: run pyxlsnap as root",
        ),
        (["dom0", "dev/xen/privcmd"], True, None),
        (["proc/xen/xenbus"], True, None),
    ],
)
def test_why_there_is_no_xen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[str],
    allowed: bool,
    says: str | None,
) -> None:
    for name in there:
        path = tmp_path / ("proc/xen/capabilities" if name == "dom0" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("control_d\n" if name == "dom0" else "")
    monkeypatch.setattr(os, "access", lambda *_: allowed)
    found = why_no_xen(tmp_path)
    assert (says in str(found)) if says else found is None


def running(sys: Path, major: str, minor: str) -> Path:
    """A /sys that names the Xen that runs."""
    version = sys / "hypervisor/version"
    version.mkdir(parents=True)
    (version / "major").write_text(f"{major}\n")
    (version / "minor").write_text(f"{minor}\n")
    return sys


@pytest.mark.parametrize("runs", [(4, 20), (4, 18), (5, 19)])
def test_another_xen_is_told_with_both_releases(tmp_path: Path, runs: tuple[int, int]) -> None:
    major, minor = runs
    said = why_another_xen((4, 19), running(tmp_path, str(major), str(minor)))
    assert said == (
        f"this pyxlsnap is built for Xen 4.19, and Xen {major}.{minor} runs: install the pyxlsnap "
        f"that is built for Xen {major}.{minor}, or boot Xen 4.19"
    )


def test_the_same_xen_and_a_kernel_that_does_not_say_are_taken(tmp_path: Path) -> None:
    assert why_another_xen((4, 19), tmp_path) is None
    assert why_another_xen((4, 19), running(tmp_path / "odd", "?", "?")) is None
    assert why_another_xen((4, 19), running(tmp_path / "same", "4", "19")) is None


def test_a_context_for_another_xen_is_refused_before_libxl_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = XEN_RELEASE
    monkeypatch.setattr(paths, "SYS", running(tmp_path, str(major), str(minor + 1)))
    before = Resources()
    with pytest.raises(XenUnavailable, match=rf"built for Xen {major}\.{minor}, and "):
        Context()
    before.assert_unchanged()


@pytest.mark.parametrize(
    "ignore",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        """
import ctypes
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.sigaction.argtypes = [ctypes.c_int, ctypes.POINTER(Action), ctypes.c_void_p]
assert libc.sigaction(signal.SIGCHLD, Action(flags=2), None) == 0  # SA_NOCLDWAIT
""",
    ],
    ids=["SIG_IGN", "SA_NOCLDWAIT"],
)
def test_a_process_that_ignores_sigchld_is_refused(ignore: str) -> None:
    code = (
        f"import signal\n{ignore}\n"
        "from pyxlsnap import Toolstack, XenUnavailable\n"
        "try:\n    Toolstack()\n"
        "except XenUnavailable as e:\n    print(e)\n"
    )
    run = python(code)
    assert run.stderr == ""
    assert run.stdout.startswith("SIGCHLD is ignored in this process")
    assert run.stdout.count("\n") == 1


def test_a_process_that_handles_sigchld_is_not() -> None:
    previous = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        assert not C.pyxlsnap_sigchld_is_ignored()
    finally:
        signal.signal(signal.SIGCHLD, previous)


class NoXen(Context):
    """A context without libxl: only what stands before libxl is used."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ctx = ffi.cast("void *", 1)
        self._xenstore = Xenstore()
        self._lock = threading.RLock()
        self._bridge = Bridge()


def test_a_forked_child_is_told_and_closing_there_is_harmless() -> None:
    context = NoXen()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            context.close()
            context.domains()
        except ForkedError:
            status = 42
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    context._bridge.close()


def test_a_closed_context_is_told() -> None:
    context = NoXen()
    context._ctx = ffi.NULL
    assert context.closed
    for call in (context.domains, context.abort, lambda: context.xenstore_read("domid")):
        with pytest.raises(ClosedError):
            call()
    context.close()
