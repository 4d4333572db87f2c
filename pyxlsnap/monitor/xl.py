"""Finding the process with which xl watches a domain.

It is found by what it is: a process of the program xl whose log says that it waits for the end of
this very domain (its domid). If the log does not tell (any more), it is one that writes a log of
the domain's name, whatever name the log has by now; or, if it has no log because it was started in
the foreground, one that was told to create or restore the domain.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.linux.files import open_regular
from pyxlsnap.linux.processes import process_name, started
from pyxlsnap.memory import read_header
from pyxlsnap.model import DomainConfig
from pyxlsnap.text import command, readable

# What logrotate and xl itself add to the name of an older log, and the kernel to that of a file
# which was deleted.
_OLDER = r"([.-](\d[\d-]*|old|bak))?(\.[a-z0-9]+)?( \(deleted\))?"
_ANY_LOG = re.compile(rf"xl-.*\.log{_OLDER}")
# What xl writes when it begins to watch a domain (create_domain in xl_vmcontrol.c), and when it
# starts a domain again, under another domid.
_WAITS = re.compile(
    rb"^(?:Waiting for domain .* \(domid (\d+)\) to die \[pid (\d+)\]|Done\. Rebooting now)$",
    re.MULTILINE,
)
_LOG_LIMIT = 1 << 20  # bytes, from the end
_STDERR = "2"
_NAME = re.compile(r"""^[ \t]*name[ \t]*=[ \t]*(["'])(.*?)\1""", re.MULTILINE)
_SETTING = re.compile(r"\s*\w+\s*=")
# The commands that leave a process which watches, and their options that have a value.
_COMMANDS = {"create": "f", "restore": ""}
_CONFIG_LIMIT = 1 << 20  # bytes
# The kernel tells the time of its own start in whole seconds, and xl reads the file at its start.
_SLACK_S = 2.0


@dataclass(frozen=True, slots=True)
class Xl:
    """A process of xl."""

    pid: int
    #: its command line
    words: tuple[str, ...] = ()
    #: it stays in the foreground (``xl create -F``), as a service manager starts it
    foreground: bool = False
    #: it writes the domain's log; else it was found by what it was told, and may watch another
    has_log: bool = True


@dataclass(slots=True)
class _Call:
    """The command line of ``xl create`` or ``xl restore``."""

    command: str
    foreground: bool = False
    #: settings that take precedence over the config file
    settings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def xl_monitor(name: str, domid: int | None = None) -> int | None:
    """The pid of the process with which xl watches a domain; ``None`` if there is no such process.

    See :func:`xl_process`.
    """
    found = xl_process(name, domid)
    return found.pid if found else None


def xl_process(name: str, domid: int | None = None) -> Xl | None:
    """The process with which xl watches a domain; ``None`` if there is no such process.

    If several may be that, one that writes the domain's log comes before one that writes an older
    log of that name, and both before one that was only told the name. A process whose log does not
    tell the domid is not found if the domain was renamed or migrated here and has a log of another
    name, or if it has no log and its config file has changed.

    :param domid: the domain's; ``None``: it is not known, and only the name counts.
    """
    log = rf"xl-{re.escape(name)}(--incoming)?\.log"
    ranks = (re.compile(log), re.compile(log + _OLDER))
    found: dict[int, Xl] = {}
    for pid in _pids_of_xl():
        words = _words(pid)
        call = _parsed(words)
        foreground = call is not None and call.foreground
        files = dict(_open_files(pid))
        logs = {number: file for number, file in files.items() if _ANY_LOG.fullmatch(file)}
        if domid is not None and (watched := _watched(pid, [*logs, _STDERR])) is not None:
            if watched == domid:
                return Xl(pid, words, foreground=foreground)
            continue
        for rank, wanted in enumerate(ranks):
            if any(wanted.fullmatch(file) for file in logs.values()):
                found.setdefault(rank, Xl(pid, words, foreground=foreground))
        if not logs and call is not None and _name_in(call, pid) == name:
            found.setdefault(len(ranks), Xl(pid, words, foreground=foreground, has_log=False))
    return found[min(found)] if found else None


def _watched(pid: int, numbers: list[str]) -> int | None:
    """The domid of the domain for which a process of xl waits, as its log says.

    :param numbers: the descriptors that may be its log.
    :returns: ``None`` if the log does not tell: it was emptied, or the domain is being started
        again.
    """
    for number in numbers:
        try:
            with open_regular(paths.PROC / f"{pid}/fd/{number}") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_LIMIT))
                said = _WAITS.findall(log.read(_LOG_LIMIT))
        except OSError:
            continue  # it has ended, or this is no file
        if said and said[-1][1] and int(said[-1][1]) == pid:
            return int(said[-1][0])
    return None


