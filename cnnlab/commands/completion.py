"""cnnlab completion."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

_BASH = """\
_cnnlab() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" options=""
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
  elif [ "$previous" = --config ] || [ "$previous" = -c ]; then
    COMPREPLY=($(compgen -W "{recipes}" -f -- "$word"))
  elif [ "${{word#-}}" != "$word" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o nospace -F _cnnlab cnnlab
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a completion script: source <(cnnlab completion bash).

    It knows the commands, the recipes, and the options of this version.

    Args:
        shell: Whose.
    """
    from cnnlab import recipes
    from cnnlab.commands import COMMANDS

    cases = [f'    {command}) options="{" ".join(names)}" ;;' for command, names in _options().items()]
    script = _BASH.format(cases="\n".join(cases), commands=" ".join(COMMANDS), recipes=" ".join(recipes.names()))
    print(_ZSH + script if shell == "zsh" else script, end="")


def _options() -> dict[str, list[str]]:
    """The options of each command, those of cnnlab's own tasks and data included."""
    import inspect

    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser

    import cnnlab.data
    import cnnlab.tasks
    from cnnlab.commands.arguments import Plan
    from cnnlab.commands.training import VisionCLI
    from cnnlab.run import Run

    found: dict[str, list[str]] = {}

    class SampleIndex(VisionCLI):
        """Stops when the parsers are made."""

        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            for command, subparser in self._subcommand_parsers.items():
                found[command] = [name for action in subparser._actions for name in action.option_strings]
            raise _ListedError

    with contextlib.suppress(_ListedError):
        SampleIndex(Plan(Run(Path()), []))
    for room, package in (("model", cnnlab.tasks), ("data", cnnlab.data)):
        classes = [getattr(package, name) for name in package.__all__]
        modules = [
            kind
            for kind in classes
            if inspect.isclass(kind) and issubclass(kind, (LightningModule, LightningDataModule))
        ]
        names = {name for kind in modules for name in inspect.signature(kind).parameters}
        for command in found:
            found[command] += [f"--{room}.{name}" for name in sorted(names)]
    return {**found, "resume": found["fit"]}


class _ListedError(Exception):
    """The parsers are made, and nothing is to be run."""
