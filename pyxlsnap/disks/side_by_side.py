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
    those that have not begun are not begun. One work is done on this thread.

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

    threads = [threading.Thread(target=do, name="pyxlsnap-disk") for _ in works[:_AT_ONCE]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        for other in failures[1:]:
            failures[0].add_note(str(other))
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
