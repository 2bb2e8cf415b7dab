"""SLURM's own commands: to submit a script, and to ask for jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cnnlab.errors import InputError
from cnnlab.run import RUN_VARIABLE


def submit(script: Path) -> str:
    """Hand a script to SLURM.

    Returns:
        The job's id.

    Raises:
        InputError: If there is no SLURM here, or if it refuses the script.
    """
    # ID, or ID;CLUSTER
    return _asked("sbatch", "--parsable", str(script)).strip().partition(";")[0]


_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"
)  # fmt: skip


def unfinished(ids: Sequence[str]) -> list[str]:
    """Those of some jobs that wait or run."""
    going = [row["job"].partition("_")[0] for row in job_states(ids) if row["state"] not in _ENDED]
    return list(dict.fromkeys(going))


def is_here() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def job_states(ids: Sequence[str]) -> list[dict[str, str]]:
    """What SLURM says of jobs; of those that have ended it may say nothing.

    Returns:
        A row for each job, or task of a job array, that it knows: job, state, elapsed, limit, where (nodes, or why
        it waits).
    """
    if not ids:
        return []
    text = _asked("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%M|%l|%R")
    rows = [
        dict(zip(("job", "state", "elapsed", "limit", "where"), line.split("|", 4), strict=True))
        for line in text.splitlines()
    ]
    return [row for row in rows if row["job"].partition("_")[0] in ids]


def _asked(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise InputError(f"there is no SLURM on this machine ({command[0]} is not found)")
    # A job begins with this process's variables, and must choose its folder itself.
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"{command[0]} refuses: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
