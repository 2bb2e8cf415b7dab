"""Print records as a table, as JSON or as CSV."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add --json and --csv."""
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON instead of a table")
    formats.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def show(title: str, records: Sequence[Record], arguments: argparse.Namespace, notes: Sequence[str] = ()) -> None:
    """Print records in the format that the arguments choose.

    Args:
        title: The title of a table.
        records: Records with the same keys; their values are text and numbers.
        arguments: Parsed arguments with the options of add_format_options.
        notes: Lines below a table.
    """
    if arguments.json:
        print(json.dumps(list(records), indent=2))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)
    else:
        _table(title, records, notes)


def _table(title: str, records: Sequence[Record], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in records[0] if records else ():
        numbers = all(isinstance(record[name], int | float | None) for record in records)
        table.add_column(name.replace("_", " "), justify="right" if numbers else "left", no_wrap=True)
    for record in records:
        table.add_row(*[Text(_cell(value)) for value in record.values()])
    # A wrapped table is hard to read.
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 240)
    console.print(table)
    for line in notes:
        console.print(Text(line))


def _cell(value: Any) -> str:
    """Format a value for a table.

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
