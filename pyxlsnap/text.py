"""Text that others chose (names, paths, output), fit to be shown; sizes and times as text."""

import re
import shlex
from collections.abc import Iterable

# Control characters (a terminal obeys them), characters that break a line or change its direction,
# and surrogates: bytes of a path that are not UTF-8, which a strict stream does not accept.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_UTF8 = range(0xDC80, 0xDD00)
_SHORT = 200  # characters


def text_of(data: bytes) -> str:
    """Bytes of a path or name as text that :func:`bytes_of` turns back into the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """The bytes of a path or name.

    :raises UnicodeEncodeError: it has surrogates other than those of :func:`text_of`.
    """
    return text.encode("utf-8", "surrogateescape")


def readable(data: bytes) -> str:
    """What a program wrote, for people: bytes that are not UTF-8 become U+FFFD."""
    return data.decode("utf-8", "replace")


def one_line(text: str) -> str:
    """The text in one line, with Python's escapes in the place of control characters."""
    return _HIDDEN.sub(lambda found: _escaped(found[0]), text)


def shortened(text: str) -> str:
    """The beginning of a long text, as messages show it."""
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def quote(word: str) -> str:
    """Quote a word for a shell, in one line; with $'…' (bash, POSIX.1-2024) if necessary."""
    if not _HIDDEN.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _HIDDEN.sub(lambda found: _octal(found[0]), plain) + "'"


def command(words: Iterable[str]) -> str:
    """A command, quoted so that it can be pasted into a shell."""
    return " ".join(map(quote, words))


def mib(size: int) -> str:
    """A size in bytes as messages give it, rounded up."""
    return f"{-(-size >> 20)} MiB"


def duration(seconds: float) -> str:
    """A time as messages give it."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def paused_again(domain: str, seconds: float, most: str = "") -> str:
    """How long a paused domain ran, as messages say it.

    :param most: "at most ", if the seconds are a limit.
    """
    ran = f"it ran for {most}{duration(seconds)}"
    return f"{domain} is paused again; {ran} to answer the suspend request"


def _escaped(character: str) -> str:
    if ord(character) in _NOT_UTF8:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _octal(character: str) -> str:
    code = ord(character)
    data = bytes([code - 0xDC00]) if code in _NOT_UTF8 else character.encode(errors="surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in data)
