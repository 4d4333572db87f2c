"""The dom0's disk image, from the Debian mirror that this machine uses itself.

Only mmdebstrap and packing its result need root. There is no loop device and no mount.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cache

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Release:
    """The Debian release of the dom0, and the Xen in it."""

    suite: str
    xen: str

    @property
    def packages(self) -> list[str]:
        return [*PACKAGES, f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}"]


RELEASE = Release(suite="bookworm", xen="4.17")

PACKAGES = [
    *("linux-image-amd64", "kmod", "busybox-static", "iproute2", "procps", "socat"),
    *("qemu-system-xen", "qemu-utils", "libxen-dev", "gcc", "libc6-dev", "pkg-config"),
    *("python3", "python3-dev", "python3-cffi", "python3-setuptools", "python3-pytest"),
    "python3-tqdm",
    *("lvm2", "thin-provisioning-tools", "e2fsprogs", "btrfs-progs", "xfsprogs"),
]
# Kernel modules that nothing in an emulated machine can use: half of the image, if they stayed.
UNUSED_MODULES = [
    *(f"drivers/{name}" for name in ("gpu", "media", "infiniband", "iio", "staging", "usb")),
    *(f"drivers/{name}" for name in ("hwmon", "input", "isdn", "mmc", "mtd", "platform", "scsi")),
    *("drivers/bluetooth", "drivers/comedi", "drivers/net/ethernet", "drivers/net/wireless"),
    *("net/bluetooth", "net/mac80211", "net/wireless", "sound"),
    *(f"fs/{name}" for name in ("ocfs2", "gfs2", "nfs", "nfsd", "cifs", "ceph", "f2fs")),
]
UNUSED_SHARE = ["man", "doc", "locale", "info", "lintian"]
ROOT_SIZE = "8G"  # apparent: room for memory files of guests
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU boots: hypervisor, kernel and initrd beside the disk."""

    directory: Path
    key: str

    @property
    def xen(self) -> Path:
        return self.directory / "xen"

    @property
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        return self.directory / "dom0-initrd.img"

    @property
    def disk(self) -> Path:
        return self.directory / "dom0.qcow2"


def ensure(say: cache.Say, release: Release = RELEASE) -> Image:
    """The image of a release, built if the cache does not have it."""
    recipe = Path(__file__).read_bytes()
    files = [data for p in sorted(FILES.iterdir()) for data in (p.name, p.read_bytes())]
    key = cache.digest(recipe, release.suite, release.xen, *files)
    directory = cache.built("image", key, lambda new: _build(new, release, say), say)
    return Image(directory, key)


def sources(suite: str) -> list[str]:
    """The lines of a sources.list for this machine's own mirror of Debian."""
    fields = ["REPO_URI", "CODENAME", "COMPONENT", "ORIGIN", "TARGET_OF", "SIGNED_BY"]
    form = "\t".join(f"$({field})" for field in fields)
    indexes = _output(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    lines = set()
    for index in indexes.splitlines():
        uri, codename, component, origin, kind, key = index.split("\t")
        if codename in wanted and (component, origin, kind) == ("main", "Debian", "deb"):
            # apt leaves a field that it has no value for as it was, "$(...)" and all; and a key
            # given in the text of a source cannot be passed on in a line.
            signed_by = key if key.startswith("/") else KEYRING
            lines.add(f"deb [signed-by={signed_by}] {uri} {codename} main")
    if not any(f" {suite} " in line for line in lines):
        raise RuntimeError(
            f"apt on this machine has no Debian {suite} main; add it to the sources and run "
            "apt-get update"
        )
    return sorted(lines)


def apt_options() -> list[str]:
    """This machine's settings for reaching its mirror, which mmdebstrap does not look at."""
    settings = _output(["apt-config", "dump", "Acquire"]).splitlines()
    relevant = re.compile(r'Acquire::(https?::(Proxy|CAInfo|Verify)|Check-)[^"]* "[^"]+"')
    return [line for line in settings if relevant.match(line)]


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _build(new: Path, release: Release, say: cache.Say) -> None:
    root, raw = new / "root", new / "dom0.raw"
    say(f"building the dom0 image: Debian {release.suite}, Xen {release.xen}; takes minutes")
    _run(_mmdebstrap(root, new, release), new / "mmdebstrap.log")
    say("packages installed; packing the disk")
    # Plain ext4: less work under emulation, and an image that is thrown away needs no journal.
    features = "^metadata_csum,^64bit,^has_journal"
    mke2fs = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        features,
        "-E",
        "lazy_itable_init=1,root_owner=0:0",
    ]
    _run(cache.privileged([*mke2fs, "-d", str(root), str(raw), ROOT_SIZE]), new / "mke2fs.log")
    subprocess.run(cache.privileged(["rm", "-rf", "--one-file-system", str(root)]), check=True)
    image = str(new / "dom0.qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), image], check=True)
    raw.unlink()
    say(f"image done: {cache.size_mib(new)} MiB")


def _mmdebstrap(root: Path, new: Path, release: Release) -> list[str]:
    """The privileged step in one command; files/setup.py does our part of it in the chroot."""
    files, out = shlex.quote(str(FILES)), shlex.quote(str(new))
    hooks = [
        f'mkdir "$1/lab" && cp {files}/* "$1/lab/"',
        'chroot "$1" python3 /lab/setup.py',
        f'mv "$1"/out/* {out}/ && rmdir "$1/out"',
    ]
    excluded = [f"/lib/modules/*/kernel/{name}/*" for name in UNUSED_MODULES]
    excluded += [f"/usr/share/{name}/*" for name in UNUSED_SHARE]
    settings = ['Apt::Install-Recommends "false"', 'Acquire::Languages "none"', *apt_options()]
    # In namespaces of its own: if we are killed, so is all of it, and its mounts go with it.
    # INITRD=No: the kernel package then builds no initrd; we make a small one of our own.
    return cache.privileged(
        [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("env", "INITRD=No"),
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--components=main"),
            "--include=" + ",".join(release.packages),
            *(f"--aptopt={setting}" for setting in settings),
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={path}" for path in excluded),
            *(f"--customize-hook={hook}" for hook in hooks),
            *(release.suite, str(root), *sources(release.suite)),
        ]
    )


def _run(argv: list[str], log: Path) -> None:
    with log.open("w") as file:
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if status.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{shlex.join(argv)}\nfailed ({status.returncode}):\n{tail}")
