"""How long something takes, measured so that it can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple


class Timing(NamedTuple):
    """How long calls took, in milliseconds."""

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
    """Time several things, taking turns, so that what else the machine does meets all of them.

    Args:
        calls: What to time, by name.
        repetitions: How often each is timed, 2 or more.
        rounds: How many turns that makes. Each begins with a call that does not count: caches, and threads of others
            that still spin, are to settle.
        synchronize: Waits for the device, where calls return before they are done.
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
