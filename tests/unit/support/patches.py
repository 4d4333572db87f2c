"""Attributes that a test replaces; without pytest, which a worker would import for long."""

from typing import Protocol


class Patch(Protocol):
    """What pytest's ``MonkeyPatch`` is, for a module that a worker imports, too."""

    def setattr(self, target: object, name: str, value: object) -> None: ...


class LastingPatch:
    """In a process that ends with its scenario: nothing is put back."""

    def setattr(self, target: object, name: str, value: object) -> None:
        getattr(target, name)  # (it has been renamed, else)
        setattr(target, name, value)
