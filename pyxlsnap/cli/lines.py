"""The lines of ``--progress=json``: each is a JSON object on stderr."""

from dataclasses import asdict
from typing import Any, Literal

from pyxlsnap.dataclass import dataclass

#: the version of the lines
LINE_VERSION = 1


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """A line of ``--progress=json`` about a step."""

    #: "step": a step has begun; "pass": a pass over the memory has begun; "progress": the step or
    #: the pass goes on
    event: Literal["step", "pass", "progress"]
    #: seconds since the command was started
    seconds: float
    #: the step, such as "checking", "memory", "disks" or "resumed"
    step: str
    #: the pass over the memory, counted from 1; ``None`` in a step that counts no bytes
    pass_number: int | None
    #: the guest is suspended, so this pass is the last one; false while more passes may follow
    last_pass: bool
    #: bytes done in this pass
    bytes_done: int
    #: bytes to do in this pass; ``None`` if the number is unknown
    bytes_expected: int | None
    #: how much of this pass is done; ``None`` if that is unknown
    percent: int | None
    #: bytes a second, on average since this pass began; ``None`` if nothing is done yet
    rate: float | None
    #: seconds to the end of this pass, at this rate; ``None`` if that is unknown. More passes may
    #: follow, and other steps do.
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of ``--progress=json`` with a message: a log record, a warning, or why it failed."""

    #: always "log"
    event: Literal["log"]
    #: seconds since the command was started
    seconds: float
    #: "debug", "info", "warning", "error" or "critical"
    level: str
    #: the logger; "pyxlsnap.libxl" for the lines of libxl
    logger: str
    #: the text for people
    message: str


def document(line: ProgressLine | LogLine) -> dict[str, Any]:
    """The object of a line."""
    return {"pyxlsnap": LINE_VERSION, **asdict(line)}
