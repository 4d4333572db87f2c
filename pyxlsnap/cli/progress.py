"""The progress of a command: a bar for people, lines of JSON for programs.

Both show the same figures, which a :class:`Meter` takes from the reports of an operation. A live
snapshot writes the memory in passes: the first one writes all of it, each further one what the
guest has changed meanwhile. Nobody knows how many passes there will be until the guest is
suspended, so the time left is always that of the present pass.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

from pyxlsnap.cli.lines import ProgressLine
from pyxlsnap.results import Progress

#: libxl says this when it has suspended the guest
_SUSPENDED = "domain now suspended"
_EVERY_S = 1.0


class Meter:
    """Measures the passes and steps of one operation.

    :param started: when the command was started, by the clock.
    :param now: the clock, in seconds.
    """

    def __init__(self, started: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = self._begun = started
        self._phase: tuple[str, int] | None = None
        self._suspended = False

    def __call__(self, progress: Progress) -> ProgressLine:
        """The figures of a report."""
        now = self._now()
        self._suspended = self._suspended or progress.phase == _SUSPENDED
        counts = bool(progress.bytes_expected or progress.bytes_done)
        event: Literal["step", "pass", "progress"] = "progress"
        if (phase := (progress.phase, progress.iteration)) != self._phase:
            event = "pass" if counts else "step"
            self._phase, self._begun = phase, now
        done, expected = progress.bytes_done, progress.bytes_expected
        took = now - self._begun
        rate = done / took if done and took > 0 else None
        left = max(0, expected - done)
        return ProgressLine(
            event=event,
            seconds=round(now - self._started, 3),
            step=progress.phase,
            pass_number=progress.iteration + 1 if counts else None,
            last_pass=counts and self._suspended,
            bytes_done=done,
            bytes_expected=expected or None,
            percent=min(100, 100 * done // expected) if expected else None,
            rate=round(rate, 1) if rate else None,
            seconds_left=round(left / rate, 1) if rate and expected else None,
        )


class Thinned:
    """Drops most of the reports of a pass: a line for each percent, or for each second."""

    def __init__(self, write: Callable[[ProgressLine], None]) -> None:
        self._write = write
        self._last: ProgressLine | None = None

    def __call__(self, line: ProgressLine) -> None:
        """Pass on the line, if it says something new."""
        last = self._last
        if (
            last is None
            or line.event != "progress"
            or line.percent != last.percent
            or line.last_pass != last.last_pass
            or line.seconds - last.seconds >= _EVERY_S
        ):
            self._last = line
            self._write(line)


def title(line: ProgressLine) -> str:
    """The step and the pass, as the bar shows them."""
    if line.pass_number is None:
        return line.step
    if line.last_pass:
        return line.step if line.pass_number == 1 else f"{line.step}, last pass"
    return f"{line.step}, pass {line.pass_number}"


def figures(line: ProgressLine) -> str:
    """Rate and time left, as the bar shows them."""
    if line.rate is None:
        return ""
    said = f"{line.rate / (1 << 20):.1f} MiB/s"
    if line.seconds_left is not None:
        of_what = "" if line.last_pass else " of this pass"
        said += f", {_minutes(line.seconds_left)} left{of_what}"
    return said


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


_STEP = "{desc} [{elapsed}]"
_PASS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Bar:
    """A progress bar on stderr, which is a terminal. Without tqdm there is none."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, line: ProgressLine) -> None:
        """Draw the bar for a line."""
        bar = self._bar = self._bar or _begun()
        if bar is None:
            return
        bar.bar_format = _STEP if line.percent is None else _PASS
        bar.set_description_str(title(line), refresh=False)
        bar.set_postfix_str(figures(line), refresh=False)
        if line.event != "progress":
            bar.reset(line.bytes_expected)
        bar.n = line.bytes_done
        bar.refresh()

    def close(self) -> None:
        """Leave the last state of the bar on the terminal."""
        if self._bar is not None:
            self._bar.close()


def _begun() -> Any:
    """A bar of tqdm; ``None`` if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # No thread of its own: a process with one thread can fork.
    bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
    return bar(unit="B", unit_scale=True, unit_divisor=1024, bar_format=_STEP)
