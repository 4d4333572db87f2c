"""Letting a guest run again, however long its QEMU needs until it answers.

libxl has the QEMU of an HVM guest continue before it resumes or unpauses the guest, and gives up
after a minute. A QEMU answers nothing while it works inside an image, or waits for storage.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from pyxlsnap.errors import XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import Process

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TIMED_OUT = -9  # libxl's ERROR_TIMEDOUT: nothing was done to the guest
#: libxl's errors for the answers of QEMU (ERROR_UNKNOWN_QMP_ERROR to ERROR_QEMU_API)
_ANSWERS = range(-32, -26)
#: what libxl logs if it did not come to resume the guest: after its third try, for one, a QEMU that
#: stands still takes no more connections, and that is an ERROR_FAIL
_QEMU_FAILED = "Failed to resume device model"
_AGAIN_S = 1.0
_TELL_EVERY_S = 5.0


def patiently(
    guest: Guest,
    do: Callable[[], _T],
    waiting: Callable[[str], None],
    *,
    at_once: bool = True,
) -> _T:
    """Call what resumes or unpauses a guest, until its QEMU has answered or ended.

    :param waiting: called every few seconds, on another thread, with what is waited for; what it
        raises ends the wait before the next call of ``do``.
    :param at_once: ``do`` does nothing else; if false, it may wait for something else first, and
        ``waiting`` is called only after its first failure.
    :returns: the result of ``do``.
    :raises PyxlsnapError: of ``do``: QEMU has answered, or has ended.
    """
    if not at_once:
        try:
            return do()
        except XenError as e:
            _notice_answer(guest, e)
    with _telling(partial(waiting, "QEMU to answer")) as raised:
        while True:
            try:
                return do()
            except XenError as e:
                _notice_answer(guest, e)
            if raised:
                raise raised[0]
            time.sleep(_AGAIN_S)


def _notice_answer(guest: Guest, error: XenError) -> None:
    """:raises XenError: the same one, unless the guest's QEMU lives and did not answer."""
    answered = error.rc in _ANSWERS or not any(_QEMU_FAILED in line for line in error.log)
    if (answered and error.rc != _TIMED_OUT) or not _lives(guest):
        raise error
    log.info("%s; trying again", error)


def _lives(guest: Guest) -> bool:
    """Whether the guest has a QEMU that has not ended."""
    with Process(guest.device_model_pid()) as qemu:
        return not qemu.ended(within_s=0)


@contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Call ``tell`` again and again meanwhile, on another thread, until it raises something."""
    over = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        while not over.wait(_TELL_EVERY_S) and not raised:
            try:
                tell()
            except BaseException as e:
                raised.append(e)

    thread = threading.Thread(target=run, name="pyxlsnap-waiting", daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        over.set()
        thread.join()
