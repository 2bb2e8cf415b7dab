"""cnnlab completion."""

from __future__ import annotations

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
    from cnnlab.commands.training import options

    cases = [f'    {command}) options="{" ".join(names)}" ;;' for command, names in options().items()]
    script = _BASH.format(cases="\n".join(cases), commands=" ".join(COMMANDS), recipes=" ".join(recipes.names()))
    print(_ZSH + script if shell == "zsh" else script, end="")
