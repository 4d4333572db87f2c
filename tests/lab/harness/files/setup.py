"""Runs inside the new root file system (chroot): makes it the lab's dom0.

Finds the files of this directory in /lab, leaves there what the dom0 needs, and in /out what QEMU
is started with.
"""

import re
import shutil
import struct
import subprocess
from pathlib import Path

LAB = Path("/lab")
OUT = Path("/out")


def run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def unpacked(data: bytes) -> bytes:
    """The contents of anything that gzip, xz or zstd has packed."""
    return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def unpacked_kernel(vmlinuz: bytes) -> bytes:
    """The ELF inside a bzImage: Xen and libxc would else unpack it at every start, slowly.

    Where it is stands in the header (Linux, Documentation/arch/x86/boot.rst); what was packed is
    followed by its size.
    """
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    start = (vmlinuz[0x1F1] + 1) * 512 + offset
    kernel = unpacked(vmlinuz[start : start + length - 4])
    if kernel[:4] != b"\x7fELF":
        raise SystemExit("no ELF kernel inside vmlinuz")
    return kernel


def initrd(target: Path, init: Path, version: str, modules: list[str]) -> None:
    """A minimal initrd: an init, the modules in load order, and busybox."""
    tree = Path("/tmp/initrd")
    for name in ("bin", "proc", "sys", "dev", "root", "lib"):
        (tree / name).mkdir(parents=True)
    shutil.copy(init, tree / "init")
    (tree / "init").chmod(0o755)
    if init.read_bytes()[:2] == b"#!":
        shutil.copy("/bin/busybox", tree / "bin")
    order: list[str] = []
    for module in modules:
        for line in run(
            "modprobe", "--set-version", version, "--show-depends", module
        ).splitlines():
            path = line.removeprefix("insmod ").strip()
            # (the fast crc32c refuses the emulated CPU)
            if line.startswith("insmod ") and path not in order and "crc32c-intel" not in path:
                order.append(path)
    names = [Path(path).name.removesuffix(".xz") for path in order]
    for path, name in zip(order, names, strict=True):
        data = Path(path).read_bytes()
        (tree / "lib" / name).write_bytes(unpacked(data) if path.endswith(".xz") else data)
    (tree / "modules.order").write_text("".join(f"/lib/{name}\n" for name in names))
    entries = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with target.open("wb") as file:
        subprocess.run(
            ["/bin/busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"],
            cwd=tree,
            input=entries.encode(),
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    shutil.rmtree(tree)


def compile_guests() -> None:
    run("gcc", "-static", "-O2", "-Wall", "-o", LAB / "guest", LAB / "guest.c")
    run("strip", LAB / "guest")
    boot_sector = Path("/tmp/tinyhvm.o")
    run("gcc", "-c", "-m32", "-o", boot_sector, LAB / "tinyhvm.S")
    run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-e", "_start",
        "-o", LAB / "tinyhvm.bin", boot_sector)  # fmt: skip
    boot_sector.unlink()


def quicken_lvm() -> None:
    """Make LVM quicker, which does what it always does: it waits for udev, and udev for programs.

    Each event of a volume starts some, and starting a program is what is slow under emulation.
    """
    run("gcc", "-static", "-O2", "-Wall", "-o", LAB / "dm-udev", LAB / "dm-udev.c")
    run("strip", LAB / "dm-udev")
    own = Path("/etc/udev/rules.d")
    own.mkdir(parents=True, exist_ok=True)
    for name in ("55-dm.rules", "56-lvm.rules", "95-dm-notify.rules"):
        text = Path("/lib/udev/rules.d", name).read_text()
        changed = re.sub(r"(?:/usr)?/sbin/dmsetup (udev|splitname)", r"/lab/dm-udev \1", text)
        if changed == text:
            raise SystemExit(f"{name} does not call dmsetup")
        (own / name).write_text(changed)
    # Nobody here needs volumes to be activated by themselves, or a look at every device written to.
    for name in ("69-lvm.rules", "60-block.rules"):
        (own / name).symlink_to("/dev/null")
    # No dmeventd; no copies of the metadata; and not 8 MiB to touch and lock in each command.
    Path("/etc/lvm/lvmlocal.conf").write_text(
        "activation { monitoring = 0 reserved_memory = 64 reserved_stack = 64 }\n"
        "backup { backup = 0 archive = 0 }\n"
    )


def main() -> None:
    OUT.mkdir()
    version = max(path.name for path in Path("/lib/modules").iterdir())
    vmlinuz = Path(f"/boot/vmlinuz-{version}")
    kernel = unpacked_kernel(vmlinuz.read_bytes())
    for directory in (LAB, OUT):
        (directory / "vmlinux").write_bytes(kernel)
    shutil.copy(vmlinuz, LAB / "vmlinuz")  # an HVM guest takes only this form
    (hypervisor,) = Path("/boot").glob("xen-[0-9]*.gz")
    (OUT / "xen").write_bytes(unpacked(hypervisor.read_bytes()))

    compile_guests()
    quicken_lvm()
    disk_modules = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
    initrd(OUT / "dom0-initrd.img", LAB / "dom0-initrd-init", version, disk_modules)
    initrd(LAB / "guest-initrd.img", LAB / "guest", version, ["xen-blkfront"])
    (LAB / "dom0-init").chmod(0o755)
    for name in ("disk", "cfg", "save"):
        (LAB / name).mkdir()
    (OUT / "packages.txt").write_text(run("dpkg-query", "-W"))

    for leftover in Path("/boot").glob("initrd.img-*"):
        leftover.unlink()
    for path in OUT.iterdir():
        path.chmod(0o644)  # the one who asked for the image may not be root


if __name__ == "__main__":
    main()
