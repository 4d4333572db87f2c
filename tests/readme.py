"""The code blocks of README.md: what a test runs is what is printed there."""

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """All of them, in order.

    :raises ValueError: there is one that is indented: nobody would know what it is.
    """
    if indented := re.search(r"^    .*", _BLOCK.sub("", markdown), re.MULTILINE):
        raise ValueError(f"put this between ``` lines, with its language: {indented[0].strip()}")
    return [Block(*found) for found in _BLOCK.findall(markdown)]


def texts(language: str) -> list[str]:
    """Those of the README that are in one language."""
    return [block.text for block in blocks(README.read_text()) if block.language == language]


def shell_lines() -> list[str]:
    """The README's commands for a shell, comments left out."""
    lines = [line.partition(" # ")[0].strip() for text in texts("sh") for line in text.splitlines()]
    return [line for line in lines if line]
