"""The operations and planners, called with words where the package takes a request."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from pyxlsnap.cancel import Cancel
from pyxlsnap.create import feasibility as create_feasibility
from pyxlsnap.create import operation as create_operation
from pyxlsnap.create import plan as create_plan
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.delete import operation as delete_operation
from pyxlsnap.delete import plan as delete_plan
from pyxlsnap.delete.plan import DeletePlan
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.recovery import operation as recovery_operation
from pyxlsnap.request import (
    Callbacks,
    CreateRequest,
    DeleteRequest,
    FeasibilityRequest,
    RecoverRequest,
    RevertRequest,
)
from pyxlsnap.results import Deleted, Feasibility, Plan, Recovered, Reverted, Snapshot
from pyxlsnap.revert import operation as revert_operation
from pyxlsnap.revert import plan as revert_plan
from pyxlsnap.revert.plan import RevertPlan


def create(
    host: Host,
    domain: str,
    config: SnapshotConfig,
    *,
    cancel: Cancel | None = None,
    **options: Any,
) -> Snapshot:
    """See :func:`pyxlsnap.create.operation.create`: words of the request, and callbacks."""
    words, callbacks = _split(options)
    request = CreateRequest(domain=domain, config=config, **words)
    return create_operation.create(host, request, callbacks, cancel)


def preview_create(
    host: Host,
    domain: str,
    config: SnapshotConfig,
    *,
    cancel: Cancel | None = None,
    **options: Any,
) -> Plan:
    """See :func:`pyxlsnap.create.operation.preview`."""
    words, callbacks = _split(options)
    request = CreateRequest(domain=domain, config=config, **words)
    return create_operation.preview(host, request, callbacks, cancel)


def plan_create(
    host: Host,
    guest: Guest,
    config: SnapshotConfig,
    *,
    live: bool = False,
    cancel: Cancel | None = None,
) -> CreatePlan:
    """See :func:`pyxlsnap.create.plan.make_plan`."""
    request = CreateRequest(domain=guest.uuid, config=config, live=live)
    return create_plan.make_plan(host, guest, request, cancel or Cancel())


def feasibility(host: Host, domain: str, *, cancel: Cancel | None = None) -> Feasibility:
    """See :func:`pyxlsnap.create.feasibility.feasibility`."""
    return create_feasibility.feasibility(host, FeasibilityRequest(domain=domain), cancel)


def revert(
    host: Host,
    domain: str,
    config: SnapshotConfig,
    cfgfile: Path,
    *,
    cancel: Cancel | None = None,
    **options: Any,
) -> Reverted:
    """See :func:`pyxlsnap.revert.operation.revert`: words of the request, and callbacks."""
    words, callbacks = _split(options)
    request = _revert_request(domain, config, cfgfile, **words)
    return revert_operation.revert(host, request, callbacks, cancel)


def preview_revert(
    host: Host,
    domain: str,
    config: SnapshotConfig,
    cfgfile: Path,
    *,
    cancel: Cancel | None = None,
    **options: Any,
) -> Plan:
    """See :func:`pyxlsnap.revert.operation.preview`."""
    words, callbacks = _split(options)
    request = _revert_request(domain, config, cfgfile, **words)
    return revert_operation.preview(host, request, callbacks, cancel)


def plan_revert(
    host: Host,
    domain: str,
    config: SnapshotConfig,
    cfgfile: Path,
    *,
    cancel: Cancel | None = None,
    **words: Any,
) -> RevertPlan:
    """See :func:`pyxlsnap.revert.plan.make_plan`."""
    request = _revert_request(domain, config, cfgfile, **words)
    return revert_plan.make_plan(host, request, cancel or Cancel())


def delete(host: Host, cfgfile: Path, *, cancel: Cancel | None = None, **callbacks: Any) -> Deleted:
    """See :func:`pyxlsnap.delete.operation.delete`."""
    request = DeleteRequest(cfgfile=str(cfgfile))
    return delete_operation.delete(host, request, Callbacks(**callbacks), cancel)


def plan_delete(host: Host, cfgfile: Path) -> DeletePlan:
    """See :func:`pyxlsnap.delete.plan.make_plan`."""
    request = delete_operation.read_cfgfile(DeleteRequest(cfgfile=str(cfgfile)))
    return delete_plan.make_plan(host, request, delete_plan.read_parts(request))


def recover(
    host: Host,
    domain: str | None,
    *,
    wait_s: float = 0.0,
    cancel: Cancel | None = None,
    **callbacks: Any,
) -> Recovered:
    """See :func:`pyxlsnap.recovery.operation.recover`."""
    request = RecoverRequest(domain=domain, wait_s=wait_s)
    return recovery_operation.recover(host, request, Callbacks(**callbacks), cancel)


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], Callbacks]:
    names = {field.name for field in fields(Callbacks)}
    words = {key: value for key, value in options.items() if key not in names}
    return words, Callbacks(**{key: value for key, value in options.items() if key in names})


def _revert_request(
    domain: str, config: SnapshotConfig, cfgfile: Path, **words: Any
) -> RevertRequest:
    return RevertRequest(domain=domain, cfgfile=str(cfgfile), config=config, **words)
