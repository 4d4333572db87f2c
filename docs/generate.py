"""Generate docs/share, which is installed beside the package: ``python -m docs.generate``.

It holds the man pages, completion for bash and zsh, and the JSON Schema, all made from the code.
The files are in the repository, so that an installation does not need the tools that make them.
"""

import json
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

from docs import completion
from docs.schema import schema

HERE = Path(__file__).resolve().parent


def main(dest: Path = HERE / "share") -> None:
    """Write all files below ``dest``, in the folders in which they are installed below share/."""
    _man_pages(dest / "man")
    _write(dest / "bash-completion" / "completions" / "pyxlsnap", completion.script("bash"))
    _write(dest / "zsh" / "site-functions" / "_pyxlsnap", completion.script("zsh"))
    _write(dest / "pyxlsnap" / "pyxlsnap.schema.json", json.dumps(schema(), indent=1))


def _man_pages(dest: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "man"
        options = ["-q", "-E", "-W", "-b", "man", "-d", f"{directory}/doctrees"]
        if status := build_main([*options, str(HERE), str(built)]):
            sys.exit(status)
        for page in built.glob("man?/*"):
            _write(dest / page.relative_to(built), page.read_text())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
