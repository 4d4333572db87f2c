# Run in a Debian without pyxlsnap: what becomes of the packages in the directory $PACKAGES when they
# are installed, upgraded, removed and purged, with an operation under way and with a journal left.
# There is no Xen here: a lock that is held is an operation, as far as packages can tell.
set -eu
uuid=6b1f0c3e-0000-4000-8000-00000000c0de
journal=/var/lib/pyxlsnap/$uuid.journal
clone=/var/lib/pyxlsnap/$uuid.clone
snapshot=/var/lib/xen/snapshots/$uuid/s.cfg

fail() {
    echo "trial: $*" >&2
    exit 1
}

installed() {
    test "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" = "install ok installed"
}

says() { # what a command must say, and with which status it must end
    words=$1 status=$2
    shift 2
    ended=0
    "$@" >/tmp/said 2>&1 || ended=$?
    cat /tmp/said
    test "$ended" = "$status" || fail "$*: status $ended"
    grep -q "$words" /tmp/said || fail "$*: does not say: $words"
}

apt() {
    apt-get -qy --no-install-recommends "$@"
}

newer() { # the packages once more, as of a later revision
    mkdir /tmp/newer
    for package in "$PACKAGES"/pyxlsnap_*.deb "$PACKAGES"/python3-pyxlsnap_*.deb; do
        rm -rf /tmp/tree
        dpkg-deb -R "$package" /tmp/tree
        sed -i -E 's/(~deb[0-9]+u)1/\12/g' /tmp/tree/DEBIAN/control
        dpkg-deb -b --root-owner-group /tmp/tree /tmp/newer >/dev/null
    done
}

hold() { # an operation begins
    mkfifo /tmp/end
    program="import sys; from pyxlsnap.linux.locks import DomainLock as L
lock = L('$uuid', domain='web1'); open('/tmp/held', 'w').close(); open('/tmp/end').read()"
    python3 -c "$program" &
    holder=$!
    until test -e /tmp/held; do
        kill -0 $holder || fail "the lock cannot be held"
        sleep 0.1
    done
}

release() {
    echo >/tmp/end
    wait $holder
    rm /tmp/end /tmp/held
}

apt update
apt install "$PACKAGES"/pyxlsnap_*.deb "$PACKAGES"/python3-pyxlsnap_*.deb "$PACKAGES"/python3-qemu-qmp_*.deb
pyxlsnap --version
command -v gcc && fail "this Debian has a compiler: the trial shows nothing"
unit=/etc/systemd/system/multi-user.target.wants/pyxlsnap-recover.service
test -L $unit || fail "the unit is not enabled"

mkdir -p "${journal%/*}" "${snapshot%/*}" /var/log/xen
touch "$journal" "$snapshot" /var/log/xen/pyxlsnap-web1.log /var/log/xen/xl-web1.log

hold
newer
apt install /tmp/newer/*.deb
dpkg-query -W -f '${Version}\n' pyxlsnap | grep -q 'u2$' || fail "not upgraded"
test -L $unit || fail "the unit is not enabled after the upgrade"
says "operations are under way on the domains $uuid" 100 apt remove python3-pyxlsnap
installed pyxlsnap || fail "pyxlsnap was removed"
installed python3-pyxlsnap || fail "python3-pyxlsnap was removed"
pyxlsnap --version
release

says "no unit finishes them at boot any more" 0 apt remove pyxlsnap
installed python3-pyxlsnap || fail "python3-pyxlsnap was removed"
apt install /tmp/newer/*.deb

says "to finish them, install pyxlsnap again" 0 apt remove python3-pyxlsnap
test -e "$journal" || fail "the journal was lost"
test ! -e /usr/bin/pyxlsnap || fail "the command is still there"

apt install /tmp/newer/*.deb
test -e "$journal" || fail "the journal was lost"
says "left the snapshots" 0 apt purge pyxlsnap python3-pyxlsnap
test -e "$journal" || fail "the journal was lost"
test -e "$snapshot" || fail "a snapshot was lost"
test ! -e /var/log/xen/pyxlsnap-web1.log || fail "a log was left"
test -e /var/log/xen/xl-web1.log || fail "a log of xl was lost"
test ! -e /etc/logrotate.d/python3-pyxlsnap || fail "a configuration file was left"

apt install /tmp/newer/*.deb
rm "$journal"
touch "$clone"
says "which describes clones" 0 apt purge pyxlsnap python3-pyxlsnap
test -e "$clone" || fail "the file of a clone was lost"

apt install /tmp/newer/*.deb
rm "$clone"
apt purge pyxlsnap python3-pyxlsnap
test ! -e "${journal%/*}" || fail "an empty directory was left"
test -e "$snapshot" || fail "a snapshot was lost"
echo "trial: passed"
