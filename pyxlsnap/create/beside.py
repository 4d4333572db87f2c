"""The window: what is done while the guest is suspended, beside its memory.

libxl reports that the guest is suspended, and goes on with the memory: in a live snapshot with what
has changed last, else with all of it. The guest's disks are at rest from then on. So the disk
snapshots that can be undone are taken at the same time, on threads of their own, and on another the
devices are looked at for the last time (:mod:`.last_look`). What cannot be undone follows when the
memory is complete.
A report that is lost lets all of this begin when libxl has returned.

The guest waits for what takes longest, which is mostly QEMU's work on the disk snapshots. So what
QEMU is told comes first: the look at the devices waits a moment, and contexts are closed when the
guest runs again. On a single processor two things at a time take longer than one after the other:
there the disk snapshots of a live guest wait for the rest of its memory, if that comes in a moment.

So says Xen's source, from 4.16 to 4.22:

* The report comes when Xen has the guest for suspended. For an HVM guest libxl has stopped QEMU by
  then, and has its state. The QEMU of other guests goes on with the requests that it has. A driver
  in a restored guest sends all requests again whose end it has not seen; Linux's reads no old ring.
* At the end libxl tells the QEMU of an HVM guest to record no more, waits for ten seconds, and
  succeeds without an answer, too.

The journal needs no note of the beginning: it has named all that a strategy may make since before
anything was made, and a recovery takes each disk snapshot for one that may have been begun.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from pyxlsnap.create.last_look import look_at, looking
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.disks.abilities import BesideStrategy
from pyxlsnap.errors import PyxlsnapError

log = logging.getLogger(__name__)

_RETRY_S = 0.05
_TELL_EVERY_S = 5.0
#: seconds that the suspend waits at most for the first look at the devices
_FIRST_LOOK_S = 5.0
#: every so many seconds the reports of changes of devices are taken
_REPORTS_S = 1.0
#: seconds that the look at the devices waits at most, for the disk snapshots or for libxl's return
_LOOK_AFTER_S = 0.5
#: on a single processor, of a live guest: seconds that the disk snapshots wait at most for the rest
#: of the memory, and that the look then waits for them, until QEMU has been told of them
_REST_S, _TELL_FIRST_S = 0.1, 0.05


class _Thread:
    """One of the threads.

    :param run: called on the thread with a function that ends the wait for the work: what ``run``
        does after that (such as closing a context) keeps nobody waiting.
    """

    def __init__(self, name: str, run: Callable[[Callable[[], None]], None]) -> None:
        self._run = run
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._do, name=f"pyxlsnap-{name}", daemon=True)
        self._done.set()  # until it is started

    def start(self) -> None:
        """:raises RuntimeError: the system has no more threads."""
        self._done.clear()
        try:
            self._thread.start()
        except BaseException:
            self._done.set()
            raise

    def _do(self) -> None:
        try:
            self._run(self._done.set)
        finally:
            self._done.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the work is done; whether it is, or was never begun."""
        return self._done.wait(timeout_s)

    def join(self) -> None:
        """Wait until the thread has ended, if it was started."""
        if self._thread.ident:
            self._thread.join()


