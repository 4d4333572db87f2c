"""A request survives the way to the worker, and what is none is refused."""

import json
import shlex
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.cli.parser import build_parser
from pyxlsnap.errors import UsageError
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.request import (
    CloneConfigurationRequest,
    CloneRequest,
    CreateRequest,
    DeleteCloneRequest,
    DeleteRequest,
    FeasibilityRequest,
    MonitorRequest,
    ReadRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    changes_something,
    clone_command,
    request_from_plain,
    request_to_plain,
    revert_command,
)
from pyxlsnap.results import Snapshot
from pyxlsnap.worker.call import run

R = TypeVar("R", bound=Request)
SECONDS = st.floats(0, 1e9)
CLONE = CloneRequest(domain="c1", cfgfile="/c")


def all_fields(cls: type[R], **special: st.SearchStrategy[Any]) -> st.SearchStrategy[R]:
    """Requests of a class, with any value in each field: else a default stays as it is."""
    return st.builds(cls, **{f.name: special.get(f.name, ...) for f in fields(cls)})


REVERTS = all_fields(RevertRequest, wait_s=SECONDS)
REQUESTS = st.one_of(
    all_fields(CreateRequest, max_downtime=st.none() | SECONDS, max_rate=st.none() | SECONDS),
    REVERTS,
    all_fields(RecoverRequest, wait_s=SECONDS),
    all_fields(DeleteRequest),
    all_fields(CloneRequest),
    all_fields(CloneConfigurationRequest),
    all_fields(DeleteCloneRequest),
    all_fields(ReadRequest),
    all_fields(MonitorRequest),
    all_fields(FeasibilityRequest),
)


@given(request=REQUESTS)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    plain = json.loads(json.dumps(request_to_plain(request)))
    assert request_from_plain(plain) == request


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"operation": "erase", "domain": "vm1"},
        {"operation": "delete", "cfgfile": "/c", "domain": "vm1"},
        {"operation": "create"},
        {"operation": "create", "domain": 7},
        {"operation": "create", "domain": "vm1", "live": "yes"},
        {"operation": "create", "domain": "vm1", "config": {"nane": "x"}},
        {"operation": "create", "domain": "vm1", "config": {"disks": [{}]}},
        {"operation": "revert", "domain": "vm1"},
        {"operation": "recover", "domain": "vm1", "force": True},
    ],
)
def test_what_is_no_request_is_an_error(plain: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        request_from_plain(plain)


def test_only_what_is_carried_out_changes_something() -> None:
    assert changes_something(CreateRequest(domain="vm1"))
    assert not changes_something(CreateRequest(domain="vm1", dry_run=True))
    assert changes_something(RevertRequest(domain="vm1", cfgfile="/c"))
    assert not changes_something(RevertRequest(domain="vm1", cfgfile="/c", dry_run=True))
    assert changes_something(DeleteRequest(cfgfile="/c"))
    assert changes_something(RecoverRequest())
    assert changes_something(CLONE)
    assert not changes_something(replace(CLONE, dry_run=True))
    assert not changes_something(CloneConfigurationRequest(clone=CLONE))
    assert changes_something(DeleteCloneRequest(domain="c1"))
    assert not changes_something(ReadRequest(cfgfile="/c"))
    assert not changes_something(MonitorRequest(domain="vm1"))
    assert not changes_something(FeasibilityRequest(domain="vm1"))


@given(request=REVERTS)
def test_the_command_of_a_revert_says_the_same(request: RevertRequest) -> None:
    try:
        words = shlex.split(revert_command(request))
    except ValueError:  # $'…', which only a shell reads
        return
    if "$" in revert_command(request):
        return
    assert words[:4] == ["pyxlsnap", "snapshot-revert", request.domain, request.cfgfile]
    assert ("--running" in words[4:]) is request.running
    assert ("--paused" in words[4:]) is request.paused
    assert ("--force" in words[4:]) is request.force
    assert ("--no-monitor" not in words[4:]) is request.monitor


def test_the_command_of_a_clone_says_the_same() -> None:
    disks = (DiskRequest("xvda", "/own, b.qcow2", "qcow2"), DiskRequest("xvdb", "/b", "raw"))
    request = replace(CLONE, disks=disks, bridge="br1", paused=True, replace=True, force=True)
    given = build_parser().parse_args(shlex.split(clone_command(request))[1:])
    assert (given.command, given.cfgfile, given.name) == ("snapshot-clone", "/c", "c1")
    assert (tuple(given.disks), given.bridge) == (disks, "br1")
    assert (given.running, given.paused, given.replace) == (False, True, True)
    assert (given.force, given.monitor) == (True, True)


def test_no_command_makes_a_clone_whose_configuration_was_changed() -> None:
    said = clone_command(replace(CLONE, edited="{}", bridge="br1", replace=True))
    assert "snapshot-clone" not in said
    assert "the same edit" in said


@pytest.mark.parametrize("request_", [CLONE, RevertRequest(domain="vm1", cfgfile="/c")])
def test_running_and_paused_exclude_each_other(request_: CloneRequest | RevertRequest) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        run(replace(request_, running=True, paused=True), Snapshot)


def test_every_request_says_what_operation_it_is() -> None:
    operations = [cls.operation for cls in get_args(Request)]
    assert len(set(operations)) == len(operations) == 10
    without = (DeleteRequest, ReadRequest, CloneConfigurationRequest)
    others = [cls for cls in get_args(Request) if cls not in without]
    assert all("domain" in {f.name for f in fields(cls)} for cls in others)
    assert DeleteRequest(cfgfile="/c").domain is None  # the cfgfile says it
    assert ReadRequest(cfgfile="/c").domain is None
    assert CloneConfigurationRequest(clone=CLONE).domain == "c1"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (CreateRequest(domain=5), "create: domain: 5 is not of type str"),  # type: ignore[arg-type]
        (CreateRequest(domain="vm1", live=None), "live: None"),  # type: ignore[arg-type]
        (RevertRequest(domain="vm1", cfgfile="/c", force="no"), "force: 'no'"),  # type: ignore[arg-type]
        (DeleteRequest(cfgfile=5), "delete: cfgfile: 5"),  # type: ignore[arg-type]
        (RecoverRequest(domain=5), "recover: domain: 5"),  # type: ignore[arg-type]
        (
            CreateRequest(domain="vm1", config=SnapshotConfig(name=7)),  # type: ignore[arg-type]
            "config: name: 7 is not of type str",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_named_before_a_worker_starts(
    request_: Request, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(request_, Snapshot)
    assert says in str(caught.value)
