"""The parser of commands with options of their own: errors in one line, with the option that may be meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from cnnlab.errors import InputError, nearest, similar

_OF_FIT = ("config", "c", "run", "resume", "ckpt_path", "seed_everything", "print_config", "trainer", "model", "data")
"""Options of fit and predict without a dot in their names; commands that take such options pass the others on too."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises InputError.

    Args:
        **kwargs: See argparse.ArgumentParser.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_own(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments that all must be the command's own.

        Raises:
            InputError: If one is unknown, missing or wrong.
        """
        asked, others = self.parse_known_args(arguments)
        if flag := next((one for one in others if one.startswith("-")), None):
            raise self.unknown(flag)
        if others:
            self.error(f"there is no place for {others[0]!r}")
        return asked

    def parse_with_others(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command's own arguments, and return them and those of fit or predict.

        Raises:
            InputError: If an own one is missing or wrong, or if an unknown one is near to an own one.
        """
        asked, others = self.parse_known_args(arguments)
        for flag in others:
            name = flag.partition("=")[0].removeprefix("--")
            if flag.startswith("--") and "." not in name and name not in _OF_FIT and similar(name, self._names()):
                raise self.unknown(flag)
        return asked, others

    def unknown(self, flag: str) -> InputError:
        """The error of an option that the command does not have."""
        name = flag.partition("=")[0]
        return InputError(f"{self.prog} has no option {name}: {nearest(name.lstrip('-'), self._names())}")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message, without the usage.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{message} ({self.prog} --help)")

    def _names(self) -> list[str]:
        return re.findall(r"--([\w-]+)", self.format_usage())