class Beside:
    """Put around the call of libxl that suspends the guest and writes its memory.

    :meth:`begin` lets the work begin, :meth:`finish` waits for it. A failure aborts the call of
    libxl, and is raised by :meth:`finish`. If the call fails, the work is given up.
    """

    def __init__(self, plan: CreatePlan) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._lock = threading.Lock()
        self._go = threading.Event()
        #: the call of libxl has returned: an abort would reach the next call
        self._over = False
        #: the same; also set if nobody is to wait for that
        self._rest_over = threading.Event()
        self._in_turn = plan.live and os.cpu_count() == 1
        self._lanes_left = len(plan.lanes)
        #: no lane is at work any more, or nobody is to wait for that
        self._lanes_over = threading.Event()
        if not plan.lanes:
            self._wait_no_more()
        #: set when the guest runs again, or an undo is under way: contexts may be closed
        self.unhurried = threading.Event()
        self._began_at = self._ended_at = 0.0
        #: the first look at the devices is over
        self._looked_first = threading.Event()
        self._looked = False
        self._took: dict[str, float] = {}
        self._threads = [_Thread("devices", self._look)]
        self._threads += [
            _Thread(f"disks-{number}", partial(self._take, lane))
            for number, lane in enumerate(plan.lanes)
        ]
        #: the first failure
        self.error: BaseException | None = None

    @property
    def begun(self) -> bool:
        """Whether disk snapshots may have been taken."""
        return bool(self._began_at)

    @property
    def seconds(self) -> float:
        """How long after the suspend the last of the disk snapshots was there."""
        return max(0.0, self._ended_at - self._began_at)

    def seconds_of(self, kind: str) -> float:
        """For how long the strategy of that kind was at work, also in vain; 0.0 if it was not."""
        return self._took.get(kind, 0.0)

    def __enter__(self) -> "Beside":
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._call_is_over()
            raise
        self._looked_first.wait(_FIRST_LOOK_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self._plan.memory_read.set()
        else:
            self._give_up()
        self._call_is_over()

    def begin(self) -> None:
        """The guest is suspended. Any thread may call this; it does not wait. Idempotent."""
        self._began_at = self._began_at or time.monotonic()
        self._go.set()

    def finish(self) -> None:
        """Wait until all is done; begin, if that has not been done. The call of libxl has returned.

        :raises BaseException: the first failure.
        """
        self.begin()
        for thread in self._threads:
            thread.wait()
        self.raise_failure()
        if not self._looked:
            look_at(self._guest, self._plan)

    def raise_failure(self) -> None:
        """:raises BaseException: the first failure, if any."""
        if self.error:
            raise self.error

    def stop(self) -> None:
        """Give up, and wait until nothing is under way any more, however long that takes.

        The guest may be suspended; the user is told of the wait. Idempotent.
        """
        self._give_up()
        try:
            for thread in self._threads:
                while not thread.wait(_TELL_EVERY_S):
                    self._plan.waiting("the disk snapshots that are under way")
        finally:
            self.unhurried.set()
        self._plan.halt.clear()

    def close(self) -> None:
        """Wait until the threads have ended. The guest runs, or :meth:`stop` was called."""
        self.unhurried.set()
        for thread in self._threads:
            thread.join()

    def _call_is_over(self) -> None:
        with self._lock:
            self._over = True
        self._rest_over.set()

    def _give_up(self) -> None:
        self._plan.halt.set()
        self._go.set()
        self._wait_no_more()

    def _wait_no_more(self) -> None:
        """Let look and disks wait for each other, and for libxl, no more."""
        self._lanes_over.set()
        self._rest_over.set()

    def _look(self, done: Callable[[], None]) -> None:
        """Look at the devices. (Without a context of its own it is done by :meth:`finish`.)"""
        with ExitStack() as closing:
            try:
                own = closing.enter_context(self._guest.on_its_own())
                last = closing.enter_context(looking(own, self._plan))
            except PyxlsnapError as e:
                log.info("the devices of %s are looked at after its memory: %s", self._guest, e)
                return
            finally:
                self._looked_first.set()
            try:
                while not self._go.wait(_REPORTS_S):
                    last.take_reports()
                self._rest_over.wait(_LOOK_AFTER_S)
                if self._in_turn:
                    self._lanes_over.wait(_TELL_FIRST_S)
                if not self._plan.halt.is_set():
                    last.look()
                    self._looked = True
            except BaseException as e:
                self._failed(e)
            finally:
                done()
            self.unhurried.wait()

    def _take(self, lane: Sequence[BesideStrategy], _: Callable[[], None]) -> None:
        try:
            self._go.wait()
            if self._in_turn:
                self._rest_over.wait(_REST_S)
            if self._plan.halt.is_set():
                return
            for strategy in lane:
                self._plan.halt.check()
                log.debug("%s: %s, beside the memory", self._guest, strategy.kind)
                begun = time.monotonic()
                try:
                    strategy.create_beside()
                finally:
                    self._note(strategy.kind, begun)
        except BaseException as e:
            self._failed(e)
        finally:
            self._lane_is_done()

    def _lane_is_done(self) -> None:
        with self._lock:
            self._lanes_left -= 1
        if not self._lanes_left:
            self._wait_no_more()

    def _note(self, kind: str, begun: float) -> None:
        with self._lock:
            self._ended_at = time.monotonic()
            self._took[kind] = self._ended_at - begun

    def _failed(self, error: BaseException) -> None:
        """Give up, and abort the call of libxl. A failure after another one is its consequence."""
        with self._lock:
            if self.error is None and not self._plan.halt.is_set():
                self.error = error
            self._give_up()
        while not self._aborted():
            time.sleep(_RETRY_S)

    def _aborted(self) -> bool:
        with self._lock:  # no abort may begin when the call has returned
            return self._over or self._guest.abort()
