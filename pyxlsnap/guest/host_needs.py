"""What the host must have for a domain to be restored from its saved configuration.

libxl opens less for a restore than for a start (libxl_create.c, libxl_dom.c and libxl_dm.c in
tools/libs/light of Xen): no boot loader, no firmware, and no kernel but the one that QEMU gives to
an HVM guest. The guest's next reboot needs all of them.
"""

from collections.abc import Collection, Iterator

from pyxlsnap.guest.block_script import examine_block_script, is_served_by_kernel
from pyxlsnap.guest.cpus import examine_cpus
from pyxlsnap.guest.findings import Finding, Findings, refused, said
from pyxlsnap.guest.networks import examine_nic, missing_script
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.qemu_version import examine_qemu
from pyxlsnap.guest.toolstack_needs import examine_toolstack
from pyxlsnap.guest.vnc import examine_vnc
from pyxlsnap.linux.stalled import exists_within
from pyxlsnap.model import Disk, DomainConfig, GuestKind

_DOM0 = ("", "0", "Domain-0")
_BOOT_FILES = ("kernel", "ramdisk")
_LOADED_AT_BOOT = ("bootloader",)
_FIRMWARE = ("firmware", "system_firmware", "smbios_firmware", "acpi_firmware")


def examine_host(
    host: Host,
    config: DomainConfig,
    guest: Guest | None,
    *,
    besides: Collection[str] = (),
    qemu: str = "",
    like: Guest | None = None,
) -> Findings:
    """Find what would let a restore fail.

    :param guest: the domain that is destroyed before; ``None``: none.
    :param besides: disks that are reverted: their strategies check the files that they need.
    :param qemu: the version of the QEMU that saved the guest; "" if it is not known.
    :param like: a domain whose QEMU may be of the same files, if ``guest`` is ``None``.
    :raises Refused: the restore would fail.
    """

    def found() -> Iterator[Finding]:
        yield from examine_qemu(host, config, qemu, guest or like)
        yield from examine_toolstack(host, config, guest)
        yield from _boot_files(config)
        yield from examine_cpus(host, config)
        yield from examine_vnc(config, guest)
        for disk in config.disks:
            yield from _disk(host, disk, reverted=disk.vdev in besides)
        yield from examine_block_script(host.places().scripts, _of_kernel(config))
        for nic in config.devices("nics"):
            backend = str(nic.get("backend_domname") or nic.get("backend_domid") or "")
            if backend in _DOM0:
                yield from examine_nic(nic, guest.domid if guest else None)
            else:  # bridge and script are that domain's
                yield from _driver_domain(host, backend)

    return Findings.of(config.name, found())


def _boot_files(config: DomainConfig) -> Iterator[Finding]:
    build, hvm = config.section("b_info"), config.kind is GuestKind.HVM
    emulated = build.get("type.hvm", {})
    firmware = emulated if isinstance(emulated, dict) else {}
    for section, keys, opened in (
        (build, _BOOT_FILES, hvm),
        (build, _LOADED_AT_BOOT, False),
        (firmware, _FIRMWARE, False),
    ):
        for key in keys:
            path = str(section.get(key) or "")
            if not _is_missing(path):
                continue
            if opened:
                yield _missing_file(path)
            else:
                yield said(
                    f"{path} ({key}) does not exist: the restored domain runs without it, but "
                    f"cannot reboot until the file is back"
                )


def _of_kernel(config: DomainConfig) -> list[Disk]:
    if config.section("c_info").get("run_hotplug_scripts") == "False":
        return []  # udev starts them: where its rules are, nobody knows
    own = (disk for disk in config.disks if disk.backend_domain in _DOM0)
    return [disk for disk in own if is_served_by_kernel(disk)]


def _disk(host: Host, disk: Disk, *, reverted: bool) -> Iterator[Finding]:
    if disk.backend_domain not in _DOM0:  # the path is that domain's
        yield from _driver_domain(host, disk.backend_domain)
    elif disk.script:
        if (missing := missing_script(disk.script)) is not None:
            yield missing
    elif not (reverted or disk.format == "empty") and _is_missing(disk.target):
        yield _missing_file(disk.target)


def _is_missing(path: str) -> bool:
    # (What is no path is for libxl or QEMU to look up.)
    return path.startswith("/") and not exists_within(path)


def _missing_file(path: str) -> Finding:
    return refused(f"the domain needs {path}, which does not exist: put the file back")


def _driver_domain(host: Host, backend: str) -> Iterator[Finding]:
    if host.find_if_there(backend) is None:
        yield refused(
            f"the domain needs the driver domain {backend} (backend), which does not run: start it"
        )
