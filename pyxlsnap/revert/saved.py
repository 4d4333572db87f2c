"""What the cfgfile of a request, and the header of its memory file, say of the domain."""

from pyxlsnap.guest import snapshot
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.request import RevertRequest


def config_of(request: RevertRequest) -> SnapshotConfig:
    """The content of the cfgfile."""
    assert request.config
    return request.config


def saved_uuid(request: RevertRequest) -> str:
    """The uuid of the domain in a memory file. Reads the header only, not the memory.

    :raises ConfigError, BadMemoryFile: as :func:`pyxlsnap.guest.snapshot.read_memory`.
    """
    return snapshot.saved_uuid(config_of(request), request.cfgfile)
