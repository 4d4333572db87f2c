"""The parsers of the commands of the command line."""

import argparse
from collections.abc import Mapping


def commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (found,) = [a for a in parser._actions if a.nargs == argparse.PARSER]
    assert isinstance(found.choices, Mapping)
    return found.choices
