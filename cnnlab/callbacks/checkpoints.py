"""Saving of a run: the best weights, and the latest state to resume from."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from cnnlab.errors import CnnlabError, InputError, InterruptionError
from cnnlab.lightning_compat import is_accumulating
from cnnlab.run import Run
from cnnlab.writing import remove_unfinished

# Windows has no SIGUSR1.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


Mode = Literal["min", "max"]


def monitored(pl_module: LightningModule, monitor: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """Return the metric to monitor and its mode; the task's own if none is given.

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


class BestCheckpoint(ModelCheckpoint):
    """Keeps checkpoints/best.ckpt: the weights with the best monitored metric.

    Args:
        monitor: The metric; the task's own if None.
        mode: "min" or "max"; the task's own if None.
    """

    def __init__(self, monitor: str | None = None, mode: Mode | None = None) -> None:
        super().__init__(
            monitor=monitor, mode=mode or "min", filename="best", save_top_k=1, enable_version_counter=False
        )
        self._mode_given = mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set what to monitor, and where to save."""
        self.monitor, self.mode = monitored(pl_module, self.monitor, self._mode_given)
        self.kth_value = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
        self.dirpath = str(Run(Path(trainer.default_root_dir)).checkpoints)
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """A fixed key: the same before and after setup()."""
        return "BestCheckpoint"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far, even if the run's folder has moved; start anew if best.ckpt is missing."""
        best = Path(str(self.dirpath)) / "best.ckpt"
        if best.is_file():
            score = state_dict["best_model_score"]
            same_place = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
            super().load_state_dict({**state_dict, **same_place, "best_k_models": {str(best): score}})


