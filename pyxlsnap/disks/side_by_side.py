"""Work on several disks at once: each on a thread of its own."""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import TypeVar

_Item = TypeVar("_Item")

_AT_ONCE = 4


def side_by_side(works: Sequence[Callable[[], object]]) -> None:
    """Do all works, a few at a time, and return when all have ended.

    A work that has begun is never left alone: if one fails, the others go on to their ends, and
    those that have not begun are not begun. The same holds if the system gives fewer
    threads. One work is done on this thread.

    :raises BaseException: the first failure. The other failures are notes on it.
    """
    if len(works) < 2:
        for work in works:
            work()
        return
    failures: list[BaseException] = []
    waiting = list(works)

    def do() -> None:
        while waiting and not failures:
            try:
                work = waiting.pop(0)
            except IndexError:
                return
            try:
                work()
            except BaseException as e:
                failures.append(e)

    _run(do, min(len(works), _AT_ONCE), failures)
    if failures:
        for other in failures[1:]:
            for line in texts(other):
                failures[0].add_note(line)
        raise failures[0]


def grouped(
    items: Iterable[_Item], key: Callable[[_Item], Hashable], do: Callable[[_Item], object]
) -> None:
    """Do it with each item: those of one key one after the other, the groups side by side.

    :raises BaseException: as :func:`side_by_side`.
    """
    groups: dict[Hashable, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)

    def one_by_one(group: Sequence[_Item]) -> None:
        for item in group:
            do(item)

    side_by_side([partial(one_by_one, group) for group in groups.values()])


def texts(failure: BaseException) -> list[str]:
    """The text of a failure, and of the others that :func:`side_by_side` has noted on it."""
    return [str(failure), *getattr(failure, "__notes__", ())]


def _run(do: Callable[[], None], count: int, failures: list[BaseException]) -> None:
    """Call ``do`` on some threads, and wait until all of them have ended.

    :param failures: gets what interrupts the wait.
    """
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=do, name="pyxlsnap-disk")
            thread.start()
            threads.append(thread)
    except RuntimeError:  # the system gives no more threads
        do()
    except BaseException as e:
        failures.append(e)
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as e:
                failures.append(e)
