"""The metrics that callbacks and schedules monitor: whether they exist, and whether they are numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from cnnlab.batch import Batch
from cnnlab.errors import InputError, TrainingError, nearest
from cnnlab.lightning_compat import compute_locally
from cnnlab.tasks import VisionTask

Mode = Literal["min", "max"]
_OWN = ("epoch", "step")
"""What Lightning itself gives to a checkpoint's monitor."""


def monitored(pl_module: LightningModule, monitor: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """Return the metric to monitor and its mode; the task's own if none is given.

    Args:
        pl_module: The task.
        monitor: The metric's name; the task's own if None.
        mode: "min" or "max"; the task's own if None.

    Raises:
        InputError: If neither the caller nor the task names a metric, or if the mode of another metric is not given.
    """
    own: str | None = getattr(pl_module, "monitor", None)
    if monitor is None and own is None:
        raise InputError(
            f"{type(pl_module).__name__} does not say what to monitor: give monitor and mode (min or max) to the "
            "callback, or set them on the class"
        )
    monitor = monitor or str(own)
    if mode is None and monitor == own:
        mode = getattr(pl_module, "mode", None)
    if mode is None:
        raise InputError(f"which values of {monitor!r} are better? Give mode (min or max) to the callback too")
    return monitor, mode


def monitors_of(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Yield who monitors a metric, and the metric's name: callbacks (Lightning's and users' too) and schedules."""
    for callback in getattr(trainer, "callbacks", []):
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and name and name not in _OWN:
            yield type(callback).__name__, name
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor:
            yield "the schedule", config.monitor


def check_names(trainer: Trainer, pl_module: LightningModule, seen: Iterable[str]) -> None:
    """Check before the training that the monitored metrics exist.

    A task that is not cnnlab's own may log more than is known here: only its names of validation metrics are checked,
    and only if there was a validation before the training.

    Args:
        trainer: The trainer.
        pl_module: The task.
        seen: The names that a validation before the training has logged; none if there was none.

    Raises:
        InputError: If a metric is none that the task logs, or if there is no validation when it is needed.
    """
    _check_validation(trainer)
    seen = set(seen)
    known = seen | metric_names(trainer, pl_module)
    is_own = type(pl_module).__module__.startswith("cnnlab.") and bool(known)
    for who, name in monitors_of(trainer):
        if name not in known and (is_own or (seen and name.startswith("val"))):
            raise InputError(
                f"{who} monitors {name!r}, which {type(pl_module).__name__} does not log: {nearest(name, known)}"
            )


def _check_validation(trainer: Trainer) -> None:
    """Raise InputError if early stopping or a schedule needs a validation metric that is not measured in time."""
    plateaus = [config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    stops = [callback.monitor for callback in getattr(trainer, "callbacks", []) if isinstance(callback, EarlyStopping)]
    needed = [str(name) for name in (*plateaus, *stops) if str(name).startswith("val")]
    if needed and not trainer.enable_validation:
        raise InputError(f"{needed[0]} is monitored, and there is no validation: set trainer.limit_val_batches above 0")
    every = trainer.check_val_every_n_epoch
    if every != 1 and any(str(name).startswith("val") for name in plateaus):
        raise InputError(
            f"model.schedule plateau compares {plateaus[0]} after each epoch, and trainer.check_val_every_n_epoch is "
            f"{every}: set it to 1, or choose another schedule"
        )


@torch.no_grad()
def metric_names(trainer: Trainer, pl_module: LightningModule) -> set[str]:
    """Return the names of the metrics that a task of cnnlab's logs in training and validation; none of other tasks.

    They are known once a sample has been measured. Each process measures one.
    """
    dataset = getattr(getattr(trainer, "datamodule", None), "val_set", None)
    if not isinstance(pl_module, VisionTask) or dataset is None or not len(dataset):
        return set()
    batch = Batch.of(dataset.__getitems__([0])).to(pl_module.device)
    modes = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        answers = pl_module.decode(pl_module.evaluate(batch.images))
    finally:
        for module, mode in modes.items():
            module.training = mode
    names = set()
    for stage in ("train", "val"):
        metrics = pl_module.stage_metrics(stage).to(pl_module.device)
        for metric in metrics.values(copy_state=False):
            compute_locally(metric)
        pl_module.take_in(metrics, answers, batch, torch.zeros((), device=pl_module.device))
        with warnings.catch_warnings(action="ignore"):
            names |= {f"{stage}/{name}" for name, value in metrics.compute().items() if not value.ndim}
    return names


def check_value(who: str, name: str | None, value: Any) -> None:
    """Check that a monitored metric is a number.

    Args:
        who: Who monitors it.
        name: The metric; nothing is checked if None.
        value: Its value; None if it was not logged.

    Raises:
        TrainingError: If the value is NaN.
    """
    if name is None or value is None or not math.isnan(float(value)):
        return
    raise TrainingError(
        f"{name} is not a number (NaN), so {who} cannot compare it; stopped. Usual causes: nothing to measure it on in "
        "the validation images (no known target, or all pixels ignored), too few of them, or outputs that are NaN"
    )


def check_logged(trainer: Trainer, who: str, name: str | None) -> None:
    """Check that a monitored metric was logged, and is a number.

    Args:
        trainer: The trainer.
        who: Who monitors it.
        name: The metric; nothing is checked if None.

    Raises:
        InputError: If it was not logged.
        TrainingError: If it is NaN.
    """
    logged = trainer.callback_metrics
    if name is not None and name not in logged and name not in _OWN:
        raise InputError(f"{who} monitors {name!r}, which nobody logs: {nearest(name, logged)}")
    check_value(who, name, logged.get(name or ""))
