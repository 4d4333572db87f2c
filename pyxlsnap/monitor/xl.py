"""Finding the process with which xl watches a domain."""

from pyxlsnap import paths
from pyxlsnap.linux.processes import holders, process_name


def xl_monitor(name: str) -> int | None:
    """The pid of the process with which xl watches a domain: it writes ``xl-<name>.log``.

    ``None`` if there is no such process, or if the domain was renamed after it was started here or
    migrated to this host.
    """
    for log in (f"xl-{name}.log", f"xl-{name}--incoming.log"):
        try:
            writers = holders(paths.XEN_LOGS / log)
        except OSError:
            continue
        if found := [pid for pid in writers if process_name(pid) == "xl"]:
            return found[0]
    return None
