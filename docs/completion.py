"""Completion for bash and zsh, generated from the parser of the command line."""

import shtab

from docs.commands import commands
from pyxlsnap.cli.parser import build_parser

# A shell evaluates the words that it is offered, and others choose the names of domains: offer only
# harmless names.
_DOMAINS = (
    "xl list 2>/dev/null | "
    """awk 'NR > 1 && $2 > 0 && NF == 6 && $1 ~ /^[A-Za-z0-9_.+@-]+$/ { print $1 }'"""
)
_PREAMBLE = {
    "bash": f"""\
_pyxlsnap_domains() {{
  compgen -W "$({_DOMAINS})" -- "$1"
}}
""",
    "zsh": f"""\
_pyxlsnap_domains() {{
  local -a domains
  domains=(${{(f)"$({_DOMAINS})"}})
  compadd -a domains
}}
""",
}
_COMPLETES = {
    "domain": {"bash": "_pyxlsnap_domains", "zsh": "_pyxlsnap_domains"},
    "cfgfile": shtab.FILE,
}


def script(shell: str) -> str:
    """The completion script for a shell, "bash" or "zsh"."""
    parser = build_parser()
    for command in commands(parser).values():
        for action in command._actions:
            if action.dest in _COMPLETES:
                action.complete = _COMPLETES[action.dest]  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell]))
