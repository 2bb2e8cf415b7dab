"""Private or undeclared names of Lightning, TorchMetrics and W&B that cnnlab uses.

Each function says which public name is missing. tests/test_lightning_compat.py fails if the meaning of one changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torchmetrics import Metric


class DeferringCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but that another callback may save the file instead.

    There is no public method between the decision to save and the saving.
    """

    def defers(self, trainer: Trainer, path: str) -> bool:
        """Whether another callback saves what is to be saved now."""
        return False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self.defers(trainer, filepath):
            self._last_global_step_saved = trainer.global_step
            self._last_checkpoint_saved = filepath
        else:
            super()._save_checkpoint(trainer, filepath)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the current batch ends without an optimizer step: no public name covers the last batch of an epoch."""
    return trainer.fit_loop._should_accumulate()


def batches_in_step(trainer: Trainer) -> int:
    """The batches of the optimizer step that the current batch begins: fewer at an epoch's end."""
    most, first = trainer.accumulate_grad_batches, trainer.fit_loop.epoch_loop.batch_idx
    return int(min(most - first % most, trainer.num_training_batches - first))


def is_attached(module: LightningModule) -> bool:
    """Whether a module has a trainer: the public ``trainer`` raises if there is none."""
    return module._trainer is not None


def is_trial_run(trainer: Trainer) -> bool:
    """Whether fast_dev_run is on: Trainer has the attribute but does not declare it."""
    return bool(vars(trainer)["fast_dev_run"])


def is_overfitting(trainer: Trainer) -> bool:
    """Whether overfit_batches is on: Trainer has the attribute but does not declare it."""
    return bool(vars(trainer)["overfit_batches"])


def log_every_n_steps(trainer: Trainer) -> int:
    """Optimizer steps between two logs: Trainer has the attribute but does not declare it."""
    return int(vars(trainer)["log_every_n_steps"])


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set the number of processes that share the data: the public argument is needed before that number is known."""
    strategy._data_parallel_size = size


def start_method(strategy: object) -> str:
    """How a strategy, or the one of a name, starts its processes: popen, spawn, fork or forkserver.

    The strategies have the attribute but do not declare it.
    """
    if isinstance(strategy, str):
        known = StrategyRegistry[strategy]["init_params"] if strategy in StrategyRegistry else {}
        return str(known.get("start_method", "popen"))
    return str(getattr(strategy, "_start_method", None) or "popen")


def compute_locally(metric: Metric) -> None:
    """Make a metric compute without the other processes: ``sync_on_compute`` is public only as an argument."""
    metric.sync_on_compute = metric._to_sync = False


def load_metric(metric: Metric, states: Mapping[str, Any], update_count: int) -> None:
    """Load a metric's states: its public ``load_state_dict`` leaves out the number of updates."""
    for name, now in metric.metric_state.items():
        # A state that is a list is one tensor once it has been gathered from several processes.
        parts = [
            part.to(metric.device) for part in (states[name] if isinstance(states[name], list) else [states[name]])
        ]
        setattr(metric, name, parts if isinstance(now, list) else parts[0])
    metric._update_count = update_count
    metric._computed = None


def has_wandb_ended(error: Exception) -> bool:
    """Whether an error means that W&B's own process has ended: two of its errors are in no public module."""
    return isinstance(error, ConnectionError) or type(error).__name__ in ("MailboxClosedError", "HandleAbandonedError")
