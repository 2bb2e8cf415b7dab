"""Saving of a run: the best weights, and the latest state to resume from."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from cnnlab.callbacks.monitors import Mode, check_logged, monitored
from cnnlab.callbacks.records import note
from cnnlab.checkpoint_io import BackgroundCheckpointIO
from cnnlab.errors import CnnlabError, InputError, InterruptionError
from cnnlab.lightning_compat import DeferringCheckpoint, is_accumulating
from cnnlab.loggers import announce
from cnnlab.run import Run
from cnnlab.strategies import spreads_weights
from cnnlab.writing import remove_unfinished

# Windows has no SIGUSR1.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class _Monitoring(Callback):
    """For callbacks of Lightning that compare a metric: it is checked before they do."""

    slot: ClassVar[str]
    monitor: Any

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, then compare it.

        Raises:
            InputError: If nobody logs the metric.
            TrainingError: If the metric is NaN.
        """
        _check(trainer, self.slot, self.monitor)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, then compare it; see on_validation_end()."""
        _check(trainer, self.slot, self.monitor)
        super().on_train_epoch_end(trainer, pl_module)


class BestCheckpoint(_Monitoring, DeferringCheckpoint):
    """Keeps checkpoints/best.ckpt: the weights with the best monitored metric.

    Of equally good weights the later are kept, which have been trained at a lower learning rate. Where LastCheckpoint
    saves the same step anyway, both are one file.

    Args:
        monitor: The metric; the task's own if None.
        mode: "min" or "max"; the task's own if None.
    """

    slot = "callbacks.best"

    def __init__(self, monitor: str | None = None, mode: Mode | None = None) -> None:
        super().__init__(
            monitor=monitor, mode=mode or "min", filename="best", save_top_k=1, enable_version_counter=False
        )
        self._mode_given = mode
        self.deferred: str | None = None
        """Where LastCheckpoint saves the best weights too, when it saves next."""

    def defers(self, trainer: Trainer, path: str) -> bool:
        """Whether LastCheckpoint is about to save this step."""
        last = next((own for own in trainer.checkpoint_callbacks if isinstance(own, LastCheckpoint)), None)
        if last is None or not last.saves_after_validation(trainer) or _writer(trainer) is None:
            return False
        self.deferred = path
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set what to monitor, and where to save."""
        self.monitor, self.mode = monitored(pl_module, self.monitor, self._mode_given)
        self.kth_value = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
        self.dirpath = str(Run(Path(trainer.default_root_dir)).checkpoints)
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the current weights are kept."""
        best = self.best_model_score
        as_good = current is not None and best is not None and bool(current == best)
        return as_good or super().check_monitor_top_k(trainer, current)

    @property
    def state_key(self) -> str:
        """A fixed key: the same before and after setup()."""
        return "BestCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and the mode."""
        return {**super().state_dict(), "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far, even if the run's folder has moved.

        It starts anew if best.ckpt is missing, or if another metric is monitored now.
        """
        best = Path(str(self.dirpath)) / "best.ckpt"
        if best.is_file() and _is_same_monitor("callbacks.best", self, state_dict):
            score = state_dict["best_model_score"]
            same_place = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
            super().load_state_dict({**state_dict, **same_place, "best_k_models": {str(best): score}})


class EarlyStop(_Monitoring, EarlyStopping):
    """Stops when the monitored metric has not improved for a while.

    It says so at the end of the run, and in environment.json, under "stopped_early".

    Args:
        monitor: The metric; the task's own if None.
        mode: "min" or "max"; the task's own if None.
        patience: The number of validations without improvement before training stops, 1 or more.
        min_delta: The smallest change that counts as an improvement.

    Raises:
        InputError: If the patience is below 1.
    """

    slot = "callbacks.early_stopping"

    def __init__(
        self, monitor: str | None = None, mode: Mode | None = None, patience: int = 5, min_delta: float = 0.0
    ) -> None:
        if patience < 1:
            raise InputError(f"callbacks.early_stopping.patience is {patience}, expected 1 or more")
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

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and what is monitored."""
        return {**super().state_dict(), "monitor": self.monitor, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the validations waited since; start anew if another metric is monitored now."""
        if _is_same_monitor("callbacks.early_stopping", self, state_dict):
            super().load_state_dict({**state_dict, "patience": self.patience})
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if a run is resumed that has waited long enough."""
        if self.wait_count >= self.patience:
            self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the run stopped, if it did, and note it for the report."""
        if self.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
            return
        reason = (
            f"{self.monitor} has not been better than {float(self.best_score):.6g} for {self.wait_count} validations "
            f"(callbacks.early_stopping.patience is {self.patience})"
        )
        announce(f"stopped early, in epoch {self.stopped_epoch} (0 is the first): {reason}")
        note(trainer, "stopped_early", {"epoch": self.stopped_epoch, "step": trainer.global_step, "reason": reason})


def _check(trainer: Trainer, who: str, name: str | None) -> None:
    """Check a monitored metric whenever a callback may compare it: once it has been logged, or a validation is over."""
    if trainer.state.fn != "fit" or trainer.sanity_checking:
        return
    validated = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed > 0
    if name in trainer.callback_metrics or (validated and str(name).startswith("val")):
        check_logged(trainer, who, name)


def _is_same_monitor(who: str, callback: Any, saved: dict[str, Any]) -> bool:
    """Whether a state is of the metric that a callback monitors; older versions saved no mode or no metric."""
    now = (callback.monitor, callback.mode)
    before = (saved.get("monitor") or callback.monitor, saved.get("mode") or callback.mode)
    if now != before:
        announce(f"{who} monitored {before[0]} ({before[1]}) and now {now[0]} ({now[1]}): it starts anew")
    return now == before


class LastCheckpoint(Checkpoint):
    """Keeps checkpoints/last.ckpt, from which a run resumes as if it had never stopped.

    It is saved after each epoch, at fixed intervals of steps or minutes, and on an error. It is also saved when Ctrl-C,
    SIGTERM or SIGUSR1 (SLURM's warning before a job's end) asks the run to stop. A file is written while the training
    goes on (checkpoint_io.BackgroundCheckpointIO), but for those that end it. The signal sets a flag; the run is
    saved and stopped at the end of the step, at the same step on all processes. A second Ctrl-C stops at once, and
    loses the steps since the last save. It is saved only between optimizer steps, and after a validation that is due,
    never before it, so that resuming skips nothing.

    Args:
        every_n_steps: Optimizer steps between saves; None for no saves by steps.
        every_n_minutes: Minutes between saves; None for no saves by time.
        every_n_epochs: Epochs between saves, 1 or more; the last epoch is always saved.

    Raises:
        InputError: If an interval is not above 0.
    """

    def __init__(
        self, every_n_steps: int | None = None, every_n_minutes: float | None = 5.0, every_n_epochs: int = 1
    ) -> None:
        super().__init__()
        intervals = {"n_steps": every_n_steps, "n_minutes": every_n_minutes, "n_epochs": every_n_epochs}
        for name, value in intervals.items():
            if value is not None and value <= 0:
                raise InputError(f"callbacks.last.every_{name} is {value}, expected more than 0")
        self.every_n_epochs = every_n_epochs
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
        """Save and stop if that is due and possible.

        Raises:
            TrainingError: If a file could not be written meanwhile.
        """
        if (writer := _writer(trainer)) is not None:
            writer.raise_error()
        if is_accumulating(trainer) or _validation_follows(trainer, batch_idx):
            return
        self._save_or_stop(trainer, self._is_due(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop if that is due, after a validation in the middle of an epoch."""
        if self.saves_after_validation(trainer) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_or_stop(trainer, self._is_due(trainer) or _deferred(trainer) is not None)

    def saves_after_validation(self, trainer: Trainer) -> bool:
        """Whether the state can be saved after this validation, or else after the epoch that ends with it."""
        return self._training and not is_accumulating(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if that is due, and stop if that is asked for."""
        epoch = trainer.current_epoch + 1
        ends = trainer.should_stop or epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        due = ends or epoch % self.every_n_epochs == 0 or _deferred(trainer) is not None
        self._save_or_stop(trainer, due or self._is_due(trainer))

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
        """Restore the previous signal handlers, and wait for what is still being written.

        Raises:
            TrainingError: If a file cannot be written.
        """
        self._restore_signals()
        self._training = False
        if (writer := _writer(trainer)) is not None:
            writer.wait()

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
            if (writer := _writer(trainer)) is not None:
                writer.wait()
            where = f"after step {trainer.global_step}, saved in {Run(Path(trainer.default_root_dir)).last}"
            raise _interruption(trainer, signum, where)

    def _save(self, trainer: Trainer) -> None:
        best, self._saving = _deferred(trainer), True
        options = None if best is None else {"also": [best.deferred]}
        try:
            trainer.save_checkpoint(Run(Path(trainer.default_root_dir)).last, storage_options=options)
        finally:
            self._saving = False
        if best is not None:
            best.deferred = None
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.after_save_checkpoint(best)
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()


def _deferred(trainer: Trainer) -> BestCheckpoint | None:
    """The callback for the best weights, if it leaves it to LastCheckpoint to save them."""
    best = (one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint))
    return next((one for one in best if one.deferred is not None), None)


def _writer(trainer: Trainer) -> BackgroundCheckpointIO | None:
    """What writes the files in the background, unless the user has put another in its place."""
    if spreads_weights(trainer.strategy):  # It writes its files itself.
        return None
    found = trainer.strategy.checkpoint_io
    return found if isinstance(found, BackgroundCheckpointIO) else None


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
