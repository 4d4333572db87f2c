"""Values, errors and log records as plain values that JSON can carry, and back.

Used between caller and worker, in the journal, and for the command line's JSON documents.
"""

import logging
import types
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pyxlsnap.errors import PyxlsnapError

Message = dict[str, Any]

_T = TypeVar("_T")

_hints = cache(get_type_hints)


def rebuild(kind: Any, plain: Any) -> Any:
    """Make a value of a type from what ``dataclasses.asdict`` and JSON made of the value.

    :param kind: a dataclass, a tuple of any length, a mapping from strings, an enum, ``… | None``,
        or a type that JSON has itself.
    :raises TypeError, ValueError: the plain value does not fit the type.
    """
    if get_origin(kind) in (Union, types.UnionType):
        kind = types.NoneType if plain is None else get_args(kind)[0]
    if isinstance(kind, type) and is_dataclass(kind):
        return _rebuild_dataclass(kind, plain)
    if get_origin(kind) is tuple:
        return tuple(rebuild(get_args(kind)[0], value) for value in _checked(list, plain))
    if get_origin(kind) in (dict, Mapping):
        inner = get_args(kind)[1]
        return {key: rebuild(inner, value) for key, value in _checked(dict, plain).items()}
    if issubclass(kind, Enum):
        return kind(plain)
    return _checked(kind, plain)


def checked(kind: type[_T], value: _T) -> _T:
    """The same value, if :func:`rebuild` can make it again. Other packages' code may not look.

    :raises TypeError: it cannot.
    """
    rebuilt: _T = rebuild(kind, asdict(value))  # type: ignore[call-overload]
    return rebuilt


def _rebuild_dataclass(kind: type, plain: Any) -> Any:
    hints = _hints(kind)
    values = _checked(dict, plain)
    if unknown := values.keys() - hints.keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(
        **{name: _rebuild_field(name, hints[name], value) for name, value in values.items()}
    )


def _rebuild_field(name: str, kind: Any, plain: Any) -> Any:
    try:
        return rebuild(kind, plain)
    except (TypeError, ValueError) as e:
        raise TypeError(f"{name}: {e}") from e


def _checked(kind: type, plain: Any) -> Any:
    """Check the type of a plain value. A tuple also is a list: the value may not come from JSON."""
    wanted = {float: (float, int), list: (list, tuple)}.get(kind, (kind,))
    if not isinstance(plain, wanted) or (isinstance(plain, bool) and kind is not bool):
        raise TypeError(f"{plain!r:.40} is not of type {kind.__name__}")
    return plain


_EXTRA = ("operation", "domain")


def log_to_plain(record: logging.LogRecord) -> Message:
    """A log record as plain values."""
    values: Message = {
        "name": record.name,
        "levelno": record.levelno,
        "levelname": record.levelname,
        "msg": record.getMessage(),
        "created": record.created,
    }
    return values | {k: getattr(record, k) for k in _EXTRA if hasattr(record, k)}


def log_from_plain(values: Message) -> logging.LogRecord:
    """Make a log record from the values of :func:`log_to_plain`."""
    return logging.makeLogRecord(values)


def error_to_plain(error: PyxlsnapError) -> dict[str, Any]:
    """An error as plain values: the name of its class, and its attributes."""
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(error).items()}
    return {"class": type(error).__name__, **attributes}


def error_from_plain(values: dict[str, Any]) -> PyxlsnapError:
    """Make an error from the values of :func:`error_to_plain`.

    An error of a class that does not exist here becomes a :class:`PyxlsnapError`.
    """
    cls = _classes().get(values["class"], PyxlsnapError)
    error = cls.__new__(cls)
    error.args = (values["message"],)
    for name, value in values.items():
        if name != "class":
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error


def _classes() -> dict[str, type[PyxlsnapError]]:
    found: dict[str, type[PyxlsnapError]] = {}
    todo = [PyxlsnapError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo += cls.__subclasses__()
    return found
