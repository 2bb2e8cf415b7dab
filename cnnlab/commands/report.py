"""cnnlab report."""

from __future__ import annotations

from pathlib import Path

from cnnlab.commands.arguments import take_option
from cnnlab.commands.messages import say
from cnnlab.errors import InputError
from cnnlab.run import Run
from cnnlab.writing import write_atomically

_USAGE = """\
usage: cnnlab report RUN [RUN...] [--out FILE]

Writes one HTML file that needs nothing else: RUN/report.html. That of several runs side by side lies with the first
one: RUN/results/RUN-RUN/report.html."""


def report(command: str, arguments: list[str]) -> None:
    """Write the report of a run, or of several.

    Raises:
        InputError: If a folder is no run, or if something else is at the place of the report.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    from cnnlab.report import write_report

    out, folders = take_option("--out", arguments)
    if strange := [name for name in folders if name.startswith("-")]:
        raise InputError(f"cnnlab report has no option {strange[0]}: it takes runs and --out")
    runs = [Run(Path(folder)) for folder in folders]
    path = Path(out) if out is not None else _place_of(runs)
    write_report(runs, path)
    say(f"report  {path}")


def _place_of(runs: list[Run]) -> Path:
    """The report of a run, or of several: in a folder that carries their names, with the first one."""
    if len(runs) == 1:
        return runs[0].report
    for run in runs:
        if not run.folder.is_dir():
            raise InputError(f"there is no run {run.folder}")
    source = " ".join(str(run.folder.absolute()) for run in runs)
    results = runs[0].results_of(source, "-".join(run.folder.absolute().name for run in runs))
    write_atomically(results.folder / "source.txt", source.encode())
    return results.report
