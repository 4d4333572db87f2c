"""The code blocks of the guide, docs/guide: what a test runs is what is printed there."""

import re
from textwrap import dedent

from tests.project import PROJECT
from tests.readme import Block

GUIDE = PROJECT / "docs" / "guide"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?: {3}.*\n|\n)+)", re.MULTILINE)
#: the blocks that need a real Xen: page and number. tests/lab/test_guide.py runs them, and those of
#: the page "library" tests/lab/test_readme.py
IN_LAB = {
    ("backups", 4),
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
    text = (GUIDE / f"{page}.rst").read_text()
    return [Block(language, dedent(body).strip() + "\n") for language, body in _BLOCK.findall(text)]


def pages() -> list[str]:
    """The names of all pages."""
    return sorted(path.stem for path in GUIDE.glob("*.rst"))
