"""Operations that log."""

import logging

from pyxlsnap.results import Recovered, Snapshot
from tests.unit.support.scenarios.ordinary import SNAPSHOT, recovered
from tests.unit.support.standin_site import Call


def error_of_libxl(_: Call) -> Snapshot:
    log = logging.getLogger("pyxlsnap.libxl")
    log.debug("too fine")
    log.error("50%% %s", "x", extra={"operation": "create", "domain": "vm1"})
    return SNAPSHOT


def of_three_libraries(_: Call) -> Snapshot:
    logging.getLogger("pyxlsnap.create.sequence").warning("of ours")
    of_libxl = {"operation": "watch", "domain": "vm1 itself"}
    logging.getLogger("pyxlsnap.libxl").warning("of libxl", extra=of_libxl)
    logging.getLogger("another.library").warning("of others")
    return SNAPSHOT


def critical(_: Call) -> Snapshot:
    logging.getLogger("pyxlsnap.create.sequence").critical("x")
    return SNAPSHOT


def warning_of_a_recovery(call: Call) -> Recovered:
    logging.getLogger("pyxlsnap.x").warning("x")
    return recovered(call)
