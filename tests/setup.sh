#!/bin/sh
# setup.sh PYTHON VENV [PACKAGE ...]: install what the tests need, Debian's packages (and these) and
# Python's.
# Says what it does; does nothing that is done already.
set -eu
python=$1 venv=$2
shift 2
packages="gcc libc6-dev python3-dev python3-venv libxen-dev pkg-config \
qemu-system-x86 qemu-utils mmdebstrap e2fsprogs btrfs-progs xfsprogs zstd zsh $*"

missing=
for package in $packages; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo=sudo
        command -v sudo >/dev/null || { echo "run as root, or install sudo: needs$missing" >&2; exit 1; }
    fi
    echo "installing Debian packages:$missing (a minute or two)"
    log=$(mktemp)
    { $sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        $sudo apt-get install -qy --no-install-recommends $missing; } >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; exit 1; }
    rm -f "$log"
fi

# One that was left half made, or belongs to another Python, is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "making the virtual environment $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
echo "installing Python packages (half a minute)"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$(dirname "$0")/requirements.txt"
