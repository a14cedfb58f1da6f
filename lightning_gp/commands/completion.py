"""``lightning-gp completion``: a script that lets a shell complete commands, options, classes and configs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from lightning_gp.commands.helps import FUNCTIONS, OWN, help_for
from lightning_gp.commands.known import COMMANDS
from lightning_gp.commands.names import configs
from lightning_gp.runs.synopsis import names

SCRIPT = """\
_lightning_gp() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    case "$before" in
        --config|-c) words="{configs}" ;;
        --model) words="{algorithms}" ;;
        --model.network) words="{networks}" ;;
        --data) words="{data}" ;;
        --trainer.callbacks|--trainer.callbacks+) words="{callbacks}" ;;
    esac
    if [ -z "$words" ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
        [ "$COMP_CWORD" = 1 ] && words="{commands}"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"; compgen -f -- "$current"))
}}
complete -o filenames -F _lightning_gp lightning-gp
"""


def main(args: Sequence[str]) -> None:
    """Prints the script for bash or zsh."""
    parser = argparse.ArgumentParser(
        prog="lightning-gp completion",
        description='Prints a script for the tab key: eval "$(lightning-gp completion bash)" in ~/.bashrc.',
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    shell = parser.parse_args(args).shell
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(script(), end="")


def script() -> str:
    """The script for bash."""
    cases = []
    for command in sorted({*OWN, *(name.partition(" ")[0] for name in FUNCTIONS)}):
        options = set(re.findall(r"^  (--[\w-]+)", help_for([command, "--help"]) or "", re.MULTILINE))
        second = [name.partition(" ")[2] for name in FUNCTIONS if name.startswith(f"{command} ")]
        cases.append(f'            {command}) words="{" ".join([*second, *sorted(options)])}" ;;')
    kinds = {"algorithms": "modules", "networks": "networks", "data": "datamodules", "callbacks": "callbacks"}
    known = {kind: " ".join(name for name, _ in names(home)) for kind, home in kinds.items()}
    found = " ".join(sorted(name for name, _ in configs()))
    return SCRIPT.format(cases="\n".join(cases), commands=" ".join(COMMANDS), configs=found, **known)
