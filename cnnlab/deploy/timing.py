"""Comparable measurements of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple


class Timing(NamedTuple):
    """The times of calls, in milliseconds."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""


def timed(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int = 20,
    rounds: int = 5,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time several functions in turns, so that other work on the machine affects all of them.

    Args:
        calls: The functions to time, by name.
        repetitions: The number of timed calls of each, 2 or more.
        rounds: The number of turns. Each turn begins with an untimed call, so that caches, and the threads of other
            libraries that still spin, settle.
        synchronize: Waits for the device, if calls return before they are done.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for place in range(rounds):
        share = repetitions * (place + 1) // rounds - repetitions * place // rounds
        for name, call in calls.items():
            for repetition in range(-1, share):
                started = time.perf_counter()
                call()
                if synchronize is not None:
                    synchronize()
                if repetition >= 0:
                    spent[name].append(1000 * (time.perf_counter() - started))
    return {name: Timing(median(times), *quantiles(times, n=4)[::2]) for name, times in spent.items()}
