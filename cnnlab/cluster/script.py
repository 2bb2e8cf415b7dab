"""The script of a SLURM job."""

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

REQUEUE_STATUS = 128 + signal.SIGUSR1
"""The exit status of a run that saved itself shortly before its time limit; its job is queued again."""
WARNING_SECONDS = 90
"""Seconds between SLURM's warning signal and the time limit."""


@dataclass(frozen=True)
class Job:
    """A job: its command and its resources."""

    name: str
    command: Sequence[str]
    """The arguments of cnnlab."""
    folder: Path
    """The folder of the script and of the job's output."""
    time: str
    """The time limit, in one of SLURM's formats."""
    nodes: int = 1
    gpus_per_node: int = 1
    """0 to use CPUs only."""
    processes_per_node: int = 1
    cpus_per_process: int | None = None
    tasks: Sequence[ArrayTask] = ()
    """The tasks of a job array; a single job if empty."""
    max_parallel: int | None = None
    """The maximum number of tasks that run at a time."""
    sbatch: Sequence[str] = ()
    """Further options of sbatch, such as --partition=gpu."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set."""
    data_to_copy: Path | None = None
    """A folder of data that each node first copies to its own disk."""
    requeues: bool = True
    """Whether the job saves its run before the time limit and queues itself again; only training does."""


def parse_minutes(time: str) -> float:
    """Convert a time in one of SLURM's formats to minutes.

    Raises:
        InputError: If the time has another format.

    >>> [parse_minutes(time) for time in ("30", "30:30", "2:00:00", "1-12", "1-12:30", "1-00:00:30")]
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
    """Render the job's script."""
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
        # A comment is one line.
        command_line=" ".join(shlex.join(["cnnlab", *job.command]).split()),
        warning_seconds=WARNING_SECONDS,
        requeue_status=REQUEUE_STATUS,
        terminated_status=128 + signal.SIGTERM,
        working_folder=Path.cwd(),
        output=job.folder.absolute() / ("%A_%a.out" if job.tasks else "%j.out"),
    )
