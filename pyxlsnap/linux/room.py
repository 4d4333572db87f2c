"""The space on filesystems that one operation will take."""

import os
from collections.abc import Callable
from pathlib import Path

#: :meth:`Room.claim`
Claim = Callable[[str, Path, int], int]


class Room:
    """What an operation will write, summed for each filesystem.

    Each part of the operation claims its space beforehand, so that no two count on the same.
    """

    def __init__(self) -> None:
        self._claims: dict[str, tuple[int, int]] = {}

    def claim(self, what: str, directory: Path, size: int) -> int:
        """Claim space. A claim of the same name is replaced: checks may be done again.

        :param what: the name of the claim.
        :param directory: where it will be written.
        :param size: how much at most, in bytes.
        :returns: the bytes that were left for it: if there are fewer, refuse the operation.
        :raises OSError: there is no such directory.
        """
        fs, device = os.statvfs(directory), directory.stat().st_dev
        self._claims[what] = (device, 0)
        taken = sum(claimed for where, claimed in self._claims.values() if where == device)
        self._claims[what] = (device, size)
        return max(0, fs.f_bavail * fs.f_frsize - taken)
