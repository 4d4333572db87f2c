"""The lab as the tests see it: one machine, warm, with the package under test installed."""

from pathlib import Path
from typing import Self

from . import cache, state
from .dom0 import CommandFailed, Dom0
from .guests import STANDARD, Guest, fresh
from .install import install
from .machine import Machine


class Lab:
    """A running machine, which can be exchanged for a fresh one at any time."""

    def __init__(self, say: cache.Say) -> None:
        self._say = say
        self._awake: set[str] = set()
        self._spent = False
        self._state = state.ensure(say)
        self.machine = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dom0(self) -> Dom0:
        return self.machine.dom0

    def guest(self, name: str, kind: str | None = None) -> Guest:
        """A guest that is there; the standard ones are named after their kind.

        They are paused until asked for here, and run from then on until ``rest``.
        """
        if name in STANDARD and name not in self._awake:
            self._awake.add(name)
            self.dom0.run(["xl", "unpause", name], check=False)
        return Guest(self.dom0, name, kind)

    def awake(self) -> list[Guest]:
        """The standard guests that the test at hand has asked for, as far as they are there."""
        return [guest for name in self._awake if (guest := Guest(self.dom0, name)).exists()]

    def rest(self) -> None:
        """Pause the standard guests again, as far as they are there."""
        # (Pauses are counted: one that a test has paused must not be paused twice.)
        pause = "; ".join(
            f"grep -q '^{name} .* [r-][b-]p' /tmp/list || xl pause {name}" for name in self._awake
        )
        if pause:
            self.dom0.run(f"xl list >/tmp/list; {pause}", check=False)
        self._awake.clear()

    def fresh(self, name: str, kind: str) -> Guest:
        """Start another guest, on new disks; returns when it ticks."""
        return fresh(self.dom0, name, kind)

    def reset(self) -> None:
        """Throw the machine away and start a fresh one. Guests taken before are void."""
        self.machine.close()
        self._awake.clear()
        self._spent = False
        self.machine = self._start()

    def spend(self) -> None:
        """The next test shall have a fresh machine."""
        self._spent = True

    def intact(self) -> bool:
        """Whether the standard guests, and no others, are there, all paused and well."""
        if self._spent or not self.machine.alive:
            return False
        try:
            listing = self.dom0.run(["xl", "list"], timeout=20).out.splitlines()
            states = {line.split()[0]: line.split()[-2] for line in listing[2:]}
            # (For a moment after the pause a guest that was idle is blocked, too.)
            paused = {name for name, state in states.items() if state[2:] == "p---"}
            return paused == set(states) == set(STANDARD) and all(
                Guest(self.dom0, name).last().ok for name in STANDARD
            )
        except (OSError, CommandFailed, AssertionError):
            return False

    def collect_logs(self, dest: Path) -> None:
        self.machine.collect_logs(dest)

    def close(self) -> None:
        self.machine.close()

    def _start(self) -> Machine:
        machine = self._state.start()
        try:
            self._say("the lab's machine is up")
            install(machine.dom0, self._state.image, self._say)
        except BaseException:
            machine.close()
            raise
        return machine
