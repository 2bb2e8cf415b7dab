"""The command line: dispatch to a command, and conversion of errors to a message and an exit status.

Large libraries are imported only by commands that need them: ``cnnlab --help`` takes a fraction of a second.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cnnlab.commands import COMMANDS
from cnnlab.errors import CnnlabError, InputError, explain_foreign, nearest


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, this process's if None.

    Returns:
        The exit status: 0; 2 for an error that the user can fix; 128 + n if signal n stopped a run.
    """
    arguments = [_at_home(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    try:
        # Makes the user's own classes in the working folder available by class_path.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return _dispatch(arguments)
    except CnnlabError as error:
        if os.environ.get("CNNLAB_TRACEBACK"):
            raise
        print(f"cnnlab: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe, such as head, has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, RuntimeError) as error:
        explained = explain_foreign(error)
        if explained is None or os.environ.get("CNNLAB_TRACEBACK"):
            raise
        print(f"cnnlab: {explained}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cnnlab: interrupted", file=sys.stderr)
        return 130


def _at_home(argument: str) -> str:
    """Replace a ~ for the home folder, which the shell leaves in --run=~/R and in quotes.

    >>> _at_home("--run=~/R").removeprefix("--run=") == str(Path("~/R").expanduser()), _at_home("a~/b")
    (True, 'a~/b')
    """
    name, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return name + equals + str(Path(value).expanduser()) if value == "~" or value.startswith("~/") else argument


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        from cnnlab.versions import versions

        print("\n".join(f"{name:12} {version}" for name, version in versions().items()))
        return 0
    if first not in COMMANDS:
        raise InputError(f"there is no command {first!r}: {nearest(first, COMMANDS)} (cnnlab --help lists them)")
    command = COMMANDS[first]
    if command.first is not None:
        _function(command.first)(first, arguments[1:])
    function = _function(command.function)
    if command.raw:
        function(first, arguments[1:])
    else:
        _call(function, f"cnnlab {first}", arguments[1:])
    return 0


def _function(path: str) -> Any:
    """The function of module:name, whose module is in cnnlab.commands or has a whole import path."""
    module, _, name = path.partition(":")
    module = module if "." in module else f"cnnlab.commands.{module}"
    if module not in sys.modules and "torch" not in sys.modules:
        # Looking for garbage takes a fourth of the time of large imports, and finds none. Where torch is there already,
        # as in a notebook, freezing would keep what nobody uses.
        gc.disable()
        try:
            importlib.import_module(module)
        finally:
            gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # Libraries expect their objects to be collected at the end.
    return getattr(importlib.import_module(module), name)


def _call(function: Any, name: str, arguments: list[str]) -> None:
    """Call a function with the arguments of a command line, by its signature."""
    from argparse import ArgumentError

    from jsonargparse import auto_cli

    parameters = inspect.signature(function).parameters.values()
    takes = [one.name.upper() if one.default is one.empty else f"[--{one.name}]" for one in parameters]
    try:
        auto_cli(function, args=arguments, as_positional=True, prog=name, exit_on_error=False)
    except ArgumentError as error:
        from cnnlab.commands.messages import explain_parser_error

        explained = explain_parser_error(str(error), [one.name for one in parameters], [])
        if "unrecognized arguments" in str(error) or "arguments are required" in str(error):
            explained = f"{' '.join([name, *arguments])}: expected {' '.join([name, *takes])}"
        raise InputError(f"{explained} ({name} --help)") from error


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cnnlab COMMAND [ARGUMENTS]",
            "",
            "From images to a convolutional network.",
            "",
            "commands:",
            *lines,
            "",
            "cnnlab COMMAND --help explains one; cnnlab --version says the versions that a bug report needs;",
            "CNNLAB_TRACEBACK=1 shows where an error came from.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
