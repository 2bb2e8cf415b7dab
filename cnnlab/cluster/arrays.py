"""The tasks of a job array: one command with different seeds, folds or settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from cnnlab.cluster.sweeps import sweep_points
from cnnlab.errors import InputError

MOST_TASKS = 10_000
"""The tasks that a job array may have; most clusters allow fewer."""


class ArrayTask(NamedTuple):
    """A task of a job array."""

    run: Path
    """The folder of the task's run."""
    flags: tuple[str, ...]
    """Flags that the task adds to the command."""

    @property
    def line(self) -> str:
        """The flags, quoted for a shell."""
        return shlex.join([*self.flags, "--run", str(self.run.absolute())])


def seed_tasks(folder: Path, text: str) -> tuple[list[ArrayTask], int | None]:
    """List a run in the folder for each seed, in SLURM's array syntax: 0-4, 1,3,7, 0-10:5; with %2, two at a time.

    Returns:
        The tasks, and how many run at a time (None without a limit).

    Raises:
        InputError: If the text has another syntax.

    >>> tasks, max_parallel = seed_tasks(Path("r"), "0-4:2,9%2")
    >>> [task.flags[1] for task in tasks], max_parallel
    (['0', '2', '4', '9'], 2)
    """
    wanted = f"--array is {text!r}, expected seeds in SLURM's array syntax: 0-4, 1,3,7, 0-10:5 (with %2, two at a time)"
    listed, percent, max_parallel = text.partition("%")
    found: dict[int, None] = {}
    for part in listed.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part)
        if bounds is None:
            raise InputError(wanted)
        first, last, step = (int(number) if number else None for number in bounds.groups())
        assert first is not None
        if ((first if last is None else last) - first) // (step or 1) >= MOST_TASKS:
            raise InputError(f"--array is {text!r}, expected at most {MOST_TASKS:,} seeds")
        found |= dict.fromkeys(range(first, (first if last is None else last) + 1, step or 1))
    if not found or (percent and not re.fullmatch(r"[1-9]\d*", max_parallel)):
        raise InputError(wanted)
    tasks = [ArrayTask(folder / f"seed-{seed}", ("--seed_everything", str(seed))) for seed in found]
    return tasks, int(max_parallel) if percent else None


def fold_tasks(folder: Path, count: int) -> list[ArrayTask]:
    """List a run for each fold of a cross-validation, in the folders that cnnlab crossval uses.

    Raises:
        InputError: If count is below 2.
    """
    if not 2 <= count <= MOST_TASKS:
        raise InputError(f"--folds is {count}, expected 2 or more, and at most {MOST_TASKS:,}")
    return [
        ArrayTask(folder / f"fold-{fold}", ("--data.folds", str(count), "--data.fold", str(fold)))
        for fold in range(count)
    ]


def sweep_tasks(folder: Path, file: Path, count: int | None) -> list[ArrayTask]:
    """List a run for each point of a sweep.

    A grid gives all of its points. Other methods give random points, since bayes needs W&B's server.

    Args:
        folder: The parent folder of the runs.
        file: A W&B sweep; only its parameters are used, not its command.
        count: Number of random points; the file's run_cap if None.

    Raises:
        InputError: If the file is not a sweep, or if its parameters cannot be sampled.
    """
    points = sweep_points(file, count, MOST_TASKS)
    return [
        ArrayTask(folder / f"point-{i}", tuple(part for name, value in point.items() for part in (f"--{name}", value)))
        for i, point in enumerate(points)
    ]