class EarlyStop(EarlyStopping):
    """Stops when the monitored metric has not improved for a while.

    Args:
        monitor: The metric; the task's own if None.
        mode: "min" or "max"; the task's own if None.
        patience: The number of validations without improvement before training stops.
        min_delta: The smallest change that counts as an improvement.
    """

    def __init__(
        self, monitor: str | None = None, mode: Mode | None = None, patience: int = 5, min_delta: float = 0.0
    ) -> None:
        super().__init__(monitor=monitor or "", mode=mode or "min", patience=patience, min_delta=min_delta)
        self._mode_given = mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set what to monitor."""
        self.monitor, self.mode = monitored(pl_module, self.monitor or None, self._mode_given)
        self.best_score = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
        self.min_delta = abs(self.min_delta) * (1 if self.mode == "max" else -1)
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """A fixed key: the same before and after setup()."""
        return "EarlyStop"


class LastCheckpoint(Checkpoint):
    """Keeps checkpoints/last.ckpt, from which a run resumes as if it had never stopped.

    It is saved after each epoch, at fixed intervals of steps or minutes, and on an error. It is also saved when Ctrl-C,
    SIGTERM or SIGUSR1 (SLURM's warning before a job's end) asks the run to stop. The signal sets a flag; the run is
    saved and stopped at the end of the step, at the same step on all processes. A second Ctrl-C stops at once, and
    loses the steps since the last save. It is saved only between optimizer steps, and after a validation that is due,
    never before it, so that resuming skips nothing.

    Args:
        every_n_steps: Optimizer steps between saves; None for no saves by steps.
        every_n_minutes: Minutes between saves; None for no saves by time.

    Raises:
        InputError: If an interval is not above 0.
    """

    def __init__(self, every_n_steps: int | None = None, every_n_minutes: float | None = 5.0) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise InputError(f"callbacks.last.{name} is {value}, expected more than 0")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self._signal: int | None = None
        self._saving = False
        self._saved_step = 0
        self._saved_time = time.monotonic()
        self._training = False
        self._replaced: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; Lightning has set its own, some of which wait for all processes."""
        self._take_over_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers, and stop if a signal arrived before the first step."""
        self._take_over_signals()
        if trainer.is_global_zero:
            run = Run(Path(trainer.default_root_dir))
            for path in (run.last, run.best, run.metrics):
                remove_unfinished(path)
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        if signum := _on_all(trainer, False, self._signal)[1]:
            raise _interruption(trainer, signum, "before its first step")
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if that is due and possible."""
        if is_accumulating(trainer) or _validation_follows(trainer, batch_idx):
            return
        self._save_or_stop(trainer, self._is_due(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop if that is due, after a validation in the middle of an epoch."""
        if not self._training or is_accumulating(trainer):
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_or_stop(trainer, self._is_due(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop if that is due."""
        self._save_or_stop(trainer, due=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the steps before an unexpected error, if Lightning can resume from there.

        That is between optimizer steps (outside an accumulated group), and not in a validation, which a resumed run
        would skip. An error inside a training step may have changed batch norm's statistics and random states.
        So this resumes the run, but not bit for bit.
        """
        self._restore_signals()
        if isinstance(exception, InterruptionError):
            # The loggers are closed next: a second signal must not interrupt that. Then Lightning restores its own.
            with contextlib.suppress(ValueError):
                for signum in _SIGNALS[1:]:
                    signal.signal(signum, lambda *_: None)
        in_step = self._training and trainer.training
        self._training = False
        # If cnnlab itself stops the run, its state is saved already, or must not be saved.
        unforeseen = isinstance(exception, Exception) and not isinstance(exception, CnnlabError)
        if not (in_step and unforeseen) or trainer.global_step == self._saved_step:
            return
        # Other processes may not have met the error, and would wait forever for a save on all processes.
        steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        within_group = batches.processed % trainer.accumulate_grad_batches
        within_epoch = batches.processed < trainer.num_training_batches
        if trainer.world_size == 1 and steps.ready == steps.completed and within_epoch and not within_group:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the previous signal handlers."""
        self._restore_signals()
        self._training = False

    def _take_over_signals(self) -> None:
        if self._replaced:
            return
        self._signal = None
        # Python sets signal handlers in the main thread only.
        with contextlib.suppress(ValueError):
            self._replaced = {signum: signal.signal(signum, self._on_signal) for signum in _SIGNALS}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again = self._signal is not None and signum == signal.SIGINT
        self._signal = signum
        if again and not self._saving:
            raise KeyboardInterrupt

    def _restore_signals(self) -> None:
        for signum, handler in self._replaced.items():
            signal.signal(signum, handler)
        self._replaced = {}

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.global_step == self._saved_step:
            return False
        steps, minutes = self.every_n_steps, self.every_n_minutes
        by_steps = steps is not None and trainer.global_step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._saved_time >= 60 * minutes)

    def _save_or_stop(self, trainer: Trainer, due: bool) -> None:
        due, signum = _on_all(trainer, due, self._signal)
        if due or signum:
            self._save(trainer)
        if signum:
            where = f"after step {trainer.global_step}, saved in {Run(Path(trainer.default_root_dir)).last}"
            raise _interruption(trainer, signum, where)

    def _save(self, trainer: Trainer) -> None:
        self._saving = True
        try:
            trainer.save_checkpoint(Run(Path(trainer.default_root_dir)).last)
        finally:
            self._saving = False
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()


def _on_all(trainer: Trainer, due: bool, signum: int | None) -> tuple[bool, int]:
    """Combine the requests of all processes, so that all of them save and stop at the same step."""
    if trainer.world_size == 1:
        return due, signum or 0
    wishes = torch.tensor([float(due), float(signum or 0)], device=trainer.strategy.root_device)
    wishes = trainer.strategy.reduce(wishes, reduce_op="max")
    return bool(wishes[0]), int(wishes[1])


def _interruption(trainer: Trainer, signum: int, where: str) -> InterruptionError:
    run = Run(Path(trainer.default_root_dir))
    hint = f"; go on with: cnnlab resume {run.folder}" if run.last.is_file() else ""
    return InterruptionError(f"stopped by {signal.Signals(signum).name} {where}{hint}", signum)


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation or the end of the epoch comes right after this batch."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return True
    every = trainer.val_check_batch
    return bool(trainer.enable_validation and every not in (None, float("inf")) and (batch_idx + 1) % every == 0)
