"""cnnlab report."""

from __future__ import annotations

from pathlib import Path

from cnnlab.commands.arguments import take_option
from cnnlab.commands.messages import say
from cnnlab.errors import InputError

_USAGE = """\
usage: cnnlab report RUN [RUN...] [--out FILE]

Writes one HTML file that needs nothing else: RUN/report.html; of several runs side by side report.html."""


def report(command: str, arguments: list[str]) -> None:
    """Write the report of a run, or of several.

    Raises:
        InputError: If a folder is no run, or if something else is at the place of the report.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    from cnnlab.report import write_report
    from cnnlab.run import Run

    out, folders = take_option("--out", arguments)
    if strange := [name for name in folders if name.startswith("-")]:
        raise InputError(f"cnnlab report has no option {strange[0]}: it takes runs and --out")
    runs = [Run(Path(folder)) for folder in folders]
    path = Path(out) if out is not None else runs[0].report if len(runs) == 1 else Path("report.html")
    write_report(runs, path)
    say(f"report  {path}")
