"""Prints the shell script that completes commands and flags.

eval "$(mtl-jax completion bash)"       in ~/.bashrc
eval "$(mtl-jax completion zsh)"        in ~/.zshrc, after compinit
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from mtl_jax import cli
from mtl_jax.cli import flags

BASH = """\
_mtl_jax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if (( COMP_CWORD == 1 )); then
    words={commands}
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mtl_jax mtl-jax
"""
ZSH = """\
_mtl_jax() {{
  if (( CURRENT == 2 )); then
    local -a commands=(
{commands}
    )
    _describe command commands
    return
  fi
  case ${{words[2]}} in
{cases}
  esac
}}
compdef _mtl_jax mtl-jax
"""


class Flag(NamedTuple):
    """Completions of one argument of a command."""

    names: tuple[str, ...]  # empty for a positional argument
    choices: tuple[str, ...]
    help: str
    takes_value: bool


def parser() -> flags.Parser:
    """Returns the command's flags."""
    parser = flags.Parser("completion", __doc__)
    parser.add_argument("shell", choices=tuple(SHELLS), help="shell of the script")
    return parser


@flags.reported
def main(arguments: Sequence[str]) -> int:
    """Prints the completion script."""
    print(SHELLS[parser().parse_args(arguments).shell](), end="")
    return 0


def flags_of(command: str) -> list[Flag]:
    """Returns the flags and positional arguments of a command."""
    return [
        Flag(
            tuple(action.option_strings),
            tuple(map(str, action.choices or ())),
            (action.help or "").replace("%%", "%"),
            action.nargs != 0,
        )
        for action in cli.module(command).parser()._actions
        if action.help != argparse.SUPPRESS
    ]


def bash() -> str:
    """Returns a completion function for bash: commands, then flags and choices, otherwise files."""
    cases = []
    for command in cli.COMMANDS:
        flag_names = flags_of(command)
        lines = [
            f"          {'|'.join(flag.names)}) words={_quote(' '.join(flag.choices))} ;;"
            for flag in flag_names
            if flag.names and any(flag.choices)
        ]
        positional_choices = [choice for flag in flag_names if not flag.names for choice in flag.choices]
        names = [name for flag in flag_names for name in flag.names]
        default = f"          *) words={_quote(' '.join((*positional_choices, *names)))} ;;"
        cases += [f"      {command})", "        case $before in", *lines, default, "        esac ;;"]
    return BASH.format(commands=_quote(" ".join(cli.COMMANDS)), cases="\n".join(cases))


def zsh() -> str:
    """Returns a completion function for zsh, with descriptions of commands and flags."""
    commands = [f"      {_quote(f'{name}:{summary}')}" for name, summary in cli.COMMANDS.items()]
    cases = []
    for command in cli.COMMANDS:
        specs = [spec for flag in flags_of(command) for spec in _zsh_specs(flag)]
        cases += [f"    {command}) shift words; (( CURRENT-- ))", "      _arguments \\"]
        cases += [*(f"        {_quote(spec)} \\" for spec in specs), "        '*:file:_files' ;;"]
    return ZSH.format(commands="\n".join(commands), cases="\n".join(cases))


def _zsh_specs(flag: Flag) -> list[str]:
    values = f"({' '.join(flag.choices)})" if any(flag.choices) else "_files"
    if not flag.names:
        return [f"1:{_escape(flag.help)}:{values}"] if any(flag.choices) else []
    value = f":value:{values}" if flag.takes_value else ""
    return [f"{name}{'=' if value else ''}[{_escape(flag.help)}]{value}" for name in flag.names if name != "-h"]


def _escape(text: str) -> str:
    """Escapes the special characters of `_arguments`."""
    return text.translate(str.maketrans({"[": "(", "]": ")", ":": ";", "\n": " "}))


def _quote(text: str) -> str:
    """Quotes a text as one shell word."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS = {"bash": bash, "zsh": zsh}
