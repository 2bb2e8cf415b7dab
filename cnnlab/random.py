"""Counter-based random numbers: a draw depends only on (seed, epoch, index).

No generator state is passed from sample to sample, so the number of workers, the number of processes and interruptions
change nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(
    seed: int, epochs: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Draw numbers for each sample of a batch at once.

    Args:
        seed: The run's seed, 0 or greater.
        epochs: (B,) the epoch in which each sample is seen, 0 or greater.
        indices: (B,) each sample's index in its data set, 0 or greater.
        count: How many numbers a sample needs.

    Returns:
        (B, count) numbers, uniform in [0, 1), with 53 random bits each.

    >>> one = uniform(7, np.array([0]), np.array([5]), 2)
    >>> two = uniform(7, np.array([0, 0]), np.array([3, 5]), 2)
    >>> bool((one[0] == two[1]).all())
    True
    """
    state = np.full(len(indices), seed, dtype=np.uint64)
    for word in (epochs, indices):
        state = _mix(state + _GOLDEN) ^ word.astype(np.uint64)
    state = _mix(state + _GOLDEN)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def weighted_choice(seed: int, epoch: int, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Draw as many indices as there are samples, (N,), with replacement, by the samples' relative weights, (N,).

    They are drawn systematically: no sample's count is more than 1 away from its share. Seed and epoch are 0 or more.

    >>> sorted(weighted_choice(0, 0, np.array([1.0, 3.0, 0.0, 0.0])).tolist())
    [0, 1, 1, 1]
    """
    size = len(weights)
    key: Any = np.array([seed, epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    # Systematic sampling: samples are laid end to end in random order, with their weights as lengths, and picked at
    # equal distances.
    laid = generator.permutation(size)
    ends = np.cumsum(weights[laid])
    marks = (np.arange(size) + generator.random()) * (ends[-1] / size)
    drawn = laid[np.minimum(np.searchsorted(ends, marks, side="right"), size - 1)]
    return np.asarray(generator.permutation(drawn), dtype=np.int64)


def permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """Shuffle the samples of an epoch: (size,), each of 0..size-1 once. Seed and epoch are 0 or more.

    >>> sorted(permutation(0, 3, 4).tolist())
    [0, 1, 2, 3]
    """
    key: Any = np.array([seed, epoch], dtype=np.uint64)
    order: npt.NDArray[np.int64] = np.random.Generator(np.random.Philox(key=key)).permutation(size)
    return order
