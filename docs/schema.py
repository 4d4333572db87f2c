"""The JSON Schema of ``pyxlsnap --json`` and ``--progress=json``, made from their classes."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sphinx.pycode import ModuleAnalyzer

import pyxlsnap
from docs.commands import commands
from pyxlsnap.cli.app import JSON_VERSION
from pyxlsnap.cli.commands import RUN
from pyxlsnap.cli.lines import LINE_VERSION, LogLine, ProgressLine
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.errors import PyxlsnapError

Schema = dict[str, Any]

#: the classes of the lines of ``--progress=json``
LINES = (ProgressLine, LogLine)

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}
_ROLE = re.compile(r":\w+:`([^`]*)`")


def schema() -> Schema:
    """The schema of a document: the result of a command, or an error.

    Its definition ``Line`` is the schema of a line of ``--progress=json``.
    """
    definitions: dict[str, Schema] = {}
    done = [
        _document(name, 0, result=_any_of(_results(RUN[name]), definitions))
        for name in commands(build_parser())
    ]
    failed = _document(
        [*commands(build_parser()), ""],
        sorted({e.exit_code for e in errors()} | {143}),
        error=_any_of(errors(), definitions),
    )
    definitions["Line"] = {
        "description": "A line on standard error with --progress=json.",
        "oneOf": [_line(cls, definitions) for cls in LINES],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The result of a pyxlsnap command",
        "oneOf": [*done, failed],
        "$defs": dict(sorted(definitions.items())),
    }


def errors() -> list[type[PyxlsnapError]]:
    """The classes of errors, in the order of ``pyxlsnap.__all__``."""
    public = [getattr(pyxlsnap, name) for name in pyxlsnap.__all__]
    return [c for c in public if isinstance(c, type) and issubclass(c, PyxlsnapError)]


def summary(cls: type) -> str:
    """The beginning of a class's docstring as plain text."""
    return _plain((inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "))


def comments(cls: type) -> dict[str, str]:
    """The ``#:`` comments of the attributes of a class and of its bases, as plain text."""
    found: dict[str, str] = {}
    for c in reversed(cls.__mro__):
        if c.__module__.startswith("pyxlsnap."):
            for (owner, name), lines in _attributes(c.__module__).items():
                if owner == c.__name__:
                    found[name] = _plain(" ".join(lines))
    return found


def _attributes(module: str) -> dict[tuple[str, str], list[str]]:
    return ModuleAnalyzer.for_module(module).find_attr_docs()


def _plain(text: str) -> str:
    return _ROLE.sub(r"\1", text).replace("``None``", "null").replace("``", "").strip()


def _document(command: object, exit_code: object, **content: Schema) -> Schema:
    return _object(
        {
            "pyxlsnap": _one_of(JSON_VERSION) | {"description": "the version of this format"},
            "command": _one_of(command),
            "exit_code": _one_of(exit_code),
            **content,
        }
    )


def _line(cls: type, definitions: dict[str, Schema]) -> Schema:
    version = _one_of(LINE_VERSION) | {"description": "the version of the format of the lines"}
    members = _class(cls, definitions)["properties"]
    return {"description": summary(cls)} | _object({"pyxlsnap": version, **members})


def _one_of(value: object) -> Schema:
    return {"enum": value} if isinstance(value, list) else {"const": value}


def _object(properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _results(function: object) -> tuple[type, ...]:
    """What the function behind a command may return."""
    returned = get_type_hints(function)["return"]
    return get_args(returned) or (returned,)


def _any_of(types: Sequence[Any], definitions: dict[str, Schema]) -> Schema:
    found = [_of(t, definitions) for t in types]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type, as ``json.dumps`` writes its values."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is UnionType:
        return _any_of(inner, definitions)
    if origin in (tuple, Sequence):
        return {"type": "array", "items": _of(inner[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(inner[1], definitions)}
    return _defined(hint, definitions)


def _defined(cls: type, definitions: dict[str, Schema]) -> Schema:
    """A reference to the schema of a class; defines the schema if there is none yet."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # it may refer to itself
        definitions[cls.__name__] = {"description": summary(cls), **_class(cls, definitions)}
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _class(cls: type, definitions: dict[str, Schema]) -> Schema:
    if issubclass(cls, StrEnum):
        return {"enum": [str(member) for member in cls]}
    if is_dataclass(cls):
        hints = get_type_hints(cls)
        return _members(cls, {f.name: hints[f.name] for f in fields(cls)}, definitions)
    assert issubclass(cls, PyxlsnapError)
    hints = {k: v for k, v in get_type_hints(cls.__init__).items() if k != "return"}
    found = _members(cls, hints, definitions)
    return _object({"class": {"const": cls.__name__}, **found["properties"]})


def _members(cls: type, hints: Mapping[str, Any], definitions: dict[str, Schema]) -> Schema:
    said = comments(cls)
    return _object(
        {name: _of(t, definitions) | {"description": said[name]} for name, t in hints.items()}
    )
