"""The samples of each process and their order: distributed, resumable, never padded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from cnnlab.errors import InputError
from cnnlab.random import permutation, weighted_choice

Draw = tuple[int, int, int]
"""(epoch, index, seen): together with the seed, it determines a training sample's augmentation.

A sample that is drawn again in an epoch has a unique epoch number, far beyond all others. ``seen`` is the number of the
run's samples before the step, the same for all samples of a step.
"""
_AGAIN = 2**32


@dataclass(eq=False)
class TrainSampler(Sampler[list[Draw]]):
    """Batches of shuffled training samples, a different order each epoch.

    A step takes ``batch_size * world_size`` neighbors of the epoch's order, and each process a
    contiguous part of them: one process with batch 128 and two with 64 see the same samples in each step.

    Args:
        size: The number of samples, 1 or greater.
        batch_size: Samples per process and step.
        seed: The run's seed.
        drop_last: Leave out the last, incomplete step of an epoch. It is kept if it is the only one. A step with fewer
            samples than processes is always left out.
        weights: (N,) relative weight of each sample, drawn with replacement; each once an epoch if None.
        repeat_first: Make all epochs equal to the first, including augmentation, to overfit a few batches.
        rank: This process.
        world_size: The number of processes.

    Raises:
        InputError: If there are fewer samples than processes.
    """

    size: int
    batch_size: int
    seed: int
    _: KW_ONLY
    drop_last: bool = True
    weights: npt.NDArray[np.float64] | None = None
    repeat_first: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.size < self.world_size:
            raise InputError(
                f"there are {self.size} training samples for {self.world_size} processes: use fewer processes"
            )
        self.step_size = self.batch_size * self.world_size
        self.drop_last = self.drop_last and self.size >= self.step_size
        self.epoch = 0
        self._resumed = (0, 0)
        self._limit: int | None = None

    @property
    def sampler(self) -> TrainSampler:
        """The sampler itself: Lightning looks for set_epoch on the sampler inside a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Lightning calls this before each.

        Lightning also calls it with 0 before it has restored its progress, and workers would start to read epoch 0.
        """
        self.epoch = max(epoch, self._resumed[0])

    def resume_at(self, epoch: int, samples: int, limit: int | None = None) -> None:
        """Start at this epoch, after this number of samples of its order; later epochs are complete.

        Args:
            epoch: The epoch, 0 for the first.
            samples: The samples of all processes that have been trained on in this epoch.
            limit: The batches of a whole epoch, if they are limited.
        """
        self._resumed = (epoch, samples)
        self._limit = limit
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return self._batches_from(0)

    def batches_left(self, epoch: int) -> int:
        """The number of batches in an epoch, the resumed one included.

        An interrupted epoch has at least one more batch, even if that is incomplete.
        """
        most = len(self) if self._limit is None else min(len(self), self._limit)
        samples = self._resumed[1] if epoch == self._resumed[0] else 0
        if not samples or samples >= self.size:
            return 0 if samples else most
        return max(1, min(self._batches_from(samples), most - samples // self.step_size))

    def _batches_from(self, samples: int) -> int:
        whole, rest = divmod(self.size - samples, self.step_size)
        return whole + (not self.drop_last and rest >= self.world_size)

    def smallest_batch(self) -> int:
        """The smallest number of samples in a batch of an epoch, on any process."""
        rest = self.size % self.step_size
        is_whole = self.drop_last or rest < self.world_size or self.batches_left(-1) < len(self)
        return self.batch_size if is_whole else rest // self.world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield lists of (epoch, index, seen), a batch each."""
        epoch = 0 if self.repeat_first else self.epoch
        if self.weights is None:
            order, again = permutation(self.seed, epoch, self.size), None
        else:
            order = weighted_choice(self.seed, epoch, self.weights)
            again = _repetition(order)
        first = self._resumed[1] if self.epoch == self._resumed[0] else 0
        count = self.batches_left(self.epoch) if first else len(self)
        for start in range(first, first + count * self.step_size, self.step_size):
            together = np.arange(start, min(start + self.step_size, self.size))
            mine = np.array_split(together, self.world_size)[self.rank]
            times = [epoch] * len(mine) if again is None else (epoch + _AGAIN * again[mine]).tolist()
            seen = [epoch * self.size + start] * len(mine)
            yield list(zip(times, order[mine].tolist(), seen, strict=True))


def _repetition(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each element, how often it occurs earlier in the order.

    >>> _repetition(np.array([4, 2, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    found = np.empty_like(by_value)
    found[by_value] = np.arange(len(order)) - np.searchsorted(values, values)
    return found


class EvalSampler(Sampler[list[int]]):
    """Batches of samples in order: each sample on exactly one process, once.

    The batches are those of a single process, assigned to the processes in turn, because the other images in a batch
    may change the last digit of a result. All processes have the same number of batches, since metrics are gathered
    from all of them; the last batch may be empty. The arguments are those of TrainSampler.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, size, world_size * batch_size)
        self.batches = [range(start, min(start + batch_size, size)) for start in starts]
        if len(self.batches) < max(1, -(-size // (world_size * batch_size))):
            self.batches.append(range(0))

    @property
    def indices(self) -> list[int]:
        """This process's samples, in order."""
        return [index for batch in self.batches for index in batch]

    def __len__(self) -> int:
        """The number of this process's batches, 1 or more."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of indices, a batch each."""
        return map(list, self.batches)
