"""Print records as a table, as JSON or as CSV."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from typing import Any

from cnnlab.commands.messages import print_table
from cnnlab.writing import to_json

Record = dict[str, Any]


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add --json and --csv."""
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print JSON instead of a table")
    formats.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def show(title: str, records: Sequence[Record], arguments: argparse.Namespace, notes: Sequence[str] = ()) -> None:
    """Print records in the format that the options of add_format_options choose; only a table has title and notes.

    The records have the same keys; their values are text and numbers.
    """
    if arguments.json:
        print(to_json(records))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)
    else:
        columns = [
            (name.replace("_", " "), all(isinstance(record[name], int | float | None) for record in records))
            for name in (records[0] if records else ())
        ]
        print_table(title, columns, [list(map(_cell, record.values())) for record in records], notes, width=240)


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
