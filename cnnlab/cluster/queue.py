"""SLURM's commands that submit a script and list jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cnnlab.errors import InputError
from cnnlab.run import RUN_VARIABLE


def submit(script: Path) -> str:
    """Submit a script to SLURM, and return the job's id.

    Raises:
        InputError: If this machine has no SLURM, or if SLURM rejects the script.
    """
    # ID, or ID;CLUSTER
    return _run("sbatch", "--parsable", str(script)).strip().partition(";")[0]


_FINISHED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"
)  # fmt: skip


def active_jobs(ids: Sequence[str]) -> list[str]:
    """Return the ids of the jobs that are waiting or running."""
    going = [row["job"].partition("_")[0] for row in job_states(ids) if row["state"] not in _FINISHED]
    return list(dict.fromkeys(going))


def is_available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def job_states(ids: Sequence[str]) -> list[dict[str, str]]:
    """Query the states of jobs. SLURM forgets jobs some time after they have ended.

    Returns:
        A row for each known job or array task: job, state, elapsed, limit, where (its nodes, or why it waits).
    """
    if not ids:
        return []
    text = _run("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%M|%l|%R")
    rows = [
        dict(zip(("job", "state", "elapsed", "limit", "where"), line.split("|", 4), strict=True))
        for line in text.splitlines()
    ]
    return [row for row in rows if row["job"].partition("_")[0] in ids]


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise InputError(f"this machine has no SLURM ({command[0]} is not found)")
    # A job inherits this process's variables, and must choose its own folder.
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"{command[0]} refuses: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
