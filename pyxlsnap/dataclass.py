"""``dataclass``, made quickly: its classes are those of :mod:`dataclasses`, with shared methods.

``dataclasses.dataclass`` writes the methods of each class as text and compiles them, 0.7 ms a
class. An operation has some seventy classes and makes few values of them. So the classes here share
methods that look the fields up when they are called.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, **options: bool) -> Any:
        """As :func:`dataclasses.dataclass`, with ``frozen``, ``slots`` and ``kw_only``."""

        def make(cls: type) -> type:
            for name, method in (_METHODS | (_FROZEN if frozen else {})).items():
                if name not in vars(cls):
                    setattr(cls, name, method)
            return dataclasses.dataclass(init=False, repr=False, eq=False, **options)(cls)

        return make if cls is None else make(cls)


#: of a class
_fields: Callable[[Any], tuple[dataclasses.Field[Any], ...]] = cache(dataclasses.fields)


def _positional(cls: type) -> list[str]:
    return [field.name for field in _fields(cls) if not field.kw_only]


def _init(self: Any, /, *args: Any, **named: Any) -> None:
    cls = type(self)
    names = _positional(cls)
    if len(args) > len(names):
        raise TypeError(f"{cls.__name__} takes {len(names)} values without a name: {len(args)}")
    given, known = dict(zip(names, args, strict=False)), {field.name for field in _fields(cls)}
    if wrong := [name for name in named if name in given or name not in known]:
        raise TypeError(f"{cls.__name__} has no {wrong[0]}, or it was given twice")
    given |= named
    for field in _fields(cls):
        value = given[field.name] if field.name in given else _default(cls, field)
        object.__setattr__(self, field.name, value)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _default(cls: type, field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is dataclasses.MISSING:
        raise TypeError(f"{cls.__name__} needs {field.name}")
    return field.default


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in _fields(type(self)) if field.compare)


def _eq(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _repr(self: Any) -> str:
    shown = [f"{f.name}={getattr(self, f.name)!r}" for f in _fields(type(self)) if f.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _set(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in _fields(type(self))]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(_fields(type(self)), state, strict=True):
        object.__setattr__(self, field.name, value)


class _Factory:
    """As :mod:`dataclasses` shows a default that is made for each value."""

    def __repr__(self) -> str:
        return "<factory>"


class _LazySignature:
    """For ``help()`` and the documentation: the parameters of a class are its fields."""

    def __get__(self, instance: object, cls: type) -> Signature:
        return Signature(list(_parameters(cls)))


def _parameters(cls: type) -> Iterator[Parameter]:
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    for field in sorted(_fields(cls), key=lambda field: bool(field.kw_only)):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = _Factory()
        if default is dataclasses.MISSING:
            default = Parameter.empty
        kind = kinds[bool(field.kw_only)]
        yield Parameter(field.name, kind, default=default, annotation=field.type)


_METHODS: dict[str, Any] = {
    "__init__": _init,
    "__eq__": _eq,
    "__hash__": None,
    "__repr__": _repr,
    "__signature__": _LazySignature(),
}
_FROZEN: dict[str, Callable[..., Any]] = {
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__getstate__": _get_state,
    "__setstate__": _set_state,
}
