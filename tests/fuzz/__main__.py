"""Fuzz one reader, with libFuzzer (by atheris).

    python -m tests.fuzz TARGET [-option=value ...]    until something fails, or as the options say
    python -m tests.fuzz TARGET INPUT ...              read these inputs again

The options are libFuzzer's. In .fuzz/TARGET/ are the inputs that failed (crash-..., timeout-...,
oom-...) and, in known/, those that the next run starts from.
"""

import argparse
import faulthandler
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

from tests.fuzz import sanitized

sanitized.load()
with atheris.instrument_imports(include=["pyxlsnap"]):
    from tests.fuzz import inputs
    from tests.fuzz.targets import TARGETS, Read, Target, bounded

#: the part of atheris that has libFuzzer
(LIBFUZZER,) = Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so")

_OPTIONS = (
    "-max_len=65536",  # bytes of an input
    "-timeout=10",  # seconds for one input
    "-rss_limit_mb=1024",  # for the process with all its inputs
    "-print_final_stats=1",
    # If the memory is damaged, libFuzzer's own handlers may wait forever.
    *(f"-handle_{name}=0" for name in ("abrt", "bus", "fpe", "ill", "segv")),
)


def main() -> int:
    """Run libFuzzer in this process, which libFuzzer ends."""
    parser = argparse.ArgumentParser("tests.fuzz", None, __doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--found", type=Path, help="a directory instead of .fuzz/TARGET")
    arguments, rest = parser.parse_known_args()
    target = TARGETS[arguments.target]
    if target.sanitized:
        sanitized.restart()
    found = arguments.found or Path(".fuzz", arguments.target)
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, target.reading() as read:
        if all(argument.startswith("-") for argument in rest):
            rest += _starts(target, [inputs.CORPUS / arguments.target], found, Path(directory))
        options = [*_OPTIONS, f"-artifact_prefix={found}/", *rest]
        code = _in_child(lambda: _fuzz(target, read, found / "current", options))
    if code < 0:
        _keep(found)
    if code:
        again = [str(path) for path in sorted(found.glob("[cot]*-*"))]
        print(
            f"to read what failed again: {sys.executable} -m tests.fuzz {arguments.target}", *again
        )
    return abs(code)


def _in_child(run: Callable[[], None]) -> int:
    """Run the fuzzer in a new process; return its exit code, or the negative signal number."""
    pid = os.fork()
    if not pid:
        run()
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # libFuzzer handles the signal and ends
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fuzz(target: Target, read: Read, current: Path, options: list[str]) -> None:
    with current.open("wb", buffering=0) as file:

        def run(data: bytes) -> None:
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))
            with bounded():
                read(data)

        faulthandler.enable()
        mutate = inputs.mutator(lambda data, limit: atheris.Mutate(data, limit), target.repair)
        atheris.Setup(["tests.fuzz", *options], run, custom_mutator=mutate)
        sanitized.count(LIBFUZZER)
        atheris.Fuzz()


def _keep(found: Path) -> None:
    """Keep the input that was read when a signal killed the process."""
    data = (found / "current").read_bytes()
    (found / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)


def _starts(target: Target, corpora: list[Path], found: Path, directory: Path) -> list[str]:
    """The arguments with the words and with the directories of the first inputs."""
    known, words = found / "known", directory / "words"
    known.mkdir(exist_ok=True)
    seeds = directory / "seeds"
    seeds.mkdir()
    for i, seed in enumerate(target.seeds()):
        (seeds / str(i)).write_bytes(seed)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    there = (str(path) for path in corpora if path.is_dir())
    return [f"-dict={words}", str(known), str(seeds), *there]


if __name__ == "__main__":
    sys.exit(main())
