"""The code blocks of README.md: what a test runs is what is printed there."""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str
    #: the heading above the block
    heading: str = ""


def blocks(markdown: str) -> list[Block]:
    """All of them, in order.

    :raises ValueError: there is one that is indented: nobody would know what it is.
    """
    if indented := re.search(r"^    .*", _BLOCK.sub("", markdown), re.MULTILINE):
        raise ValueError(f"put this between ``` lines, with its language: {indented[0].strip()}")
    found = []
    heading, end = "", 0
    for block in _BLOCK.finditer(markdown):
        # (A comment in a block before this one is no heading.)
        headings = _HEADING.findall(markdown[end : block.start()])
        heading, end = headings[-1] if headings else heading, block.end()
        found.append(Block(block[1], block[2], heading))
    return found


def texts(language: str) -> list[str]:
    """Those of the README that are in one language."""
    return [block.text for block in blocks(README.read_text()) if block.language == language]


def shell_lines(heading: str | None = None) -> list[str]:
    """The README's commands for a shell, comments left out.

    :param heading: only those below this heading.
    """
    found = [b for b in blocks(README.read_text()) if b.language == "sh"]
    chosen = [b.text for b in found if heading in (None, b.heading)]
    lines = [line.partition(" # ")[0].strip() for text in chosen for line in text.splitlines()]
    return [line for line in lines if line]
