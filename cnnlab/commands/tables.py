"""Records as a table for people, or as JSON or CSV for programs."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def add_forms(parser: argparse.ArgumentParser) -> None:
    """Add --json and --csv."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print JSON instead of a table")
    forms.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def show(title: str, records: Sequence[Record], asked: argparse.Namespace, below: Sequence[str] = ()) -> None:
    """Print records, as was asked for.

    Args:
        title: Stands above a table.
        records: With the same keys each; text and numbers.
        asked: What add_forms has added.
        below: Lines that stand below a table.
    """
    if asked.json:
        print(json.dumps(list(records), indent=2))
    elif asked.csv:
        writer = csv.DictWriter(sys.stdout, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)
    else:
        _table(title, records, below)


def _table(title: str, records: Sequence[Record], below: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in records[0] if records else ():
        numbers = all(isinstance(record[name], int | float | None) for record in records)
        table.add_column(name.replace("_", " "), justify="right" if numbers else "left", no_wrap=True)
    for record in records:
        table.add_row(*[Text(_cell(value)) for value in record.values()])
    # A table that is folded cannot be read.
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 240)
    console.print(table)
    for line in below:
        console.print(Text(line))


def _cell(value: Any) -> str:
    """A value for people.

    >>> _cell(None), _cell(True), _cell(128714), _cell(0.5), _cell(4089184256)
    ('', 'yes', '128,714', '0.5', '4.089 G')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        for unit, size in (("G", 10**9), ("M", 10**6)):
            if abs(value) >= size:
                return f"{value / size:.4g} {unit}"
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
