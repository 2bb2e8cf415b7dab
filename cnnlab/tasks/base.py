"""VisionTask: what all LightningModules of cnnlab share."""

from __future__ import annotations

import contextlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from cnnlab.checkpoint import LINKED, make_portable, read_weights
from cnnlab.errors import InputError
from cnnlab.lightning_compat import is_accumulating, is_attached, log_every_n_steps
from cnnlab.loggers import write_metrics
from cnnlab.models.factory import create_network, preprocessing
from cnnlab.models.memory import batch_to_group_norm
from cnnlab.models.memory import checkpoint_stages as checkpoint_stages_of
from cnnlab.models.removal import read_removals, remove_channels
from cnnlab.models.sharding import shard
from cnnlab.models.standardize import Standardize
from cnnlab.models.weights import architecture_only
from cnnlab.strategies import spreads_weights
from cnnlab.tasks.optimizers import check_optimizer, check_scaling, create_optimizer, decayed_rates, scaling_factor
from cnnlab.tasks.schedules import check_schedule, create_schedules

Stage = Literal["train", "val", "test"]
_DEFAULT_LR = 1e-3


class Difficulty(NamedTuple):
    """How hard each image of a batch is."""

    errors: Tensor
    """(B,) how wrong its prediction is, the greater the worse."""
    doubts: Tensor
    """(B,) how uncertain its prediction is, 0..1."""


