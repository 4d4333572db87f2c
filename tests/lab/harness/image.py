"""The dom0's disk image, from the Debian mirror that this machine uses itself.

Only mmdebstrap and packing its result need root. There is no loop device and no mount.
"""

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from . import cache

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Release:
    """The Debian release of the dom0, and the Xen in it."""

    #: what ``XEN=`` selects the release by
    name: str
    suite: str
    #: what people call the release
    debian: str
    xen: str
    #: the process with which xl watches a domain stays when that is suspended
    xl_stays: bool
    #: its QEMU loads what its libxl has saved of an HVM guest
    loads_hvm: bool = True
    #: where packages of the release have the kernel's modules
    modules: str = "/lib/modules"
    #: what this release needs besides
    extra: tuple[str, ...] = ()
    #: what runs in the chroot before files/setup.py, which then finds what it looks for
    prepare: str = ""

    @property
    def packages(self) -> list[str]:
        xen = [f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}"]
        return [*PACKAGES, *xen, *self.extra]


#: By what ``XEN=`` says; the first is what is taken where nothing is said.
RELEASES = {
    release.name: release
    for release in (
        Release(name="4.17", suite="bookworm", debian="12", xen="4.17", xl_stays=False),
        Release(name="4.20", suite="trixie", debian="13", xen="4.20", xl_stays=True),
        Release(
            name="unstable",
            suite="sid",
            debian="unstable",
            xen="4.20",
            xl_stays=True,
            loads_hvm=False,
            modules="/usr/lib/modules",
            extra=("initramfs-tools",),  # else the kernel brings dracut, which is much more
            # Linux 7 has renamed the checksum that ext4 asks for.
            prepare="echo alias crc32c_generic crc32c-cryptoapi >/etc/modprobe.d/lab.conf",
        ),
    )
}

PACKAGES = [
    *("linux-image-amd64", "kmod", "busybox-static", "iproute2", "procps", "socat"),
    *("qemu-system-xen", "qemu-utils", "libxen-dev", "gcc", "libc6-dev", "pkg-config"),
    *("python3", "python3-dev", "python3-cffi", "python3-setuptools", "python3-pytest"),
    *("python3-tqdm", "python3-venv", "systemd"),  # the last two as README's way needs them
    *("bash-completion", "man-db"),  # what an admin has
    *("lvm2", "thin-provisioning-tools", "e2fsprogs", "btrfs-progs", "xfsprogs", "zstd"),
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
# Plain: less work under emulation, and an image that is thrown away needs no journal.
FEATURES = "^metadata_csum,^64bit,^has_journal"
MKE2FS = ["mke2fs", "-q", "-t", "ext4", "-O", FEATURES, "-E", "lazy_itable_init=1,root_owner=0:0"]
PARTS = ("", "updates", "security")
# Suites that change all the time, and have no parts: what is built of one is good for a month.
ROLLING = ("sid",)
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


def wanted() -> Release:
    """The release that the environment asks for (``XEN=4.20``, ``XEN=unstable``).

    :raises SystemExit: the lab does not have it; a line that says so.
    """
    name = os.environ.get("XEN") or next(iter(RELEASES))
    if name not in RELEASES:
        raise SystemExit(f"XEN={name}: the lab has {' and '.join(RELEASES)}")
    return RELEASES[name]


def ensure(say: cache.Say) -> Image:
    """The image of the release that is wanted, built if the cache does not have it."""
    release = wanted()
    name = key(release)
    directory = cache.built("image", name, lambda new: _build(new, release, say), say)
    return Image(directory, name)


def key(release: Release) -> str:
    """Of all that an image follows from; which mirror it comes from makes no difference."""
    somewhere = Path()
    options = _options(release, somewhere, somewhere)
    files = [data for p in sorted(FILES.iterdir()) for data in (p.name, p.read_bytes())]
    return cache.digest(release.suite, *options, *MKE2FS, ROOT_SIZE, *files, *age(release.suite))


def age(suite: str) -> list[str]:
    """What the key of something built of a suite has beside the recipe."""
    return [f"{date.today():%Y-%m}"] if suite in ROLLING else []


def sources(suite: str) -> list[str]:
    """The lines of a sources.list for a suite, from this machine's own mirror of Debian.

    The machine may have another release itself: a mirror that has the one has the other.
    """
    fields = ["REPO_URI", "CODENAME", "COMPONENT", "ORIGIN", "TARGET_OF", "SIGNED_BY"]
    form = "\t".join(f"$({field})" for field in fields)
    indexes = _output(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    lines: dict[bool, set[str]] = {True: set(), False: set()}
    for index in indexes.splitlines():
        uri, codename, component, origin, kind, signer = index.split("\t")
        own, _, part = codename.partition("-")
        if part in (PARTS[:1] if suite in ROLLING else PARTS) and (component, origin, kind) == (
            "main",
            "Debian",
            "deb",
        ):
            # apt leaves a field that it has no value for as it was, "$(...)" and all; and a key
            # given in the text of a source cannot be passed on in a line.
            signed_by = signer if signer.startswith("/") else KEYRING
            line = f"deb [signed-by={signed_by}] {uri} {suite}{codename.removeprefix(own)} main"
            lines[own == suite].add(line)
    found = lines[True] or lines[False]
    if not any(f" {suite} " in line for line in found):
        raise RuntimeError(
            "apt on this machine has no mirror of Debian's main; add it to the sources and run "
            "apt-get update"
        )
    return sorted(found)


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
    mke2fs = [*MKE2FS, "-d", str(root), str(raw), ROOT_SIZE]
    _run(cache.privileged(mke2fs), new / "mke2fs.log")
    subprocess.run(cache.privileged(["rm", "-rf", "--one-file-system", str(root)]), check=True)
    image = str(new / "dom0.qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), image], check=True)
    raw.unlink()
    say(f"image done: {cache.size_mib(new)} MiB")


def _mmdebstrap(root: Path, new: Path, release: Release) -> list[str]:
    """The privileged step in one command; files/setup.py does our part of it in the chroot."""
    # In namespaces of its own: if we are killed, so is all of it, and its mounts go with it.
    # INITRD=No: the kernel package then builds no initrd; we make a small one of our own.
    return cache.privileged(
        [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("env", "INITRD=No", "mmdebstrap", *_options(release, FILES, new)),
            *(f"--aptopt={setting}" for setting in apt_options()),
            *(release.suite, str(root), *sources(release.suite)),
        ]
    )


def _options(release: Release, files: Path, out: Path) -> list[str]:
    """What mmdebstrap is told on every machine."""
    hooks = [
        f'mkdir "$1/lab" && cp {shlex.quote(str(files))}/* "$1/lab/"',
        *([f'chroot "$1" sh -c {shlex.quote(release.prepare)}'] if release.prepare else []),
        'chroot "$1" python3 /lab/setup.py',
        f'mv "$1"/out/* {shlex.quote(str(out))}/ && rmdir "$1/out"',
    ]
    excluded = [f"{release.modules}/*/kernel/{name}/*" for name in UNUSED_MODULES]
    excluded += [f"/usr/share/{name}/*" for name in UNUSED_SHARE]
    settings = ['Apt::Install-Recommends "false"', 'Acquire::Languages "none"']
    return [
        *("--mode=root", "--variant=minbase", "--components=main"),
        "--include=" + ",".join(release.packages),
        *(f"--aptopt={setting}" for setting in settings),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in excluded),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]


def _run(argv: list[str], log: Path) -> None:
    with log.open("w") as file:
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if status.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{shlex.join(argv)}\nfailed ({status.returncode}):\n{tail}")
