"""Room for the memory that a guest holds above its memory target.

libxl lets a domain that it restores have its memory target and 1 MiB (``libxl__build_pre`` in
tools/libs/light/libxl_dom.c). The guest in a memory file can hold more: its target was lowered and
its balloon driver did not follow, because the guest was paused, slow, or without such a driver. So
the restore gets a higher target, and the target is set back before the guest runs.
"""

import json

from pyxlsnap.errors import XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import DomainConfig

_ABOVE_TARGET_KB = 1024  # LIBXL_MAXMEM_CONSTANT
_DEFAULT_KB = 32 * 1024  # libxl's own, for a configuration without a memory size


def with_room(config: DomainConfig, memory_kb: int) -> DomainConfig:
    """The configuration to restore a domain that holds this much memory.

    Its memory target is higher than the saved one if libxl would give the domain too little. The
    domain's maximum, which the guest sees in xenstore, is the saved one.
    """
    b_info = config.section("b_info")
    if not b_info or memory_kb <= _target_kb(config) + _ABOVE_TARGET_KB:
        return config
    values = {**config.values, "b_info": {**b_info, "target_memkb": memory_kb}}
    return DomainConfig(json.dumps(values), values)


def set_target_back(guest: Guest, saved: DomainConfig, restored: DomainConfig) -> list[str]:
    """Set the memory target of a restored domain, which has not run yet, to the saved one.

    The target is lowered by what :func:`with_room` has added. An absolute value would not do: for
    an HVM guest xenstore has another value than the configuration, without the video memory.

    :returns: a warning, if libxl could not. The domain is complete: only its target is too high.
    """
    was, now = _target_kb(saved), _target_kb(restored)
    if was == now:
        return []
    try:
        guest.lower_memory_target(now - was)
    except XenError as e:
        return [
            f"the memory target of {guest.name} is {now} KiB instead of {was} KiB ({e}): run "
            f"`xl mem-set {guest.name} {was}k`"
        ]
    return []


def _target_kb(config: DomainConfig) -> int:
    """The memory target, KiB; libxl's defaults where the configuration has none."""
    found = (config.section("b_info").get(key) for key in ("target_memkb", "max_memkb"))
    return next((kb for kb in found if isinstance(kb, int)), _DEFAULT_KB)