class VisionTask(LightningModule):
    """A network with its preprocessing, loss, metrics and optimisation.

    A subclass says what they are in configure_network(), configure_loss() and configure_metrics(), which are called in
    this order; one step serves training, validation and test. Hyperparameters are plain values, so that a checkpoint
    loads anywhere with weights_only=True.

    Args:
        network: A name for models.factory.create_network.
        num_classes: The number of classes.
        channels: The images' channels.
        class_names: The classes' names in order; their numbers if None.
        mean: Per channel, in 0..1, subtracted from the pixels; 0.5 if None.
        std: Per channel, in 0..1, by which the pixels are divided; 0.5 if None.
        dropout: Dropout rate before the classifier, 0..1; the network's own if None.
        network_args: Further arguments of the network.
        weights: Pretrained weights of timm's or torchvision's networks: "pretrained" (prefetched ones, else the hub's),
            a file, or a folder of such files; random ones if None. mean and std are then those of the pretraining.
        head: A new head on such a network, linear or mlp (see models.TransferModel); its own classifier if None.
        group_norm: Replace batch norms by group norms, for batches of a few images.
        pruned: The channels that cnnlab prune has removed from the network: a JSON file of models.removal.Removal, or
            what is in it. Pretrained weights are then not looked for.
        checkpoint_stages: Names of the network's modules whose activations are computed again in the backward pass
            instead of being kept.
        optimizer: A name for timm.optim.create_optimizer_v2; norms and biases are spared weight decay.
        lr: Peak learning rate.
        weight_decay: Weight decay.
        layer_decay: The learning rate of each layer group, as a share of the next one's towards the head, above 0, to
            1 (Bao et al. 2022); one rate for all if None.
        lr_scaling: How lr and layer_decay's rates grow with the samples that a step sees on all processes: linear
            (Goyal et al. 2017) or sqrt (Krizhevsky 2014); None to leave them as they are.
        lr_batch_size: The number of samples that lr is meant for, where it is scaled.
        optimizer_args: Further arguments of the optimizer.
        schedule: The learning rate's course: constant, cosine, onecycle, step or plateau (see tasks.schedules).
        warmup: The share of the run in which the learning rate rises; the schedule's own if None.
        schedule_args: Further arguments of the schedule.
        compile: Compile the network with torch.compile; checkpoints keep the plain names.
        channels_last: Keep images and convolutions in channels_last memory format, the faster one for convolutions.
        init_from: A checkpoint whose weights training starts from. (To go on with a run, resume it.)

    Raises:
        InputError: If a name is unknown or an argument does not fit.
    """

    monitor: ClassVar[str] = "val/loss"
    """The metric that checkpoints, early stopping and plateau watch."""
    mode: ClassVar[Literal["min", "max"]] = "min"
    """Which of its values is better."""
    kind: ClassVar[Literal["classification", "segmentation"] | None] = None
    """What it tells: the classes of images, or of pixels; None for something else, which cannot be exported."""

    def __init__(
        self,
        network: str,
        num_classes: int,
        channels: int = 3,
        class_names: Sequence[str] | None = None,
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
        lr: float = _DEFAULT_LR,
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
        self.num_classes = num_classes
        self.class_names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
        if len(self.class_names) != num_classes:
            raise InputError(f"there are {len(self.class_names)} class_names for {num_classes} classes")
        # Plain lists, whatever sequence came: tuples would come back from YAML as something else.
        self.hparams["class_names"] = self.class_names
        self.preprocessing = preprocessing(self.backbone, channels) if weights is not None else None
        """What the network's pretraining expects of its images; None without one."""
        if self.preprocessing is not None:
            mean, std = self.preprocessing.mean, self.preprocessing.std
        self.hparams["mean"] = [0.5] * channels if mean is None else [float(value) for value in mean]
        self.hparams["std"] = [0.5] * channels if std is None else [float(value) for value in std]
        # A checkpoint holds the lists, and needs no file beside it.
        removals = read_removals(pruned) if isinstance(pruned, str) else pruned
        self.hparams["pruned"] = removals
        _check_plain(dict(self.hparams))
        check_optimizer(optimizer, lr, weight_decay)
        if compile and checkpoint_stages:
            raise InputError("model.compile and model.checkpoint_stages exclude each other: switch one of them off")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise InputError(f"model.layer_decay is {layer_decay}, expected above 0, to 1")
        check_scaling(lr_scaling, lr_batch_size)
        check_schedule(schedule, warmup, schedule_args or {})

        self.standardize = Standardize(self.hparams["mean"], self.hparams["std"])
        # Weights of the whole network do not fit, and others are about to come.
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
        self.train_metrics = self.configure_metrics("train")
        self.val_metrics = self.configure_metrics("val")
        self.test_metrics = self.configure_metrics("test")
        self.layer_rates: dict[str, float] | None = None
        """A learning rate for each of the network's layer groups, by name, where a callback has set them."""
        self.results: dict[str, float] = {}
        """The latest value of each metric of each stage, by its full name ("val/accuracy")."""
        self.tables: dict[str, Tensor] = {}
        """The latest value of each metric that is more than a number, such as "test/confusion_matrix"."""

    @classmethod
    def for_data(cls, data: LightningDataModule, **kwargs: Any) -> Self:
        """Make a task for a data module: classes, channels, mean and std are the data's, as on the command line.

        Args:
            data: The data module.
            **kwargs: The task's other arguments.
        """
        taken: set[str] = set()
        for kind in cls.__mro__:
            parameters = inspect.signature(kind).parameters.values()
            taken |= {parameter.name for parameter in parameters}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break  # It hands nothing on that it does not know.
        known = {name: getattr(data, name) for name in LINKED if name in taken and hasattr(data, name)}
        return cls(**{**known, **kwargs})

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Lightning's; pretrained weights are not looked for, since the checkpoint brings its own."""
        with architecture_only():
            return super().load_from_checkpoint(*args, **kwargs)

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What makes probabilities of raw predictions, over the classes (dimension 1)."""
        return "softmax"

    def probabilities(self, predictions: Tensor) -> Tensor:
        """Raw predictions (B, num_classes, ...) to probabilities, which sum to 1 where there is one class."""
        predictions = predictions.float()
        return predictions.softmax(dim=1) if self.activation == "softmax" else predictions.sigmoid()

    @property
    def backbone(self) -> str:
        """The network that pretrained weights are for."""
        return str(self.hparams["network"])

    def configure_network(self) -> nn.Module:
        """Make the network: standardised images to raw predictions."""
        hparams = self.hparams
        settings = {name: hparams[name] for name in ("dropout", "weights", "head")}
        settings |= hparams["network_args"] or {}
        return create_network(hparams["network"], self.num_classes, hparams["channels"], **settings)

    @abstractmethod
    def configure_loss(self) -> Callable[[Tensor, Any], Tensor]:
        """Make the loss: (predictions, targets) to a scalar."""

    @abstractmethod
    def configure_metrics(self, stage: Stage) -> MetricCollection:
        """Make a stage's metrics; "loss" is among them, for the mean of the loss over the epoch."""

    @abstractmethod
    def update_metrics(self, metrics: MetricCollection, predictions: Tensor, targets: Any, loss: Tensor) -> None:
        """Bring a stage's metrics up to date with a batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 0..255 or float 0..1, to raw predictions.

        Raises:
            InputError: If the network does not take images of this number of channels or of this size.
        """
        if not len(images):
            # A process may have fewer batches than others, and not all networks can compute with nothing. Where weights
            # are spread over processes, it computes something all the same, as the others wait for its part of them.
            if is_attached(self) and spreads_weights(self.trainer.strategy):
                return self.forward(images.new_zeros(1, *images.shape[1:]))[:0]
            size = images.shape[2:] if self.kind == "segmentation" else ()
            return torch.empty(0, self.num_classes, *size, device=images.device)
        images = self.standardize(images)
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            predictions: Tensor = self.network(images)
        except AssertionError as error:
            # How timm's transformers, whose grid of patches is fixed, refuse another size.
            height, width = images.shape[2:]
            raise InputError(
                f"network {self.hparams['network']!r} does not take images of {height}x{width}: {error} Set data.size "
                f"to what it expects, or make it for this size, if it can be: --model.network_args.img_size {height}"
            ) from error
        return predictions

    def difficulty(self, predictions: Tensor, targets: Any) -> Difficulty | None:
        """Which images of a batch are the hardest, for whoever looks at those; None where a task does not say.

        Args:
            predictions: What validation_step() returns.
            targets: The batch's.
        """
        return None

    def step(self, batch: tuple[Tensor, Any], metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Predict a batch, measure it, return the loss and the predictions: the one step of all stages."""
        images, targets = batch
        predictions = self(images)
        loss = self.loss_of(images, predictions, targets) if len(images) else predictions.sum()
        self.update_metrics(metrics, predictions.detach(), targets, loss.detach())
        return loss, predictions

    def loss_of(self, images: Tensor, predictions: Tensor, targets: Any) -> Tensor:
        """The loss of a batch; the images are for those that need more than predictions."""
        loss: Tensor = self.loss(predictions, targets)
        return loss

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One step of the training."""
        loss, _ = self.step(batch, self.train_metrics)
        if self.trainer.progress_bar_callback is not None:
            self.log("train/loss_step", loss.detach(), prog_bar=True, logger=False)
        every = self._log_every_n_steps
        accumulating = is_accumulating(self.trainer)
        if every and not accumulating and (self.trainer.global_step + 1) % every == 0:
            # Not through self.log, which would write it after a checkpoint of this step: a resumed run would miss it.
            of_all = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")
            write_metrics(self.trainer, {"train/loss_step": of_all.item()}, self.trainer.global_step)
        return loss

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One step of the validation; the predictions go to the callbacks."""
        return self.step(batch, self.val_metrics)[1]

    def test_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One step of the test; the predictions go to the callbacks."""
        return self.step(batch, self.test_metrics)[1]

    @property
    def _log_every_n_steps(self) -> int:
        return log_every_n_steps(self.trainer)

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
        # The metrics themselves are not handed to self.log: Lightning would reset and forget them in ways that
        # an epoch interrupted half-way does not survive.
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
        """Spread the network over the processes, where the strategy is strategies.FullyShard.

        Raises:
            InputError: If the strategy would divide each layer's computation.
        """
        if self.device_mesh is None:
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            raise InputError(
                "trainer.strategy: cnnlab's networks are sharded, their layers are not divided: use "
                "cnnlab.strategies.FullyShard (--config trainer/fully_shard)"
            )
        if self.hparams.get("window") is not None:
            raise InputError(
                "model.window: images of different sizes have different numbers of windows, for which processes that "
                "share weights would wait for ever; leave it out, or use --trainer.strategy ddp"
            )
        shard(self.network, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Begin in training mode, whoever had the task before, and with the weights of init_from; go on without."""
        self.train()
        if not spreads_weights(self.trainer.strategy):
            self._begin_with_weights()

    def on_train_start(self) -> None:
        """The same weights for strategies that read a checkpoint later than others."""
        if spreads_weights(self.trainer.strategy):
            self._begin_with_weights()

    def _begin_with_weights(self) -> None:
        if self.hparams["init_from"] and self.trainer.ckpt_path is None:
            self._take_weights(self.hparams["init_from"])

    def _take_weights(self, path: str) -> None:
        own = self.network.state_dict()
        prefix = "network."
        weights = read_weights(path).items()
        given = {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if not fitting:
            raise InputError(f"init_from {path}: none of its weights fits network {self.hparams['network']!r}")
        if spreads_weights(self.trainer.strategy):
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            set_model_state_dict(
                self.network, dict(fitting), options=StateDictOptions(full_state_dict=True, strict=False)
            )
        else:
            self.network.load_state_dict(fitting, strict=False)
        left = sorted(set(own) - set(fitting))
        rank_zero_info(
            f"init_from {path}: took {len(fitting)} of {len(own)} tensors"
            + (f"; as initialised: {', '.join(left)}" if left else "")
        )

    def configure_optimizers(self) -> Any:
        """The optimizer by name from timm's factory, and the schedule by name."""
        hparams = self.hparams
        rates = self.layer_rates
        for name in ("layer_decay", "lr_scaling"):
            if rates is not None and hparams.get(name) is not None:
                raise InputError(f"model.{name} and callbacks.unfreezing both set the layers' rates: choose one")
        factor = self._lr_factor()
        lr = hparams["lr"] * factor
        if hparams.get("lr_scaling") is not None:
            rank_zero_info(
                f"model.lr_scaling: the learning rate is {lr:g} ({hparams['lr']:g} times {factor:g}), as a step sees "
                f"{self._samples_a_step()} samples on {self.trainer.world_size} process(es), not "
                f"{hparams['lr_batch_size']}"
            )
        if hparams["layer_decay"] is not None:
            rates = decayed_rates(self.network, lr, hparams["layer_decay"])
        elif rates is not None and hparams["lr"] != _DEFAULT_LR:
            rank_zero_warn(
                f"model.lr is {hparams['lr']}, which changes nothing: callbacks.unfreezing sets the rates of all layers"
            )
        # A fused step unscales gradients itself, so Lightning refuses to clip them before it in mixed precision.
        clipped = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        # Not all fused steps know of weights that are spread over processes.
        sharded = self.device_mesh is not None
        optimizer = create_optimizer(
            self.network,
            hparams["optimizer"],
            lr,
            hparams["weight_decay"],
            hparams["optimizer_args"] or {},
            fused=not clipped and not sharded,
            rates=rates,
        )
        schedules = create_schedules(
            hparams["schedule"],
            optimizer,
            self.trainer.estimated_stepping_batches,
            hparams["warmup"],
            self.monitor,
            self.mode,
            hparams["schedule_args"] or {},
        )
        return [optimizer], schedules

    def _samples_a_step(self) -> int:
        """How many samples an optimizer step sees, on all processes.

        Raises:
            InputError: If the data do not say.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(getattr(data, "batch_size", None), int):
            raise InputError("model.lr_scaling needs a data module with a batch_size: leave it out, and set model.lr")
        return int(data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def _lr_factor(self) -> float:
        rule = self.hparams.get("lr_scaling")
        return 1.0 if rule is None else scaling_factor(rule, self._samples_a_step(), self.hparams["lr_batch_size"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a learning rate or weight decay that was changed for a resumed fit count, against the optimizer's state.

        Raises:
            InputError: If something was changed that the state cannot follow.
        """
        if not is_attached(self) or self.trainer.state.fn != "fit":
            return
        kept = checkpoint["hyper_parameters"]
        self._refuse_other_groups(checkpoint)
        fixed = ["optimizer", "optimizer_args", "layer_decay"]
        if "plateau" in (kept["schedule"], self.hparams["schedule"]):
            fixed += ["schedule", "schedule_args", "warmup"]
        changed = [name for name in fixed if kept.get(name) != self.hparams[name]]
        for name in ("lr", "weight_decay"):
            if kept[name] != self.hparams[name] and not (kept[name] and self.hparams[name]):
                changed.append(name)
        if changed:
            raise InputError(
                f"a run cannot go on with another {' and '.join(changed)}: leave it as it was, or begin a new run with "
                "--model.init_from"
            )
        if self.layer_rates is not None:
            kept = {**kept, "lr": self.hparams["lr"]}  # It decides on nothing: the layers have rates of their own.
        faster, stronger = (self.hparams[name] / kept[name] if kept[name] else 1.0 for name in ("lr", "weight_decay"))
        faster *= self._lr_factor() / checkpoint["cnnlab"].get("lr_factor", 1.0)
        if (faster, stronger) != (1, 1) and self.trainer.strategy.restore_checkpoint_after_setup:
            raise InputError(
                f"a run under {type(self.trainer.strategy).__name__} cannot go on with another learning rate or weight "
                "decay: leave them as they were, or begin a new run with --model.init_from"
            )
        groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
        for group in groups:
            group["weight_decay"] *= stronger
            for name in ("lr", "initial_lr"):
                group[name] *= faster
        for schedule in checkpoint["lr_schedulers"]:
            for name in ("base_lrs", "_last_lr"):
                if name in schedule:
                    schedule[name] = [rate * faster for rate in schedule[name]]

    def _refuse_other_groups(self, checkpoint: dict[str, Any]) -> None:
        saved = any("layers" in group for state in checkpoint["optimizer_states"] for group in state["param_groups"])
        wanted = self.layer_rates is not None or self.hparams["layer_decay"] is not None
        if saved != wanted:
            raise InputError(
                f"the run was trained {'with' if saved else 'without'} rates for each layer (callbacks.unfreezing or "
                "model.layer_decay), and cannot go on otherwise: leave them as they were, or begin a new run with "
                "--model.init_from"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what it takes to make this task, and its data, again."""
        make_portable(checkpoint, self, getattr(self.trainer, "datamodule", None))
        checkpoint["cnnlab"]["lr_factor"] = self._lr_factor()


def _check_plain(value: Any, name: str = "") -> None:
    """Raise InputError if a hyperparameter is something that weights_only=True would not load again."""
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
