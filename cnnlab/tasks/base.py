"""VisionTask: the base of cnnlab's LightningModules; it turns a batch into loss, metrics and answers."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from cnnlab.batch import Batch
from cnnlab.checkpoint import read_header
from cnnlab.errors import InputError
from cnnlab.imports import by_path
from cnnlab.lightning_compat import batches_in_step, is_accumulating, log_every_n_steps
from cnnlab.loggers import Row, write_metrics
from cnnlab.losses import PartsLoss, total
from cnnlab.models.channel_removal import read_removals, remove_channels
from cnnlab.models.decoding import Answers, Decoder
from cnnlab.models.factory import create_network, preprocessing
from cnnlab.models.groups import shard
from cnnlab.models.norms_and_checkpointing import batch_to_group_norm
from cnnlab.models.norms_and_checkpointing import checkpoint_stages as checkpoint_stages_of
from cnnlab.models.standardize import Standardize
from cnnlab.models.weights import architecture_only
from cnnlab.outputs import Output
from cnnlab.tasks.handshake import arguments_from
from cnnlab.tasks.metrics import MeanLoss
from cnnlab.tasks.optimization import DEFAULT_LR, Optimization
from cnnlab.tasks.starting_weights import StartingWeights

Stage = Literal["train", "val", "test"]
_TINY = 1e-30
"""Instead of a count of nothing, by which nothing is divided."""


class Predictions(NamedTuple):
    """The result of a prediction step, on the device."""

    answers: Answers
    """The decoder's named arrays, B first."""
    batch: Batch
    """The predicted batch."""


