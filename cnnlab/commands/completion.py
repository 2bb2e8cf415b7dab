"""cnnlab completion."""

from __future__ import annotations

import argparse
from typing import Literal

from cnnlab.errors import InputError

_PREAMBLE = {
    "bash": """_cnnlab_configs() {{ compgen -W "{recipes}" -- "$1"; _shtab_compgen_files "$1"; }}""",
    "zsh": """_cnnlab_configs() {{ _alternative "recipes:recipe:({recipes})" "files:file:_files" }}""",
}
"""Shell functions that complete the value of --config: recipes and files."""


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a completion script for the shell to evaluate: eval "$(cnnlab completion bash)".

    It completes commands, recipes, options and files. The options are those of the installed version.

    Args:
        shell: The shell.

    Raises:
        InputError: If shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise InputError('completion needs shtab: pip install "cnnlab[completion]"') from error
    from cnnlab import recipes
    from cnnlab.commands import COMMANDS

    options = _options()
    parser = argparse.ArgumentParser("cnnlab")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.purpose)
        _complete(subparser.add_argument("paths", nargs="*"), shtab.FILE)
        _complete(subparser.add_argument("-c", "--config"), dict.fromkeys(_PREAMBLE, "_cnnlab_configs"))
        for option in options.get(name, ()):
            subparser.add_argument(f"--{option}")
    print(shtab.complete(parser, shell, preamble=_PREAMBLE[shell].format(recipes=" ".join(recipes.names()))), end="")


def _complete(action: argparse.Action, functions: object) -> None:
    """Tell shtab which shell function completes an argument."""
    action.complete = functions  # type: ignore[attr-defined]


def _options() -> dict[str, list[str]]:
    """Return the options of LightningCLI's commands, including those of cnnlab's own tasks and data."""
    import contextlib
    from pathlib import Path

    from lightning.pytorch.cli import ArgsType, LightningArgumentParser

    from cnnlab.commands.arguments import Plan
    from cnnlab.commands.training import VisionCLI
    from cnnlab.run import Run

    found: dict[str, list[str]] = {}

    class ParsersOnly(VisionCLI):
        """Stops after the parsers are made."""

        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            found.update({name: sorted(self.option_names(name) - {"config"}) for name in self.parsers})
            raise SystemExit

    with contextlib.suppress(SystemExit):
        ParsersOnly(Plan(Run(Path()), []))
    return {**found, "resume": found["fit"]}
