"""The code blocks of the guide, docs/guide, and of pyxlsnap(1): tests run what is printed there."""

import re
from textwrap import dedent

from tests.project import PROJECT
from tests.readme import Block

GUIDE = PROJECT / "docs" / "guide"
MAN = GUIDE.parent / "pyxlsnap.1.rst"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?: {3}.*\n|\n)+)", re.MULTILINE)
#: the blocks that need a real Xen: page and number. tests/lab/test_guide.py runs them, and those of
#: the page "library" tests/lab/test_readme.py
IN_LAB = {
    ("backups", 5),
    ("moving", 0),
    ("moving", 1),
    ("disaster-recovery", 2),
    ("disaster-recovery", 3),
    ("library", 1),
    ("library", 2),
    ("library", 3),
}


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    return _blocks((GUIDE / f"{page}.rst").read_text())


def man_blocks(section: str) -> list[Block]:
    """The blocks of a section of pyxlsnap(1), in order."""
    _, _, rest = MAN.read_text().partition(f"\n{section}\n{'-' * len(section)}\n")
    return _blocks(re.split(r"\n[A-Z ,]+\n-+\n", rest)[0])


def _blocks(text: str) -> list[Block]:
    return [Block(language, dedent(body).strip() + "\n") for language, body in _BLOCK.findall(text)]


def pages() -> list[str]:
    """The names of all pages."""
    return sorted(path.stem for path in GUIDE.glob("*.rst"))
