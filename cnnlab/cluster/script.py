"""The script of a SLURM job, to be read before it is submitted, and to be submitted again."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnlab.cluster.arrays import ArrayTask
from cnnlab.errors import InputError

REQUEUE = 128 + signal.SIGUSR1
"""The exit status of a run that has saved itself because its time is almost over: it is to be queued again."""
LEAD = 90
"""Seconds before the end of a job's time at which SLURM warns it."""


@dataclass(frozen=True)
class Job:
    """A job: what it runs, and on what."""

    name: str
    command: Sequence[str]
    """The arguments of cnnlab."""
    folder: Path
    """Where the script and what the job prints are kept."""
    time: str
    """Its time, in one of SLURM's forms."""
    nodes: int = 1
    gpus_per_node: int = 1
    """0 for the CPU."""
    processes_per_node: int = 1
    cpus_per_process: int | None = None
    tasks: Sequence[ArrayTask] = ()
    """The tasks of a job array; a single job if empty."""
    at_once: int | None = None
    """How many of those run at the same time, at the most."""
    sbatch: Sequence[str] = ()
    """Further options of sbatch, as they are: --partition=gpu."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to be set."""
    copied: Path | None = None
    """A folder of data that each node copies to its own disk before it begins."""
    goes_on: bool = True
    """Whether it saves itself and queues up again when its time is almost over: a training does."""


def minutes(time: str) -> float:
    """A time in one of SLURM's forms, in minutes.

    Raises:
        InputError: If it is in none.

    >>> [minutes(time) for time in ("30", "30:30", "2:00:00", "1-12", "1-12:30", "1-00:00:30")]
    [30.0, 30.5, 120.0, 2160.0, 2190.0, 1440.5]
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise InputError(
            f"--time is {time!r}, expected minutes, hours:minutes:seconds or days-hours (30, 8:00:00, 2-12)"
        )
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, mins, seconds = numbers + [0] * (3 - len(numbers))
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        (mins, seconds), hours = numbers + [0] * (2 - len(numbers)), 0
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


def render(job: Job) -> str:
    """The script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cnnlab.cluster", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = shlex.quote
    return environment.get_template("job.sh.jinja").render(
        job=job,
        command=shlex.join([sys.executable, "-m", "cnnlab", *job.command]),
        # A comment ends with its line.
        spoken=" ".join(shlex.join(["cnnlab", *job.command]).split()),
        lead=LEAD,
        requeue=REQUEUE,
        ended=128 + signal.SIGTERM,
        here=Path.cwd(),
        output=job.folder.absolute() / ("%A_%a.out" if job.tasks else "%j.out"),
    )
