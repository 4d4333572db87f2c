"""A process that is to watch a domain."""

from tests.unit.support.values import UUID
from tests.unit.support.world import World


class FakeWatch:
    """A process that is to watch the domain: its calls are events of the world."""

    def __init__(self, world: World, *, there: bool = True, uuid: str = UUID) -> None:
        self._world, self._there, self._uuid = world, there, uuid

    def start(self, uuid: str) -> "FakeWatch":
        assert uuid == self._uuid
        self._world.events.append("watch waits")
        return self

    def begin(self) -> None:
        self._world.events.append("watch begins")

    def has_begun(self) -> bool:
        self._world.events.append("watch asked")
        return self._there

    def close(self) -> None:
        self._world.events.append("watch closed")
