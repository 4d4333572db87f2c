"""A booted Xen host in a file, its guests paused in mid-work: what every test run starts from."""

from dataclasses import dataclass
from pathlib import Path

from . import cache, guests, image, machine, storage
from .dom0 import Dom0


@dataclass(frozen=True, slots=True)
class State:
    """The memory of a machine, and its disk as an overlay of the image."""

    image: image.Image
    directory: Path

    @property
    def memory(self) -> Path:
        return self.directory / "memory.zst"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    def start(self) -> machine.Machine:
        return machine.Machine.start(self.image, self.memory, self.disk)


def ensure(say: cache.Say) -> State:
    """The saved state, with the image under it; what the cache does not have is built."""
    base = image.ensure(say)
    directory = cache.built("state", key(base.key), lambda new: _build(new, base, say), say)
    return State(base, directory)


def key(image_key: str) -> str:
    """Of all that the state of an image follows from."""
    somewhere = Path()
    command = machine.qemu_command(image.Image(somewhere, ""), somewhere, somewhere)
    nobody = Dom0(0)
    configs = [guests.Guest(nobody, name).config_text() for name in guests.STANDARD]
    parts = [machine.qemu_version(), *command, guests.DISK_SIZE, *configs, storage.script()]
    return cache.digest(image_key, *parts)


def _build(new: Path, base: image.Image, say: cache.Say) -> None:
    state = State(base, new)
    say("booting Xen and dom0 from cold")
    with machine.Machine.boot(base) as host:
        try:
            say("dom0 is up; making disks of every kind")
            host.dom0.run(storage.script(), timeout=300)
            say("starting the guests")
            for name in guests.STANDARD:
                guest = guests.Guest(host.dom0, name)
                guest.create()
                guest.wait_first()
                guest.assert_healthy(10)
                guest.pause()
                say(f"{name} runs")
        except BaseException:
            host.collect_logs(cache.home() / "failed-state")
            say(f"logs are in {cache.home() / 'failed-state'}")
            raise
        host.save(state.memory, state.disk)
    say(f"state saved: {cache.size_mib(new)} MiB")