class VisionTask(Optimization, StartingWeights):
    """A network with its preprocessing, loss, metrics, answers and optimization.

    A subclass sets ``kind`` and num_outputs, and implements configure_loss(), configure_metrics(), update_metrics(),
    configure_decoder() and configure_output(). It may inherit some of them from a task with the same kind of answers
    (see ClassTask). It takes its own arguments and ``**kwargs``, which it passes on. Hyperparameters are plain values,
    so that a checkpoint loads with weights_only=True.

    Args:
        network: A name for models.factory.create_network.
        channels: The images' channels.
        mean: Per channel, in 0..1, subtracted from the pixels; 0.5 if None.
        std: Per channel, in 0..1, by which the pixels are divided; 0.5 if None.
        dropout: Dropout rate before the head, 0..1; the network's default if None.
        network_args: Further arguments of the network.
        weights: Pretrained weights of timm's or torchvision's networks: "pretrained" (prefetched, otherwise from the
            hub), a file, or a folder of such files; random initialization if None. mean and std are then those of the
            pretraining.
        head: A new head on such a network, linear or mlp (see models.TransferModel); its own classifier if None.
        group_norm: Replace batch norms by group norms, for batches of a few images.
        pruned: The channels that cnnlab prune has removed from the network: a JSON file of
            models.channel_removal.Removal, or its content. Pretrained weights are then not loaded.
        checkpoint_stages: Names of the network's modules whose activations are recomputed in the backward pass
            instead of being kept.
        optimizer: A name for timm.optim.create_optimizer_v2; norms and biases get no weight decay.
        lr: Peak learning rate.
        weight_decay: Weight decay.
        layer_decay: The learning rate of each layer group, as a share of the rate of the next group towards the head,
            above 0, to 1 (Bao et al. 2022); one rate for all if None.
        lr_scaling: The rule that scales lr, and the rates of layer_decay, with the samples per step on all processes:
            linear (Goyal et al. 2017) or sqrt (Krizhevsky 2014); None for no scaling.
        lr_batch_size: The number of samples per step that lr is meant for, if it is scaled.
        optimizer_args: Further arguments of the optimizer.
        schedule: The learning-rate schedule: constant, cosine, onecycle, step or plateau (see tasks.schedules).
        warmup: The share of the run in which the learning rate rises; the schedule's default if None.
        schedule_args: Further arguments of the schedule.
        compile: Compile the network with torch.compile; checkpoints keep the plain names.
        channels_last: Keep images and convolutions in channels_last memory format, which is faster for convolutions.
        init_from: A checkpoint whose weights training starts from. (To continue a run, resume it.)

    Raises:
        InputError: If a name is unknown or an argument is out of range.
    """

    monitor: str = "val/loss"
    """The metric that checkpoints, early stopping and plateau monitor."""
    mode: ClassVar[Literal["min", "max"]] = "min"
    """Whether lower ("min") or higher ("max") values of it are better."""
    lower_is_better: ClassVar[Sequence[str]] = ("loss",)
    """The metrics whose lower values are better, by their names without the stage."""
    kind: ClassVar[str | None] = None
    """The kind of its answers, a name in outputs.OUTPUTS; None for a task that can only be trained and evaluated."""
    charts: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The metrics in a dashboard's charts, by the charts' titles."""
    key_metrics: ClassVar[Sequence[str]] = ("val/loss", "test/loss")
    """The metrics that a dashboard shows as numbers."""
    dashboard_pictures: ClassVar[Sequence[str]] = ("val/gradcam", "val/errors", "test/errors")
    """The images that a dashboard shows."""

    def __init__(
        self,
        network: str,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dropout: float | None = None,
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        head: str | None = None,
        group_norm: bool = False,
        pruned: str | list[Any] | None = None,
        checkpoint_stages: list[str] | None = None,
        optimizer: str = "adamw",
        lr: float = DEFAULT_LR,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        lr_scaling: str | None = None,
        lr_batch_size: int = 256,
        optimizer_args: dict[str, Any] | None = None,
        schedule: str = "cosine",
        warmup: float | None = None,
        schedule_args: dict[str, Any] | None = None,
        compile: bool = False,
        channels_last: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.preprocessing = preprocessing(self.backbone, channels) if weights is not None else None
        """The preprocessing that the pretrained network expects; None without pretraining."""
        if self.preprocessing is not None:
            mean, std = self.preprocessing.mean, self.preprocessing.std
        # Plain lists for any sequence: YAML would not restore tuples.
        self.hparams["mean"] = [0.5] * channels if mean is None else [float(value) for value in mean]
        self.hparams["std"] = [0.5] * channels if std is None else [float(value) for value in std]
        # A checkpoint contains the lists, so it does not depend on the file.
        removals = read_removals(pruned) if isinstance(pruned, str) else pruned
        self.hparams["pruned"] = removals
        _check_plain(dict(self.hparams))
        self.check_optimization()
        if compile and checkpoint_stages:
            raise InputError("model.compile and model.checkpoint_stages exclude each other: switch one of them off")

        self.standardize = Standardize(self.hparams["mean"], self.hparams["std"])
        # Pretrained weights have the shapes of the unpruned network, and the pruned weights are loaded later.
        with architecture_only() if removals else contextlib.nullcontext():
            self.network = self.configure_network()
        if group_norm and not batch_to_group_norm(self.network):
            raise InputError(f"model.group_norm: network {network!r} has no batch norm to replace")
        remove_channels(self.network, removals or [])
        checkpoint_stages_of(self.network, checkpoint_stages or [])
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()
        self.loss = self.configure_loss()
        self.evaluation_loss = self.configure_evaluation_loss()
        self.decode = self.configure_decoder()
        self.train_metrics = self.stage_metrics("train")
        self.val_metrics = self.stage_metrics("val")
        self.test_metrics = self.stage_metrics("test")
        self.layer_rates: dict[str, float] | None = None
        """A learning rate for each of the network's layer groups, by name, if a callback has set them."""
        self._step_counts: Tensor | None = None
        self._step_loss = torch.zeros(())
        self.results: dict[str, float] = {}
        """The latest value of each metric of each stage, by its full name ("val/accuracy")."""
        self.tables: dict[str, Tensor] = {}
        """The latest value of each metric that is not a single number, such as "test/confusion_matrix"."""

    @classmethod
    def for_data(cls, data: LightningDataModule, **kwargs: Any) -> Self:
        """Create a task with the arguments that a data module provides, as on the command line, and with others.

        Raises:
            InputError: If the data have another kind of targets.
        """
        return cls(**{**arguments_from(data, cls), **kwargs})

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Lightning's method, without loading pretrained weights, since the checkpoint has all weights."""
        with architecture_only():
            return super().load_from_checkpoint(*args, **kwargs)

    @property
    def backbone(self) -> str:
        """The name of the network that pretrained weights are for."""
        return str(self.hparams["network"])

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """The number of outputs of the network's head."""

    def configure_network(self) -> nn.Module:
        """Create the network: standardized images to raw outputs."""
        hparams = self.hparams
        settings = {name: hparams[name] for name in ("dropout", "weights", "head")}
        settings |= hparams["network_args"] or {}
        return create_network(hparams["network"], self.num_outputs, hparams["channels"], **settings)

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

    def configure_decoder(self) -> Decoder:
        """Create the module that decodes raw outputs to answers, which exported files include."""
        return _AsTheyAre()

    def configure_output(self) -> Output:
        """Create the torch-free handling of the answers: columns, files, images, descriptions.

        Raises:
            InputError: If the task has no kind of answers.
        """
        raise InputError(
            f"{type(self).__name__} does not say how it answers: give its class a kind, configure_decoder() and "
            "configure_output()"
        )

    @cached_property
    def output(self) -> Output:
        """See configure_output()."""
        return self.configure_output()

    def stage_metrics(self, stage: Stage) -> MetricCollection:
        """A stage's metrics, including the mean of the loss."""
        return MetricCollection(
            {"loss": MeanLoss(self.num_loss_parts), **self.configure_metrics(stage)}, compute_groups=False
        )

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """The stage's latest results as tables, by the names of their files in the run's folder."""
        return {}

    def fetched_networks(self) -> dict[str, tuple[str, str]]:
        """The networks whose pretrained weights training needs: (name, the weights argument), by argument name."""
        weights = self.hparams["weights"]
        return {} if weights is None else {"network": (self.backbone, weights)}

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, H, W), uint8 0..255 or float 0..1, to raw outputs.

        Raises:
            InputError: If the network does not take images of this number of channels or of this size.
        """
        if not len(images):
            # Some networks fail on empty batches, and with sharded weights the other processes wait for this one.
            return _none_of(self.forward(images.new_zeros(1, *images.shape[1:])))
        images = self.standardize(images)
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            return self.network(images)
        except AssertionError as error:
            # timm's transformers with a fixed grid of patches reject other sizes with an AssertionError.
            height, width = images.shape[2:]
            raise InputError(
                f"network {self.hparams['network']!r} does not take images of {height}x{width}: {error} Set data.size "
                f"to what it expects, or make it for this size, if it can be: --model.network_args.img_size {height}"
            ) from error

    def evaluate(self, images: Tensor) -> Any:
        """Images to raw outputs, as in validation, test and prediction."""
        return self(images)

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
        outputs = self(batch.images) if self.training else self.evaluate(batch.images)
        loss = self.loss if self.training else self.evaluation_loss
        parts = loss.parts(outputs, batch.targets) if isinstance(loss, PartsLoss) else loss(outputs, batch.targets)
        return parts.reshape(-1), outputs

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
        elif type(self).loss_and_outputs is VisionTask.loss_and_outputs:
            parts, outputs = self.parts_and_outputs(batch)
        else:
            loss, outputs = self.loss_and_outputs(batch)
            parts = loss.reshape(1)
        with torch.no_grad():
            answers: Answers = self.decode(outputs)
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

    def configure_model(self) -> None:
        """Shard the network over the processes, if the strategy is strategies.FullyShard.

        Raises:
            InputError: If the strategy asks for tensor parallelism.
        """
        if self.device_mesh is None:
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            raise InputError(
                "trainer.strategy: cnnlab's networks are sharded, their layers are not divided: use "
                "cnnlab.strategies.FullyShard (--config trainer/fully_shard)"
            )
        shard(self.network, self.device_mesh["data_parallel"])


def load_task(path: Path) -> VisionTask:
    """Load the task of a checkpoint, with its weights, in eval mode.

    Raises:
        InputError: If the checkpoint cannot be read, or contains another LightningModule.
    """
    kind = by_path(read_header(path)["cnnlab"]["task"])
    if not issubclass(kind, VisionTask):
        raise InputError(f"{path} holds a {kind.__name__}, expected a task of cnnlab's")
    task: VisionTask = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return task.eval()


class _AsTheyAre(Decoder):
    """Raw outputs under the name "outputs"."""

    def forward(self, outputs: Tensor) -> Answers:
        return {"outputs": outputs}


def _none_of(outputs: Any) -> Any:
    """Convert raw outputs of one image to raw outputs of an empty batch."""
    if isinstance(outputs, Mapping):
        return {name: _none_of(value) for name, value in outputs.items()}
    return [_none_of(value) for value in outputs] if isinstance(outputs, (list, tuple)) else outputs[:0]


def _check_plain(value: Any, name: str = "") -> None:
    """Raise InputError if weights_only=True would not load a hyperparameter again."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_plain(inner, name)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise InputError(
            f"hyperparameter {name} is a {type(value).__name__}, expected a plain value (text, number, list, dict): "
            "checkpoints hold nothing else, so that they load safely"
        )
