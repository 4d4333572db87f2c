"""The texts of all refusals, from the sources of the package: what docs/troubleshooting.rst has."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyxlsnap
from pyxlsnap import errors
from pyxlsnap.errors import Refused, Risky, UsageError

PACKAGE = Path(pyxlsnap.__file__).parent
PAGE = PACKAGE.parent / "docs" / "troubleshooting.rst"
#: the place of a value in a text
VALUE = "…"
#: the errors after which nothing was done
CLASSES = {
    name
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, Refused | Risky | UsageError)
}
#: the modules that run qemu-img and LVM: what they say in a check is a refusal, too
TOOLS = ("disks/qcow2/qemu.py", "disks/lvm/commands.py")
_TERM = re.compile(r"^``(.+)``\n {4}\S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that is made somewhere in the package."""

    #: the file below the package, and the line
    module: str
    line: int
    #: its text, with :data:`VALUE` for each value; ``None`` if the text is made elsewhere
    text: str | None
    #: the expression of the text
    source: str


def refusals() -> Iterator[Refusal]:
    """All of them."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE))
        if module == "errors.py":
            continue
        tree = ast.parse(path.read_text())
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef):
                yield from _of_function(module, scope)


def _of_function(module: str, function: ast.FunctionDef) -> Iterator[Refusal]:
    named = {
        node.targets[0].id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    inner = {id(n) for f in ast.walk(function) if f is not function
             and isinstance(f, ast.FunctionDef) for n in ast.walk(f)}  # fmt: skip
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or id(node) in inner or not node.args:
            continue
        classes = CLASSES | {"DiskError"} if module in TOOLS else CLASSES
        if isinstance(node.func, ast.Name) and node.func.id in classes:
            value = node.args[0]
            if isinstance(value, ast.Name):
                value = named.get(value.id, value)
            yield Refusal(module, node.lineno, template(value), ast.unparse(node.args[0]))


def template(node: ast.expr) -> str | None:
    """The text of an expression; ``None`` if there is no word of it in the source."""
    text = _text(node)
    return plain(text) if re.search(r"[a-z]{2}", text) else None


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return VALUE


def plain(text: str) -> str:
    """A text with one :data:`VALUE` for values that follow each other, in one line."""
    return re.sub(f"{VALUE}+", VALUE, text)


def terms() -> list[str]:
    """The first words on the page, as they stand there."""
    return _TERM.findall(PAGE.read_text())


def first_words(term: str) -> str:
    """A term as the beginning of a text of :class:`Refusal`: a name in angles is a value."""
    return plain(re.sub(r"<[a-z ]+>", VALUE, term))
