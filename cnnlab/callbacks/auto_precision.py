"""The precision of a run, chosen once its network, its data and its device are known."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng

from cnnlab.batch import Batch
from cnnlab.callbacks.records import note
from cnnlab.data import VisionDataModule
from cnnlab.loggers import announce
from cnnlab.precision import MIXED, Choice, Device, Trial, choose
from cnnlab.strategies import spreads_weights
from cnnlab.tasks import VisionTask

FEWEST_STEPS = 200
"""A run of fewer optimizer steps is not worth a trial."""
_STEP_SECONDS = 0.3
"""About how long a step of the trial may take; one of a large batch takes a part of it."""
_FEWEST_IMAGES = 8
_ROUNDS = (5, 30)
"""At least and at most so many measured steps in each precision."""
_SECONDS = 3.0
"""After this time, no more steps are measured than the fewest."""

Clock = Callable[[], float]


class AutoPrecision(Callback):
    """Implements --trainer.precision auto: chooses the precision before training, and says it.

    The first process chooses for all. See cnnlab.precision.choose. In evaluation it is 32-true.
    """

    def __init__(self) -> None:
        self.choice: Choice | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose, and give the trainer the precision, before a strategy wraps the network."""
        if self.choice is not None:
            return
        own = self._choose(trainer, pl_module) if trainer.is_global_zero else None
        self.choice = trainer.strategy.broadcast(own)
        assert self.choice is not None
        announce(f"precision: {self.choice.precision}: {self.choice.reason}")
        if self.choice.precision in MIXED:
            _set_precision(trainer, self.choice.precision)
        if self.choice.float32_matmul is not None:
            torch.set_float32_matmul_precision(self.choice.float32_matmul)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the reason in environment.json."""
        if self.choice is not None:
            note(trainer, "precision", self.choice._asdict())

    @staticmethod
    def _choose(trainer: Trainer, task: LightningModule) -> Choice:
        if trainer.state.fn != "fit":
            return Choice("32-true", "neither the checkpoint nor the command line says another one")
        possible = ("bf16-mixed",) if isinstance(trainer.strategy, ModelParallelStrategy) else MIXED
        return choose(Device.of(trainer.strategy.root_device), lambda: try_steps(trainer, task), possible)


def try_steps(trainer: Trainer, task: LightningModule, clock: Clock = time.perf_counter) -> Trial | str:
    """Measure forward and backward passes of a run in 32-true and in bf16-mixed, in turns.

    They are steps of a copy of the task, on the first training images. So weights, batch norm's statistics, random
    states and the place in data and schedule stay as they are.

    Args:
        trainer: The run's trainer, on a processor.
        task: Its task, before a strategy wraps it.
        clock: Returns the time in seconds.

    Returns:
        The fastest step in each precision, or the reason why nothing was measured.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(task, VisionTask) or not isinstance(data, VisionDataModule):
        return "only tasks and data of cnnlab can be tried in bf16-mixed"
    if spreads_weights(trainer.strategy):
        return "weights that processes share cannot be tried in bf16-mixed"

    def read(count: int) -> Batch:
        return Batch.of(data.train_set.__getitems__([(0, index, 0) for index in range(count)]))

    try:
        steps, images = expected_steps(trainer, data), min(data.batch_size, len(data.train_set))
        if steps < FEWEST_STEPS:
            return f"{steps:,.0f} {'step is' if steps == 1 else 'steps are'} too few to try bf16-mixed"
        with isolate_rng(include_cuda=False), _silence():
            # The copy refers to the same trainer, which cannot be copied.
            probe = copy.deepcopy(task, {id(trainer): trainer})
            probe.setup("fit")
            return _measure(probe.train(), read, images, clock)
    except Exception as error:  # Training is to fail by itself, or not at all, whatever the trial met.
        return f"bf16-mixed could not be tried ({type(error).__name__}: {' '.join(str(error).split())[:100]})"


def expected_steps(trainer: Trainer, data: VisionDataModule) -> float:
    """The optimizer steps of a run; infinite without an end."""
    batches: float = max(len(data.train_set) // (data.batch_size * trainer.world_size), 1)
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    return min(epochs * math.ceil(batches / trainer.accumulate_grad_batches), most)


def _measure(probe: VisionTask, read: Callable[[int], Batch], most: int, clock: Clock) -> Trial:
    """Measure steps of at most ``most`` images."""
    few = read(min(most, _FEWEST_IMAGES))
    _seconds(probe, few, False, clock)  # The first step also prepares memory and kernels.
    a_step = _seconds(probe, few, False, clock)
    count = min(most, max(len(few), int(_STEP_SECONDS / max(a_step, 1e-9) * len(few))))
    batch = few if count == len(few) else read(count)
    found: dict[bool, list[float]] = {False: [], True: []}
    start = clock()
    for turn in range(1 + _ROUNDS[1]):
        for mixed, seconds in found.items():
            seconds.append(_seconds(probe, batch, mixed, clock))
        if turn >= _ROUNDS[0] and clock() - start > _SECONDS:
            break
    # The first turn prepares; of the others, the fastest step is the one that nothing else has disturbed.
    return Trial(min(found[False][1:]), min(found[True][1:]), len(batch))


def _seconds(probe: VisionTask, batch: Batch, mixed: bool, clock: Clock) -> float:
    probe.zero_grad()
    start = clock()
    # As in Lightning's plugin.
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        loss, _ = probe.loss_and_outputs(batch)
    torch.autograd.backward(loss)
    return clock() - start


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what the copy of a task says: the task says it again."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _set_precision(trainer: Trainer, precision: Any) -> None:
    """Give a trainer a precision after its creation; strategies with plugins of their own have named them."""
    strategy = trainer.strategy
    own: Any = type(strategy.precision_plugin)
    plugin = MixedPrecision(precision, strategy.root_device.type) if own is Precision else own(precision)
    strategy.precision_plugin = plugin
