"""Steps: the part of VisionTask that turns a batch into loss, metrics and answers, the same way in all stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from cnnlab.batch import Batch
from cnnlab.lightning_compat import batches_in_step, is_accumulating, log_every_n_steps
from cnnlab.loggers import write_metrics
from cnnlab.losses import PartsLoss, total
from cnnlab.models.decoding import Answers, Decoder
from cnnlab.tasks.metrics import MeanLoss

Stage = Literal["train", "val", "test"]
_TINY = 1e-30
"""Instead of a count of nothing, by which nothing is divided."""


class Predictions(NamedTuple):
    """The result of a prediction step, on the device."""

    answers: Answers
    """The decoder's named arrays, B first."""
    batch: Batch
    """The predicted batch."""


class Steps(LightningModule):
    """Computes loss, metrics and answers of a batch.

    A loss is a sum over what was counted, divided once: over the batches of an optimizer step, over processes, and
    over an epoch.
    """

    monitor: str
    decode: Decoder

    def prepare_steps(self) -> None:
        """Create losses and metrics; VisionTask calls it when it has a network."""
        self.loss = self.configure_loss()
        self.evaluation_loss = self.configure_evaluation_loss()
        self.train_metrics = self.stage_metrics("train")
        self.val_metrics = self.stage_metrics("val")
        self.test_metrics = self.stage_metrics("test")
        self._step_counts: Tensor | None = None
        self._step_loss = torch.zeros(())
        self.results: dict[str, float] = {}
        """The latest value of each metric of each stage, by its full name ("val/accuracy")."""
        self.tables: dict[str, Tensor] = {}
        """The latest value of each metric that is not a single number, such as "test/confusion_matrix"."""

    @abstractmethod
    def configure_loss(self) -> Callable[[Any, Any], Tensor]:
        """Create the loss: (raw outputs, targets) to a scalar, the mean over the samples.

        A loss that is a mean over something else, such as pixels, is a losses.PartsLoss.
        """

    def configure_evaluation_loss(self) -> Callable[[Any, Any], Tensor]:
        """Create the loss of validation and test, of plain targets; the training's if not overridden."""
        return self.loss

    @abstractmethod
    def configure_metrics(self, stage: Stage) -> Mapping[str, Metric]:
        """Create a stage's metrics by name; the loss is added to them."""

    @abstractmethod
    def update_metrics(self, metrics: Mapping[str, Metric], answers: Answers, batch: Batch) -> None:
        """Update the metrics from configure_metrics() with the decoder's arrays of a batch.

        The batch may have no samples (images (0, C, H, W)).
        """

    def stage_metrics(self, stage: Stage) -> MetricCollection:
        """A stage's metrics, including the mean of the loss."""
        return MetricCollection(
            {"loss": MeanLoss(self.num_loss_parts), **self.configure_metrics(stage)}, compute_groups=False
        )

    @abstractmethod
    def evaluate(self, images: Tensor) -> Any:
        """Images to raw outputs, as in validation, test and prediction."""

    @property
    def num_loss_parts(self) -> int:
        """P, the number of parts of the loss: see losses.PartsLoss."""
        return self.loss.num_parts if isinstance(self.loss, PartsLoss) else 1

    def loss_counts(self, batch: Batch) -> Tensor:
        """What each part of a batch's loss is the mean over, (P,): the loss's own counts, or else the samples."""
        if isinstance(self.loss, PartsLoss):
            return self.loss.counts(batch.targets)
        return torch.tensor([float(len(batch))], device=batch.images.device)

    def parts_and_outputs(self, batch: Batch) -> tuple[Tensor, Any]:
        """The parts (P,) of the loss of a batch, whose sum is the loss, and the raw outputs."""
        outputs = self.measured_outputs(batch)
        loss = self.loss if self.training else self.evaluation_loss
        parts = loss.parts(outputs, batch.targets) if isinstance(loss, PartsLoss) else loss(outputs, batch.targets)
        return parts.reshape(-1), outputs

    def measured_outputs(self, batch: Batch) -> Any:
        """The raw outputs of a batch whose loss is measured."""
        return self(batch.images) if self.training else self.evaluate(batch.images)

    def loss_and_outputs(self, batch: Batch) -> tuple[Tensor, Any]:
        """The loss of a batch, a scalar, and the raw outputs.

        A task with a new kind of loss only overrides this, if the loss is the mean over the samples.
        """
        parts, outputs = self.parts_and_outputs(batch)
        return total(parts), outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One training step.

        Returns:
            The loss, a scalar. If an optimizer step has several batches or processes, it is scaled such that the
            average of all gradients, which Lightning takes, is that of the loss of all samples together.
        """
        batch = Batch.of(batch)
        parts, _ = self._measure_parts(batch, self.train_metrics)
        loss = self._share_of_step(parts, batch)
        if self.trainer.progress_bar_callback is not None:
            self.log("train/loss_step", total(parts).detach(), prog_bar=True, logger=False)
        every = log_every_n_steps(self.trainer)
        if every and not is_accumulating(self.trainer) and (self.trainer.global_step + 1) % every == 0:
            # Not through self.log, which would write it after a checkpoint of this step: a resumed run would lack it.
            of_all = self.trainer.strategy.reduce(self._step_loss.clone(), reduce_op="mean")
            write_metrics(self.trainer, {"train/loss_step": of_all.item()}, self.trainer.global_step)
        return loss

    def _share_of_step(self, parts: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch as a share of its optimizer step: sums over all of the step's batches, divided once."""
        batches, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if batches * processes == 1:
            loss = total(parts)
            self._step_loss = loss.detach()
            return loss
        own = self._counts_of(parts, batch)
        if self._step_counts is None:
            known = batch.group_counts
            if known is None or len(known) != len(own):
                # Another library's loader: all batches of the step are taken to be as large as the first.
                known = own * batches_in_step(self.trainer)
            self._step_counts = self.trainer.strategy.reduce(known.to(own.device, copy=True), reduce_op="sum")
            self._step_loss = torch.zeros((), device=parts.device)
        # Lightning divides by the number of batches, and averages over the processes.
        loss = total(parts * (own * (batches * processes) / self._step_counts.clamp(min=_TINY)))
        self._step_loss = self._step_loss + loss.detach() / batches
        if not is_accumulating(self.trainer):
            self._step_counts = None
        return loss

    def _counts_of(self, parts: Tensor, batch: Batch) -> Tensor:
        """loss_counts(), unless a task overrides loss_and_outputs(): its loss is the mean over the samples."""
        counts = self.loss_counts(batch).to(parts.device)
        return counts if len(counts) == len(parts) else parts.new_full((len(parts),), float(len(batch)))

    def validation_step(self, batch: Any, batch_idx: int) -> Answers:
        """One validation step; the answers go to the callbacks."""
        return self._measure(batch, self.val_metrics)[1]

    def test_step(self, batch: Any, batch_idx: int) -> Answers:
        """One test step; the answers go to the callbacks."""
        return self._measure(batch, self.test_metrics)[1]

    def predict_step(self, batch: Any, batch_idx: int) -> Predictions:
        """Predict a batch."""
        batch = Batch.of(batch)
        return Predictions(self.decode(self.evaluate(batch.images)), batch)

    def _measure(self, batch: Any, metrics: MetricCollection) -> tuple[Tensor, Answers]:
        """The loss, a scalar, and the answers of a batch, which update the metrics."""
        parts, answers = self._measure_parts(batch, metrics)
        return total(parts), answers

    def _measure_parts(self, batch: Any, metrics: MetricCollection) -> tuple[Tensor, Answers]:
        """The parts of the loss and the answers of a batch, which update the metrics: the step of all stages."""
        batch = Batch.of(batch)
        if not len(batch):
            parts, outputs = torch.zeros(1, device=batch.images.device), self.evaluate(batch.images)
        elif type(self).loss_and_outputs is Steps.loss_and_outputs:
            parts, outputs = self.parts_and_outputs(batch)
        else:
            loss, outputs = self.loss_and_outputs(batch)
            parts = loss.reshape(1)
        with torch.no_grad():
            # Decoding may be costly; training needs it for metrics only.
            answers: Answers = self.decode(outputs) if not self.training or len(metrics) > 1 else {}
            self.take_in(metrics, answers, batch, parts.detach())
        return parts, answers

    def take_in(self, metrics: MetricCollection, answers: Answers, batch: Batch, loss: Tensor | None) -> None:
        """Update the metrics from stage_metrics() with a batch.

        Args:
            metrics: The metrics.
            answers: The decoder's arrays.
            batch: The batch.
            loss: Its loss, a scalar or the parts (P,); left out if None.
        """
        own = dict(metrics.items(keep_base=True, copy_state=False))
        mean = own.pop("loss")
        if loss is not None:
            parts = loss.reshape(-1)
            counts = self._counts_of(parts, batch)
            # A scalar that has no parts counts as the first of them.
            missing = self.num_loss_parts - len(parts)
            mean.update(*(torch.nn.functional.pad(value, (0, missing)) for value in (parts, counts)))
        if own:
            self.update_metrics(own, answers, batch)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics."""
        self._finish("train", self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._finish("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._finish("test", self.test_metrics)

    def _finish(self, stage: Stage, metrics: MetricCollection) -> None:
        # self.log gets the values, not the metrics: Lightning resets its metrics in ways that lose results if an epoch
        # is interrupted half-way.
        values = metrics.compute()
        metrics.reset()
        for name, value in values.items():
            key = f"{stage}/{name}"
            if value.ndim:
                self.tables[key] = value.cpu()
            else:
                self.results[key] = value.item()
                self.log(key, value.float(), prog_bar=key == self.monitor, logger=False)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            numbers = {key: value for key, value in self.results.items() if key.startswith(f"{stage}/")}
            write_metrics(self.trainer, numbers, self.trainer.global_step - 1)
