"""State that Lightning's checkpoints leave out, and that a resumed run needs to end with identical weights."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric, MetricCollection

from cnnlab.callbacks.tables import from_all
from cnnlab.imports import parameters_of
from cnnlab.lightning_compat import load_metric
from cnnlab.loggers import MetricsCsv

_KEY = "exact_resume"


class ExactResume(Callback):
    """Saves the random states and the unfinished epoch's metrics, and continues metrics.csv where it was.

    The data module saves the position in the data, and Lightning the rest.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None
        self._settings: list[tuple[Callback, str, Any]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states of each process and the metrics, under a separate key."""
        checkpoint[_KEY] = {"random": from_all(trainer, [_random_states()]), "metrics": _metric_states(pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the states until training starts, and the callbacks' arguments, which their states may contain."""
        self._saved = checkpoint.get(_KEY)
        states = checkpoint.get("callbacks", {})
        self._settings = [
            (callback, name, getattr(callback, name))
            for callback in _callbacks(trainer)
            for name in parameters_of(type(callback))
            if name in states.get(callback.state_key, {}) and hasattr(callback, name)
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics; drop what was logged after the checkpoint; let configuration and flags count."""
        _count_in_new_batches(trainer)
        for callback, name, value in self._settings:
            if getattr(callback, name) is not value:
                setattr(callback, name, value)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.forget_from(trainer.global_step)
        # The saved counts are sums over all processes.
        if self._saved is not None and trainer.is_global_zero:
            older = {f"train_metrics.{name}": state for name, state in self._saved.get("train_metrics", {}).items()}
            _load_metric_states(pl_module, self._saved.get("metrics", older))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random states as late as possible, after all else that draws numbers at the start of a run."""
        if self._saved is not None:
            states = self._saved["random"]
            # If there are more processes than before, the additional ones have no saved state.
            if isinstance(states, list) and trainer.global_rank < len(states):
                _load_random_states(states[trainer.global_rank])
            self._saved = None


def _count_in_new_batches(trainer: Trainer) -> None:
    """Count the batches of a resumed epoch as those of today's size, so that the epoch ends where its samples end."""
    done = getattr(getattr(trainer, "datamodule", None), "batches_done", None)
    if trainer.ckpt_path is None or done is None:
        return
    progress = trainer.fit_loop.epoch_loop.batch_progress
    current: Any = progress.current
    change = (int(trainer.num_training_batches) if progress.is_last_batch else done()) - current.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) + change)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(getattr(trainer, "callbacks", []))


def _random_states() -> dict[str, Any]:
    """Return plain values and tensors, so that weights_only=True loads them."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, numpy_words, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _load_random_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _metrics(pl_module: LightningModule) -> dict[str, Metric]:
    """All metrics of a task, by their names as modules."""
    found: dict[str, Metric] = {}
    for name, module in pl_module.named_modules():
        if isinstance(module, MetricCollection):
            # Its own look-up lets metrics that share one state have it.
            members = module.items(keep_base=True, copy_state=False)
            found |= {f"{name}.{own}": metric for own, metric in members}
        elif isinstance(module, Metric):
            found.setdefault(name, module)
    return found


def _metric_states(pl_module: LightningModule) -> dict[str, Any]:
    """The states of the metrics that have seen a part of the epoch, over all processes."""
    found = {}
    for name, metric in _metrics(pl_module).items():
        with metric.sync_context(should_unsync=True, distributed_available=metric.distributed_available_fn):
            if metric.update_count:
                states = {own: list(now) if isinstance(now, list) else now for own, now in metric.metric_state.items()}
                found[name] = {"updates": metric.update_count, "states": states}
    return found


def _load_metric_states(pl_module: LightningModule, saved: dict[str, Any]) -> None:
    for name, metric in _metrics(pl_module).items():
        # The loss of older versions had one part, and a run that goes on may have other classes.
        if name in saved and _shapes(saved[name]["states"]) == _shapes(metric.metric_state):
            load_metric(metric, saved[name]["states"], saved[name]["updates"])


def _shapes(states: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(state, "shape", None) for name, state in states.items()}
