"""Faults at the steps of a sequence."""

from collections.abc import Callable
from typing import Protocol, cast

from pyxlsnap.create.sequence import Creation
from pyxlsnap.results import Step


class Stepwise(Protocol):
    """The part that the sequences of all operations share."""

    def steps(self) -> list[Step]: ...


def run_until(steps: list[Step], last: str) -> None:
    """Do the steps up to that one: what follows is never done, as by a process that was killed."""
    for name, do in steps:
        do()
        if name == last:
            return


def kill(sequence: Stepwise, last: str = "") -> None:
    """Do the steps up to that one; then the process is dead, with all its threads.

    Without ``last``, something raises an exception that stands for the kill.
    """
    try:
        run_until(sequence.steps(), last)
    finally:
        if isinstance(sequence, Creation):
            sequence._beside.stop()


class FailsAtStep:
    """Put before a sequence's class: it fails at one of its steps."""

    at = ""
    when = ""
    fault: Callable[[], None] = staticmethod(lambda: None)

    def steps(self) -> list[Step]:
        sequence = cast(Stepwise, super())
        return [
            (name, self._faulty(do) if name == self.at else do) for name, do in sequence.steps()
        ]

    def _faulty(self, do: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            if self.when == "after":
                do()
            self.fault()
            if self.when == "before":
                do()

        return step
