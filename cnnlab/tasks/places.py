"""The place of a resumed run in its schedule: a share of the run, not a number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from cnnlab.tasks.schedules import factor, linear_rise


class Place(NamedTuple):
    """Where a run is, in optimizer steps of the size that they have now."""

    step: int
    """The steps so far, as if all had been of this size."""
    total: int
    """The steps of the whole run."""
    steps_of_epoch: int
    """The steps of an epoch."""


def steps_of_epoch(trainer: Trainer) -> int:
    """The optimizer steps of a whole epoch."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def place_in_run(trainer: Trainer, total: int) -> Place:
    """Where a run is that begins or goes on.

    The run ends with its last epoch or its last step, whichever comes first; the place is a share of that.

    Args:
        trainer: The trainer, whose progress has been restored.
        total: The steps of the whole run, if it had begun with these settings.
    """
    per_epoch = steps_of_epoch(trainer)
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    epochs: Any = trainer.fit_loop.epoch_progress.current
    begun = 0 if epochs.processed == epochs.started else batches.current.processed
    in_epoch = per_epoch if begun >= trainer.num_training_batches else begun // trainer.accumulate_grad_batches
    step = epochs.processed * per_epoch + in_epoch
    by_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs * per_epoch
    if trainer.max_steps != -1 and trainer.max_steps - trainer.global_step <= by_epochs - step:
        return Place(trainer.global_step, trainer.max_steps, per_epoch)
    return Place(step, int(by_epochs) if math.isfinite(by_epochs) else total, per_epoch)


def move_schedules(configs: Sequence[LRSchedulerConfig], place: Place, total: int, hparams: Mapping[str, Any]) -> None:
    """Move the schedules to a place in the run, and set the learning rates; those already there stay as they are.

    Args:
        configs: The schedules of create_schedules(), whose states have been restored.
        place: The place.
        total: The steps of the whole run when its state was saved.
        hparams: The task's schedule, warmup and schedule_args.
    """
    for config in configs:
        schedule: Any = config.scheduler
        if isinstance(schedule, LambdaLR):
            at = factor(hparams["schedule"], place.total, hparams["warmup"], **(hparams["schedule_args"] or {}))
            if (schedule.last_epoch, total) == (place.step, place.total):
                continue
            schedule.lr_lambdas = [at] * len(schedule.lr_lambdas)
            rates = [base * at(place.step) for base in schedule.base_lrs]
        elif isinstance(schedule, LinearLR):
            rise = max(1, round((hparams["warmup"] or 0.0) * place.total))
            if (schedule.last_epoch, schedule.total_iters) == (place.step, rise):
                continue
            before = linear_rise(schedule.last_epoch, schedule.total_iters)
            change = linear_rise(place.step, rise) / before
            schedule.start_factor, schedule.total_iters = 1 / rise, rise
            rates = [group["lr"] * change for group in schedule.optimizer.param_groups]
        else:
            continue
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": place.step, "_last_lr": rates})
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def forget_settings(state: dict[str, Any]) -> None:
    """Keep of a plateau's saved state what it has counted; its settings are those of configuration and flags."""
    if "num_bad_epochs" in state:
        counted = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        for name in set(state) - set(counted):
            del state[name]
