"""For developers: ``python -m tests.lab image|state|shell|run CMD...|prune``.

``XEN=4.20`` or ``XEN=unstable`` before it: on another Xen than usual.
"""

import argparse
import shlex
import sys

from release import deb
from release.chroot import KIND
from tests import newest
from tests.lab.harness import cache, image, state
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.install import install


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("image", help="build the dom0 image, if need be, and say where it is")
    verbs.add_parser("state", help="the same for the saved state")
    verbs.add_parser("shell", help="a machine, and commands for it from standard input")
    run = verbs.add_parser("run", help="a machine for one command; one word goes to bash")
    run.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("prune", help="remove what the current recipes do not use")
    arguments = parser.parse_args()
    say = cache.progress()
    if arguments.verb == "prune":
        return prune(say)
    if arguments.verb == "image":
        print(image.ensure(say).directory)
        return 0
    saved = state.ensure(say)
    if arguments.verb == "state":
        print(saved.directory)
        return 0
    with saved.start() as machine:
        say("machine started")
        install(machine.dom0, saved.image, say)
        if arguments.verb == "run":
            words: list[str] = arguments.command
            return execute(machine.dom0, words[0] if len(words) == 1 else shlex.join(words))
        while (line := prompt("dom0# ")) is not None:
            execute(machine.dom0, line)
    return 0


def execute(dom0: Dom0, command: str) -> int:
    with dom0.start(command) as running:
        running.end_input()
        for line in running.lines(timeout=3600):
            print(line, end="", flush=True)
        completed = running.wait()
    print(completed.err, end="", file=sys.stderr)
    return completed.rc if completed.rc >= 0 else 128 - completed.rc


def prompt(text: str) -> str | None:
    try:
        return input(text if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def prune(say: cache.Say) -> int:
    images = [image.key(release) for release in image.RELEASES.values()]
    keep = {f"image-{key}" for key in images} | {f"state-{state.key(key)}" for key in images}
    chroots = [make(suite) for suite in deb.SUITES for make in (deb.build_chroot, deb.check_chroot)]
    keep |= {f"{KIND}-{chroot.key}" for chroot in (*chroots, newest.CHROOT)}
    for kind in ("image", "state", KIND, "deb", "folder"):
        with cache.locked(kind, say):
            for directory in cache.home().glob(f"{kind}-*"):
                if directory.name not in keep:
                    say(f"removing {directory}: {cache.size_mib(directory)} MiB")
                    cache.remove(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
