"""What happens to the weights between steps: averages, and zeros that are kept."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from cnnlab.deploy.prune import weighted
from cnnlab.errors import InputError
from cnnlab.strategies import spreads_weights


class ExponentialMovingAverage(WeightAveraging):
    """Lightning's moving average of the weights, which is validated, saved, and kept as the weights at the end.

    The average's decay rises with the number n of updates so far, min(decay, (1 + n) / (20 + n)), so that the average
    of a short training covers its last steps (about 5 % of them) and not its random start.

    Args:
        decay: The share of the old average that each update keeps in a long training, from 0 to below 1. The average
            covers about 1 / (1 - decay) updates.
        update_every_n_steps: Optimizer steps between updates, 1 or more.
        update_starting_at_step: The first step that is averaged, 0 or more.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callbacks.ema.decay is {decay}, expected 0 up to (not including) 1")
        for name, value, least in (
            ("update_every_n_steps", update_every_n_steps, 1),
            ("update_starting_at_step", update_starting_at_step, 0),
        ):
            if value < least:
                raise InputError(f"callbacks.ema.{name} is {value}, expected {least} or more")
        super().__init__(avg_fn=self._average)
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self._updates = 0
        self._weight = 0.0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether an optimizer step is averaged; Lightning calls this right before each update, which it counts."""
        if step_idx is None or step_idx < self.update_starting_at_step or step_idx % self.update_every_n_steps:
            return False
        self._weight = 1 - min(self.decay, (1 + self._updates) / (20 + self._updates))
        self._updates += 1
        return True

    def _average(self, average: Tensor, now: Tensor, _: Any) -> Tensor:
        # Counts, such as a batch norm's number of batches, have no average.
        return torch.lerp(average, now.to(average.dtype), self._weight) if average.is_floating_point() else now

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and the number of updates."""
        return {**super().state_dict(), "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; runs of older versions counted no updates."""
        super().load_state_dict(state_dict)
        self._updates = state_dict.get("updates", state_dict["latest_update_step"] // self.update_every_n_steps)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the copy that holds the averages.

        Raises:
            InputError: If the strategy spreads the weights over processes.
        """
        if spreads_weights(trainer.strategy):
            raise InputError(
                f"callbacks.ema cannot average weights that {type(trainer.strategy).__name__} spreads over processes: "
                "switch it off, or use --trainer.strategy ddp"
            )
        with warnings.catch_warnings():
            # Only those strategies need the hook that every VisionTask has.
            warnings.filterwarnings("ignore", ".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)


class Sparsity(Callback):
    """Keeps weights of convolutions and linear layers at zero if they are zero when training starts."""

    def __init__(self) -> None:
        self._zeros: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record where the zeros are.

        Raises:
            InputError: If no weight is zero.
        """
        weights = [layer.weight for layer in weighted(pl_module)]
        self._zeros = [(weight, weight == 0) for weight in weights if bool((weight == 0).any())]
        if not self._zeros:
            raise InputError(
                "callbacks.sparsity: no weight is zero, so there is nothing to keep: start from pruned weights "
                "(cnnlab prune RUN --method unstructured), or switch it off"
            )

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Set these weights to zero again."""
        for weight, zeros in self._zeros:
            weight.masked_fill_(zeros, 0.0)
