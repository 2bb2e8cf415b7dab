"""Compile a network while it trains, if the rest of the run is long enough for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.callbacks.records import note
from cnnlab.callbacks.unfreezing import network_of
from cnnlab.lightning_compat import is_accumulating
from cnnlab.loggers import announce
from cnnlab.torch_compat import compile_if_possible, uncompile

LEAST_SECONDS = 1800.0
"""Compiling takes one to three minutes, and saves from nothing to a third of a step: this bounds what may be lost."""
WARMUP = 5
"""Steps that are not measured, at the start."""
MEASURED = 20
"""Steps that are measured, uncompiled and compiled."""
SETTLING = 3
"""Steps after compiling that are not measured; the first one waits for it."""
_COMPILED_AT = WARMUP + MEASURED


class AutoCompile(Callback):
    """Implements --model.compile auto: measures steps, compiles, measures again, and says whether it pays.

    It does nothing for other values of model.compile. The steps at which it measures and compiles are fixed, and
    checkpoints keep what it has done, so that a resumed run compiles where the run did. Time is that of whole steps,
    with the wait for data and without validation: where data are the limit, compiling saves nothing.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        """When the latest step ended."""
        self._seconds: list[float] = []
        self._plain: float | None = None
        self._wait = 0.0
        self._compiled = False
        self._decided = False

    def state_dict(self) -> dict[str, Any]:
        """What has been measured and done; nothing for other values of model.compile."""
        if self._decided and self._plain is None:
            return {}
        return {"plain": self._plain, "compiled": self._compiled, "decided": self._decided}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint's run has measured and done."""
        self._plain, self._compiled = state_dict["plain"], state_dict["compiled"]
        # The wait for the second time of compiling says nothing.
        self._decided = state_dict["decided"] or state_dict["compiled"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile the network of a resumed run again."""
        if getattr(pl_module, "hparams", {}).get("compile") != "auto":
            self._decided = True
        elif self._compiled:
            compile_if_possible(network_of(pl_module))
            announce("compile: on, as before the run was stopped")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, if it does not run."""
        if not self._decided and self._last is None:
            self._last = self._now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure steps; act where a measurement ends."""
        if self._decided or is_accumulating(trainer):
            return
        now, step = self._now(), trainer.global_step
        self._seconds.append(now - (now if self._last is None else self._last))
        self._last = now
        if step in (WARMUP, _COMPILED_AT + SETTLING):
            self._seconds = []
        elif step == _COMPILED_AT:
            self._begin(trainer, pl_module)
        elif step == _COMPILED_AT + 1:
            self._wait = self._seconds[-1] - (self._plain or 0.0)
        elif step == _COMPILED_AT + SETTLING + MEASURED:
            self._judge(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._last = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._last = None

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile, if enough is left of the run; the first process says."""
        self._plain = statistics.median(self._seconds)
        left = self._plain * (trainer.estimated_stepping_batches - trainer.global_step)
        self._compiled = bool(trainer.strategy.broadcast(left >= LEAST_SECONDS))
        if self._compiled:
            compile_if_possible(network_of(pl_module))
        else:
            self._decide(trainer, f"off: {max(left, 0.0) / 60:.0f} minutes of training are left, too few to pay for it")

    def _judge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what compiling costs and saves; go on without it if it saves nothing."""
        saved = (self._plain or 0.0) - statistics.median(self._seconds)
        left = trainer.estimated_stepping_batches - trainer.global_step
        self._compiled = bool(trainer.strategy.broadcast(saved > 0))
        if not self._compiled:
            uncompile(network_of(pl_module))
        self._decide(trainer, verdict(self._wait, saved, left))

    def _decide(self, trainer: Trainer, words: str) -> None:
        self._decided = True
        announce(f"compile: {words}")
        note(trainer, "compile", words)


def verdict(wait: float, saved: float, left: float) -> str:
    """What compiling costs and saves, in words.

    Args:
        wait: The seconds that it took.
        saved: The seconds that each step takes less; 0 or less if it takes no less.
        left: The steps that are left of the run.

    >>> verdict(71.0, 0.012, 9000)
    'on: it took 71 s and saves 12 ms a step: pays after 5,917 steps; this run has 9,000 left'
    """
    if saved <= 0:
        return f"off: it took {wait:.0f} s and saves nothing"
    steps = wait / saved
    return (
        f"on: it took {wait:.0f} s and saves {saved * 1000:.3g} ms a step: pays after {steps:,.0f} steps; this run has "
        f"{left:,.0f} left"
    )
