"""Messages of the commands: errors in one line, differences from a checkpoint, summaries."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnlab.errors import InputError, nearest
from cnnlab.imports import by_path, parameters_of


def say(text: str) -> None:
    """Print a line for the user."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def explain_parser_error(message: str, keys: Iterable[str], class_paths: Iterable[str]) -> str:
    """Convert jsonargparse's message to one line: the key, the value, what was expected, the nearest valid name.

    >>> explain_parser_error("unrecognized arguments: --trainer.max_epoch 3", ["trainer.max_epochs"], [])
    "there is no option --trainer.max_epoch: did you mean 'trainer.max_epochs'?"
    """
    if found := re.match(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        dashes = "--" if "arguments: --" in message else ""
        return f"there is no option {dashes}{found[1]}: {nearest(found[1], keys)}"
    if found := re.search(r"does not accept option '([^']+)'", message):
        return f"there is no key {found[1]!r}: {nearest(found[1], keys)}"
    if found := re.search(r"arguments are required: (.+)", message):
        missing = ", ".join(f"--{name.strip().partition('.')[2]}" for name in found[1].split(","))
        return f"{missing} must be given: by a recipe (--config NAME; cnnlab recipes lists them), or each by itself"
    outer = re.match(r'Parser key "([^"]+)"', message)
    key = outer[1] if outer else "the configuration"
    if found := re.search(r"class_path '([^']+)'[^\n]*\n\s*Option '([^']+)' is not accepted", message):
        return f"{key}: {found[1]} has no {found[2]!r}: {nearest(found[2], parameters_of(by_path(found[1])))}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        choices = {path.rpartition(".")[2]: path for path in class_paths}
        return f"{key}: there is no class {found[1]!r}: {nearest(found[1], choices)} (or a class_path, package.Class)"
    if found := re.search(r'class_path \'[^\']+\'.*?Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        # The rest of the message lists other types that the outer key accepts.
        return _explain_value(f"{key}.{found[1]}", found[2].split("\n    - Expected")[0])
    return _explain_value(key, message)


def _explain_value(key: str, text: str) -> str:
    given = re.findall(r"(?:Given value|Got value|value): (.+)", text)
    if given:
        # The first value is the innermost; the outer one is the whole class.
        value = given[0].strip()
        wanted = re.findall(r"Expected an? (?:<class '|typing\.)([^'].*?)(?:'>|\.? Got value|$)", text, re.MULTILINE)
        if wanted:
            kinds = " or ".join(dict.fromkeys("null" if kind == "NoneType" else kind for kind in wanted))
            return f"{key} is {value!r}, expected {kinds}"
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    return f"{key}: {'; '.join(lines)}" if not text.startswith("Parser key") else "; ".join(lines)


def check_applicable(asked: argparse.Namespace, parser: argparse.ArgumentParser, names: Iterable[str], to: str) -> None:
    """Refuse options that were given though they do not apply.

    Args:
        asked: The parsed options.
        parser: Their parser, which knows the defaults.
        names: The options that do not apply.
        to: What they do not apply to.

    Raises:
        InputError: If the value of one is not its default.
    """
    if given := [f"--{name}" for name in names if getattr(asked, name) != parser.get_default(name)]:
        raise InputError(f"{', '.join(given)} does not apply to {to}: leave it out")


def check_new(path: Path, *suffixes: str) -> None:
    """Check the place of --out before the work begins.

    Raises:
        InputError: If it exists, or if its name does not end with one of the suffixes.
    """
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"--out {path}: expected a file that ends with {' or '.join(suffixes)}")
    if path.exists():
        raise InputError(f"--out {path} exists already, and is not overwritten: choose another, or remove it")


def differences(asked: Mapping[str, Any], kept: Mapping[str, Any], prefix: str) -> list[str]:
    """List the settings that differ from the checkpoint's.

    >>> differences({"lr": 0.1}, {"lr": 0.2, "other": 1}, "model")
    ["model.lr is 0.1 (the checkpoint's: 0.2)"]
    """
    return [
        f"{prefix}.{key} is {asked[key]!r} (the checkpoint's: {kept[key]!r})"
        for key in sorted(set(asked) & set(kept))
        if asked[key] != kept[key]
    ]


def summary(title: str, rows: Mapping[str, object]) -> None:
    """Print a title, and a table of names and values."""
    print_table(title, [], [(name, str(value)) for name, value in rows.items()])


def print_table(
    title: str,
    columns: Sequence[tuple[str, bool]],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
    width: int = 0,
) -> None:
    """Print a table.

    Args:
        title: A line above it.
        columns: Each column's name, and whether it has numbers, which stand on the right; no header if empty.
        rows: The cells.
        notes: Lines below it.
        width: Characters that a line may have even if the terminal has fewer: a wrapped table is hard to read.
    """
    table = Table(title=Text(title), title_justify="left", show_header=bool(columns), box=None, padding=(0, 2, 0, 0))
    for name, numbers in columns:
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, width)
    console.print(table)
    for line in notes:
        console.print(Text(line))