def about_foreground(found: Xl | None, name: str, *, when: str) -> list[str]:
    """A warning, if xl watches a domain in the foreground, and ends.

    :param found: xl's process for the domain.
    :param when: the event at which it ends, as the end of a sentence.
    """
    if found is None or not found.foreground:
        return []
    return [
        f"xl watches {name} in the foreground (pid {found.pid}: {command(list(found.words))}), and "
        f"ends {when}: if a service manager has started it, its unit ends then, too, and may run a "
        f"command that stops the guest (ExecStop=), or start it again (Restart=): see that it does "
        f"neither"
    ]


def _pids_of_xl() -> Iterator[int]:
    for entry in os.scandir(paths.PROC):
        if entry.name.isdigit() and _is_xl(int(entry.name)):
            yield int(entry.name)


def _is_xl(pid: int) -> bool:
    try:
        program = os.readlink(f"{paths.PROC}/{pid}/exe")  # noqa: PTH115 (there are hundreds)
    except FileNotFoundError:
        return False  # the kernel's own, or it has ended
    except OSError:
        return process_name(pid) == "xl"
    return program.rpartition("/")[2].removesuffix(" (deleted)") == "xl"  # after an upgrade


def _words(pid: int) -> tuple[str, ...]:
    try:
        data = (paths.PROC / f"{pid}/cmdline").read_bytes()
    except OSError:
        return ()  # it has ended
    return tuple(map(os.fsdecode, data.removesuffix(b"\0").split(b"\0")))


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    """The descriptors of a process, and the names of their files without their directories."""
    directory = paths.PROC / f"{pid}/fd"
    try:
        links = list(directory.iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield link.name, link.readlink().name
        except OSError:
            continue  # closed meanwhile


def _parsed(words: tuple[str, ...]) -> _Call | None:
    """The command line of a process of xl; ``None`` if it watches no domain."""
    rest = list(words[1:])
    while rest and rest[0].startswith("-"):  # options of xl itself
        rest.pop(0)
    if not rest or rest[0] not in _COMMANDS:
        return None
    call = _Call(rest.pop(0))
    while rest:
        word = rest.pop(0)
        if word.startswith("--defconfig="):
            call.files.append(word.partition("=")[2])
        elif word == "--defconfig" and rest:
            call.files.append(rest.pop(0))
        elif word.startswith("-") and not word.startswith("--"):
            _read_options(call, word[1:], rest)
        elif not word.startswith("-"):
            (call.settings if _SETTING.match(word) else call.files).append(word)
    return call


def _read_options(call: _Call, letters: str, rest: list[str]) -> None:
    """Read a word of short options, and the word that follows if it is the value of the last."""
    for number, letter in enumerate(letters):
        if letter in _COMMANDS[call.command]:
            value = letters[number + 1 :] or (rest.pop(0) if rest else "")
            call.files.append(value)
            return
        call.foreground = call.foreground or letter == "F"


def _name_in(call: _Call, pid: int) -> str:
    """The domain's name, as xl was told; "" if it cannot be found out."""
    if found := _last_name("\n".join(call.settings)):
        return found
    read = {"create": _name_in_config, "restore": _name_in_config_or_memory}[call.command]
    return read(call.files, pid)


def _name_in_config(files: list[str], pid: int) -> str:
    return _last_name(_text(files[0], pid)) if files else ""


def _name_in_config_or_memory(files: list[str], pid: int) -> str:
    """``xl restore`` has an optional config file before the memory file."""
    if len(files) > 1:
        return _name_in_config(files, pid)
    return _name_in_memory(_path(files[0], pid)) if files else ""


def _name_in_memory(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return DomainConfig.parse(read_header(file, str(path)).config_json).name
    except (OSError, BadMemoryFile, ValueError):
        return ""


def _text(file: str, pid: int) -> str:
    """The text of a config file; "" if the file was changed since xl has read it."""
    try:
        with open_regular(_path(file, pid)) as config:
            if os.fstat(config.fileno()).st_mtime > started(pid) + _SLACK_S:
                return ""
            return readable(config.read(_CONFIG_LIMIT))
    except OSError:
        return ""


def _path(file: str, pid: int) -> Path:
    """A path that a process was given, which may be relative to its directory."""
    return paths.PROC / f"{pid}/cwd" / file


def _last_name(text: str) -> str:
    """The name in a text of xl.cfg(5): of two settings the last holds."""
    found = _NAME.findall(text)
    return str(found[-1][1]) if found else ""
