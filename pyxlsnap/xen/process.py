"""What this process shows of itself."""

import os
from collections.abc import Sequence

from pyxlsnap.xen.ffi import C


def show_command(words: Sequence[str]) -> bool:
    """Show other words as the command line of this process, as an exec would (prctl(2)).

    :returns: whether the kernel allows that.
    """
    command = b"".join(os.fsencode(word) + b"\0" for word in words)
    return bool(C.pyxlsnap_show_command(command, len(command)))
