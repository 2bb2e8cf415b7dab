"""The tasks of a job array: one command with different seeds, folds or settings."""

from __future__ import annotations

import itertools
import math
import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cnnlab.errors import InputError


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
    if count < 2:
        raise InputError(f"--folds is {count}, expected 2 or more")
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
    try:
        sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
        parameters: dict[str, Mapping[str, Any]] = sweep["parameters"]
    except OSError as error:
        raise InputError(f"--sweep {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"--sweep {file} is not a W&B sweep: expected YAML with parameters") from error
    if sweep.get("method") == "grid":
        for name, space in parameters.items():
            if "values" not in space and "value" not in space:
                raise InputError(f"--sweep {file}: {name} has no values, which a grid needs (or set method: random)")
        choices = [space.get("values", [space.get("value")]) for space in parameters.values()]
        points = list(itertools.product(*choices))
    else:
        count = count or sweep.get("run_cap")
        if count is None:
            raise InputError(f"--sweep {file} has no run_cap: give the number of points with --count")
        generator = random.Random(str(sorted(sweep.items(), key=str)))
        points = [
            tuple(_draw(generator, f"--sweep {file}: {name}", space) for name, space in parameters.items())
            for _ in range(count)
        ]
    return [
        ArrayTask(
            folder / f"point-{i}",
            tuple(part for name, value in zip(parameters, point, strict=True) for part in (f"--{name}", _text(value))),
        )
        for i, point in enumerate(points)
    ]


def _draw(generator: random.Random, name: str, space: Mapping[str, Any]) -> Any:
    if "value" in space:
        return space["value"]
    if "values" in space:
        return generator.choice(space["values"])
    try:
        low, high = space["min"], space["max"]
    except KeyError as error:
        raise InputError(f"{name} has no {error}: expected value, values, or min and max") from error
    kind = space.get("distribution") or ("int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform")
    if kind == "int_uniform":
        return generator.randint(low, high)
    if kind == "uniform":
        return generator.uniform(low, high)
    if kind == "log_uniform_values":
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    raise InputError(
        f"{name}: distribution {kind!r} can only be sampled by W&B; expected uniform, log_uniform_values or values"
    )


def _text(value: Any) -> str:
    """Format a value for the command line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return (
        value
        if isinstance(value, str)
        else str(yaml.safe_dump(value, default_flow_style=True)).split("\n...")[0].strip()
    )
