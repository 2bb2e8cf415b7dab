"""How batches are read: by processes of their own, and for training by optimizer steps."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnlab.batch import Batch
from cnnlab.loggers import announce
from cnnlab.torch_compat import end_workers

_MOST_WAITING = 0.05
"""The share of an epoch that training may wait for images before it gets more readers."""


class StepPlan(NamedTuple):
    """How the batches of an epoch belong to optimizer steps."""

    batches: int
    """The batches of a step; the last step of an epoch may have fewer."""
    first: int
    """The number of the first batch."""
    end: int
    """The batches of the whole epoch."""
    counts: Callable[[Batch], Tensor]
    """What the loss counts in a batch: see VisionTask.loss_counts."""

    def size_at(self, place: int) -> int:
        """The batches of the step that begins with this batch."""
        return min(self.batches - place % self.batches, self.end - place)


class TrainLoader(DataLoader[Any]):
    """A loader for training: it reads the batches of an optimizer step together, and takes more readers if it is slow.

    So each batch knows what all batches of its step count. The order of the samples does not depend on the readers.

    Args:
        dataset: The samples.
        plan: How the batches belong to steps; asked for each epoch. None if each batch is a step.
        most_workers: The largest number of readers. While training waits for images, each epoch has twice as many as
            the one before.
        **kwargs: DataLoader's arguments.
    """

    def __init__(
        self, dataset: Dataset[Any], *, plan: Callable[[], StepPlan | None], most_workers: int, **kwargs: Any
    ) -> None:
        super().__init__(dataset, **kwargs)
        self._plan = plan
        self._most = most_workers
        self._waited = self._passed = 0.0

    def __iter__(self) -> Any:
        self._add_workers()
        batches, plan = self._timed(super().__iter__()), self._plan()
        return batches if plan is None else self._by_steps(batches, plan)

    def _add_workers(self) -> None:
        """Take more readers if the last epoch has waited for images."""
        share = self._waited / self._passed if self._passed else 0.0
        self._waited = self._passed = 0.0
        more = min(2 * self.num_workers, self._most)
        if share <= _MOST_WAITING or more <= self.num_workers:
            return
        announce(
            f"training waited for images in {share:.0%} of the last epoch: {more} readers instead of {self.num_workers}"
        )
        end_workers(self)
        self.num_workers = more

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; how long each is waited for is counted, but for the first one."""
        last = None
        while True:
            asked = time.perf_counter()
            if (batch := next(batches, None)) is None:
                return
            there = time.perf_counter()
            if last is not None:
                self._waited += there - asked
                self._passed += there - last
            last = there
            yield batch

    @staticmethod
    def _by_steps(batches: Iterator[Any], plan: StepPlan) -> Iterator[Batch]:
        place = plan.first
        while step := [Batch.of(batch) for batch in islice(batches, plan.size_at(place))]:
            counts = torch.stack([plan.counts(batch) for batch in step]).sum(dim=0)
            yield from (batch.replace(group_counts=counts) for batch in step)
            place += len(step)


def identity_collate(batch: Any) -> Any:
    """The collate function of a BatchDataset, whose items are whole batches already."""
    return batch


def init_worker_signals(worker: int) -> None:
    """Let a scheduler's signal to all processes stop the training process, but not its workers.

    The training process can so finish its step and save. A worker ends with it: see _end_workers.
    """
    if sys.platform == "win32":
        return
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of iterators that are still open, as after an error: Python would wait for them forever."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each.
    for worker in workers:
        worker.kill()


def cpu_count() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
