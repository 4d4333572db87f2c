"""Directives for what the man pages take from the code: options, exit statuses, JSON documents."""

import argparse
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.rst import escape

import pyxlsnap
from docs.commands import commands
from docs.schema import LINES, comments, errors, summary
from pyxlsnap.cli.parser import build_parser

_STATUS = re.compile(r"^  (\d+(?:, \d+)*)  (.*)$", re.MULTILINE)


class _Written(SphinxDirective):
    """A directive that generates reStructuredText."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines(*self.arguments)))

    def lines(self, *arguments: str) -> Iterator[str]:
        raise NotImplementedError


class Synopsis(_Written):
    """``.. synopsis::``: the usage of each command."""

    def lines(self, *_: str) -> Iterator[str]:
        parser = build_parser()
        general = [f"[{_words(a)}]" for a in _options(parser) if a.dest != "version"]
        for name, command in commands(parser).items():
            words = [
                _words(a) if _needed(a) else f"[{_words(a)}]"
                for a in (*_positionals(command), *_options(command))
            ]
            yield " ".join(["**pyxlsnap**", *general, f"**{name}**", *words])
            yield ""


class Arguments(_Written):
    """``.. arguments:: [COMMAND]``: arguments and options of a command, or the general options."""

    def lines(self, *names: str) -> Iterator[str]:
        parser = build_parser()
        for name in names:
            parser = commands(parser)[name]
        for action in (*_positionals(parser), *_options(parser)):
            names = tuple(action.option_strings) or ("",)
            yield from _item(", ".join(_words(action, name) for name in names), action.help or "")


class ExitStatus(_Written):
    """``.. exit-status::``: each exit status and its meaning."""

    def lines(self, *_: str) -> Iterator[str]:
        for status, meaning in _STATUS.findall(build_parser().epilog or ""):
            yield from _item(f"**{status}**", meaning)


class Members(_Written):
    """``.. members:: CLASS``: the members of a result's JSON object."""

    def lines(self, *names: str) -> Iterator[str]:
        cls = {c.__name__: c for c in LINES}.get(names[0]) or getattr(pyxlsnap, names[0])
        said = comments(cls)
        for field in fields(cls):
            yield from _item(f"**{field.name}**", said[field.name])


class Errors(_Written):
    """``.. errors::``: the classes of errors, each with its exit status and members."""

    def lines(self, *_: str) -> Iterator[str]:
        for cls in errors():
            names = [p for p in inspect.signature(cls).parameters if p != "message"]
            also = f" ({', '.join(names)})" if names else ""
            yield from _item(f"**{cls.__name__}**{also}", f"{cls.exit_code}: {summary(cls)}")


def _item(term: str, text: str) -> Iterator[str]:
    yield term
    yield f"    {escape(text)}"


def _words(action: argparse.Action, name: str | None = None) -> str:
    """An argument, or an option (by default its first name) with its value."""
    name = name or next(iter(action.option_strings), "")
    value = f"*{action.metavar or action.dest}*" if action.nargs != 0 else ""
    return " ".join(filter(None, [name and f"**{name}**", value]))


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.option_strings and a.dest != "help"]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if not a.option_strings and a.nargs != argparse.PARSER]


def _needed(action: argparse.Action) -> bool:
    return not action.option_strings and action.nargs != argparse.OPTIONAL


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("synopsis", Synopsis)
    app.add_directive("arguments", Arguments)
    app.add_directive("exit-status", ExitStatus)
    app.add_directive("members", Members)
    app.add_directive("errors", Errors)
