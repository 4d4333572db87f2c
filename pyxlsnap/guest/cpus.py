"""The processors of a restored domain: its CPU pool must have one that the domain may run on."""

from collections.abc import Iterator

from pyxlsnap.guest.findings import Finding, refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.model import DomainConfig
from pyxlsnap.text import shortened

#: more of them are not told
_SHOWN = 8


def examine_cpus(host: Host, config: DomainConfig) -> Iterator[Finding]:
    """Find a CPU pool that is not there, or that lacks the processors (``cpus=``) of a vCPU.

    libxl gives each vCPU its hard affinity, and Xen accepts none outside of the pool.
    """
    made = config.section("c_info")
    pool = str(made.get("pool_name") or made.get("poolid") or "")
    cpus = host.pool_cpus(pool)
    if cpus is None:
        if pool:
            yield refused(
                f"the domain needs the CPU pool {shortened(pool)}, which does not exist: "
                f"create the pool (xl cpupool-create)"
            )
        return
    which = f"the CPU pool {shortened(pool)}" if pool else "the CPU pool of new domains"
    if not cpus:
        yield refused(f"{which} has no CPU: add one to it (xl cpupool-cpu-add)")
        return
    for wanted in _affinities(config):
        if not wanted & cpus:
            yield refused(
                f"the domain may run on the CPUs {_text(wanted)} only (cpus=), and {which} has "
                f"none of them: add one to it (xl cpupool-cpu-add)"
            )


def _affinities(config: DomainConfig) -> Iterator[frozenset[int]]:
    """The hard affinity of each vCPU that has one, as libxl reads it."""
    build = config.section("b_info")
    each = build.get("vcpu_hard_affinity") or [build.get("cpumap")]
    for cpus in each if isinstance(each, list) else []:
        if cpus and isinstance(cpus, list) and all(type(cpu) is int for cpu in cpus):
            yield frozenset(cpus)


def _text(cpus: frozenset[int]) -> str:
    numbers = [str(cpu) for cpu in sorted(cpus)]
    return ", ".join([*numbers[:_SHOWN], *(["…"] if len(numbers) > _SHOWN else [])])
