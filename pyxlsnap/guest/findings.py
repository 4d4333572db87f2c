"""What a check of the host found before a revert, and how much it matters."""

from collections.abc import Iterable
from enum import Enum, auto

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.text import one_line


class Grade(Enum):
    """What follows from a finding."""

    #: libxl, or a program that libxl starts, fails because of it
    REFUSED = auto()
    #: it may fail: nobody but the user can know
    RISKY = auto()
    #: the revert works, and the user should know
    SAID = auto()


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition that was found, as a clause that names the way out."""

    grade: Grade
    text: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found for one revert."""

    risks: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, domain: str, found: Iterable[Finding]) -> "Findings":
        """Sort the findings.

        :param domain: the name of the domain to be restored.
        :raises Refused: the restore would fail.
        """
        # (Two network devices on one bridge have the same finding.)
        texts = {
            grade: tuple(dict.fromkeys(f.text for f in each if f.grade is grade))
            for each in [tuple(found)]
            for grade in Grade
        }
        if texts[Grade.REFUSED]:
            raise Refused(
                f"{domain} could not be restored on this host: {'; '.join(texts[Grade.REFUSED])}"
            )
        return cls(texts[Grade.RISKY], texts[Grade.SAID])


def refused(text: str) -> Finding:
    """A finding that lets the restore fail."""
    return Finding(Grade.REFUSED, one_line(text))


def risky(text: str) -> Finding:
    """A finding that may let the restore fail."""
    return Finding(Grade.RISKY, one_line(text))


def said(text: str) -> Finding:
    """A finding that the user should know."""
    return Finding(Grade.SAID, one_line(text))
