"""The commands: each calls a function of :mod:`pyxlsnap.api`, and shows its progress."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pyxlsnap import api
from pyxlsnap.cancel import Cancel
from pyxlsnap.cli import render
from pyxlsnap.results import Plan, Progress, Recovered, Reverted, Snapshot


class Bar:
    """A progress bar, if stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            # No thread of its own: a process with one thread can fork.
            bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
            self._bar = bar(unit="B", unit_scale=True, unit_divisor=1024)
        self._phase: tuple[str, int] = ("", 0)

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            return
        if (phase := (progress.phase, progress.iteration)) != self._phase:
            self._phase = phase
            again = f", pass {progress.iteration + 1}" if progress.iteration else ""
            self._bar.reset(progress.bytes_expected or None)
            self._bar.set_description(progress.phase + again)
        self._bar.update(progress.bytes_done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _create(given: argparse.Namespace, progress: Bar, cancel: Cancel) -> Snapshot | Plan:
    if given.dry_run:
        return api.plan_create(
            given.domain,
            cfgfile=given.cfgfile,
            name=given.name,
            live=given.live,
            max_downtime=given.max_downtime,
            max_rate=given.max_rate,
            cancel=cancel,
        )
    return api.create_snapshot(
        given.domain,
        cfgfile=given.cfgfile,
        name=given.name,
        live=given.live,
        max_downtime=given.max_downtime,
        max_rate=given.max_rate,
        monitor=given.monitor,
        on_progress=progress,
        cancel=cancel,
    )


def _revert(given: argparse.Namespace, progress: Bar, cancel: Cancel) -> Reverted | Plan:
    if given.dry_run:
        return api.plan_revert(
            given.domain,
            given.cfgfile,
            running=given.running,
            force=given.force,
            keep_current=given.keep_current,
            cancel=cancel,
        )
    return api.revert_snapshot(
        given.domain,
        given.cfgfile,
        running=given.running,
        force=given.force,
        keep_current=given.keep_current,
        monitor=given.monitor,
        on_progress=progress,
        cancel=cancel,
    )


def _recover(given: argparse.Namespace, progress: Bar, cancel: Cancel) -> Recovered:
    return api.recover(given.domain, on_progress=progress, cancel=cancel)


#: the function that runs each command of the parser
RUN: Mapping[str, Callable[[argparse.Namespace, Bar, Cancel], render.Result]] = {
    "snapshot-create": _create,
    "snapshot-revert": _revert,
    "snapshot-recover": _recover,
}
