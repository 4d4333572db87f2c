"""The commands: each calls a function of :mod:`pyxlsnap.api`, or of :mod:`pyxlsnap.api.clones`."""

import argparse
from collections.abc import Callable, Mapping

from pyxlsnap import api
from pyxlsnap.api import clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.cli import render
from pyxlsnap.results import Cloned, OnProgress, Plan, Recovered, Reverted, Snapshot


def _create(given: argparse.Namespace, progress: OnProgress, cancel: Cancel) -> Snapshot | Plan:
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


def _revert(given: argparse.Namespace, progress: OnProgress, cancel: Cancel) -> Reverted | Plan:
    if given.dry_run:
        return api.plan_revert(
            given.domain,
            given.cfgfile,
            running=given.running,
            paused=given.paused,
            force=given.force,
            keep_current=given.keep_current,
            cancel=cancel,
        )
    return api.revert_snapshot(
        given.domain,
        given.cfgfile,
        running=given.running,
        paused=given.paused,
        force=given.force,
        keep_current=given.keep_current,
        monitor=given.monitor,
        on_progress=progress,
        cancel=cancel,
    )


def _clone(given: argparse.Namespace, progress: OnProgress, cancel: Cancel) -> Cloned | Plan:
    if given.dry_run:
        return clones.plan_clone(
            given.cfgfile,
            given.name,
            disks=given.disks,
            bridge=given.bridge,
            running=given.running,
            paused=given.paused,
            replace=given.replace,
            force=given.force,
            cancel=cancel,
        )
    return clones.clone_snapshot(
        given.cfgfile,
        given.name,
        disks=given.disks,
        bridge=given.bridge,
        running=given.running,
        paused=given.paused,
        replace=given.replace,
        force=given.force,
        monitor=given.monitor,
        on_progress=progress,
        cancel=cancel,
    )


def _recover(given: argparse.Namespace, progress: OnProgress, cancel: Cancel) -> Recovered:
    return api.recover(given.domain, on_progress=progress, cancel=cancel)


#: the function that runs each command of the parser
RUN: Mapping[str, Callable[[argparse.Namespace, OnProgress, Cancel], render.Result]] = {
    "snapshot-create": _create,
    "snapshot-revert": _revert,
    "snapshot-clone": _clone,
    "snapshot-recover": _recover,
}
