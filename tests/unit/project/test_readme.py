"""The README's code blocks; its commands are run by tests/lab/test_readme.py."""

import re
import shutil
import subprocess
import tomllib

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.disks import plugins
from tests.readme import README, blocks, shell_lines, texts

#: what the lab runs, and what is tried here and in test_docs.py
COMMANDS, OTHERS = {"sh", "console", "python"}, {"text", "cfg", "toml"}


def make_commands() -> list[str]:
    """Those in blocks and in running text."""
    shown = r"(?:^ {4}|`)(make(?: [A-Z]+=\S+)* [a-z]+(?: [A-Z]+=\w+)*)"
    pages = (README, README.with_name("CONTRIBUTING.md"))
    found = [m for page in pages for m in re.findall(shown, page.read_text(), re.MULTILINE)]
    return sorted({*found, *(line for line in shell_lines() if line.startswith("make "))})


def test_there_is_a_test_for_each_block() -> None:
    assert {block.language for block in blocks(README.read_text())} == COMMANDS | OTHERS


def test_a_block_that_is_only_indented_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="its language: rm -rf"):
        blocks("# Title\n\n```sh\ntrue\n```\n\n    rm -rf /\n")


@pytest.mark.parametrize("command", make_commands())
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_what_is_to_be_made_is_a_target(command: str) -> None:
    run = subprocess.run(
        [*command.split(), "-n"], cwd=README.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_cfgfile_can_be_read() -> None:
    (text,) = texts("cfg")
    config = cfgfile.parse(text.encode(), file="web1.cfg")
    assert config.name == "before-upgrade"
    assert [disk.vdev for disk in config.disks or ()] == ["xvda", "xvdb"]


def test_the_entry_point_is_the_one_that_is_looked_for() -> None:
    (text,) = texts("toml")
    ((group, entries),) = tomllib.loads(text)["project"]["entry-points"].items()
    assert group == plugins.GROUP
    assert [re.fullmatch(r"[\w.]+:\w+", value) is not None for value in entries.values()] == [True]
