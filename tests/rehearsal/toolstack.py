"""What may become of the programs and directories of Xen itself."""

from tests.rehearsal.condition import Condition

CONDITIONS = (
    Condition(
        name="libxl's directory gone",
        do=("mv {state} {state}.away",),
        status=3,
        says="libxl cannot write in {state}",
        undo=("mv {state}.away {state}",),
        off_xen_only=True,  # (other snapshots of the lab are in it)
    ),
    Condition(
        name="libxl's directory full",
        do=("mount -t tmpfs -o size=4k none {state}", "head -c 4096 /dev/zero >{state}/filler"),
        status=3,
        says="{state}, where libxl keeps the state of domains, has less than",
        undo=("umount {state}",),
        off_xen_only=True,  # (a guest without a saved QEMU may have room enough)
    ),
    Condition(
        name="the directory of Xen's logs gone",
        do=("mv {logs} {logs}.away",),
        status=3,
        says="{logs} is missing or cannot be written to",
        undo=("mv {logs}.away {logs}",),
        harms=True,
    ),
    Condition(
        name="libxl's helper not executable",
        do=("chmod -x {helper}",),
        status=3,
        says="{helper}, which reads the memory file for libxl, is missing or not executable",
        undo=("chmod +x {helper}",),
    ),
    Condition(
        name="xenconsoled dead",
        do=("touch {no_console}",),
        status=3,
        says="xenconsoled does not run",
        undo=("rm {no_console}",),
        off_xen_only=True,  # (the lab watches its guests through it)
    ),
    Condition(
        name="the script of disks gone",
        do=("mv {scripts}/block {scripts}/block.away",),
        status=3,
        says="the script {scripts}/block, which libxl would start, is missing",
        undo=("mv {scripts}/block.away {scripts}/block",),
    ),
    Condition(
        name="the lock of the script of disks held",
        do=("exec 9>{script_lock}; flock -x 9; sleep 1000 >/dev/null 2>&1 & echo $! >{spare}",),
        status=5,
        says="{script_lock} has been locked for",
        undo=("kill $(cat {spare})",),
        off_xen_only=True,  # (with --force the script would wait for it there)
    ),
)
