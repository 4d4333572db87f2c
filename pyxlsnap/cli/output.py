"""What a command writes to stderr while its operation runs: messages, and its progress."""

import sys
from collections.abc import Callable

from pyxlsnap.cli.lines import ProgressLine
from pyxlsnap.cli.progress import Bar, Meter, Thinned
from pyxlsnap.cli.stderr import Messages
from pyxlsnap.results import Progress


class Output(Messages):
    """Writes to stderr as ``--progress`` says.

    :param how: a value of the option.
    :param started: when the command was started, by ``time.monotonic``.
    """

    def __init__(self, how: str, started: float) -> None:
        super().__init__(as_json=how == "json")
        self.started = started
        self._meter = Meter(started)
        self._bar = Bar() if how == "auto" and sys.stderr.isatty() else None
        self._show: Callable[[ProgressLine], None] | None = None
        if self.as_json or self._bar:
            self._show = Thinned(self.write if self.as_json else self._bar)  # type: ignore[arg-type]

    def progress(self, progress: Progress) -> None:
        """Show the progress of the operation."""
        if self._show is not None:
            self._show(self._meter(progress))

    def close(self) -> None:
        """End the bar, so that what follows is on a line of its own."""
        if self._bar is not None:
            self._bar.close()
