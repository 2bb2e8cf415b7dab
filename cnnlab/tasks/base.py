"""VisionTask: the base of cnnlab's LightningModules: a network with its preprocessing and its answers."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from cnnlab.checkpoint import read_header
from cnnlab.errors import InputError
from cnnlab.imports import by_path
from cnnlab.loggers import Row
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
from cnnlab.tasks.optimization import DEFAULT_LR, Optimization
from cnnlab.tasks.starting_weights import StartingWeights
from cnnlab.tasks.steps import Stage, Steps


class VisionTask(Steps, Optimization, StartingWeights):
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
        compile: Compile the network with torch.compile; checkpoints keep the plain names. "auto" does so after some
            steps of a long training, if it saves time (callbacks.AutoCompile).
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
        compile: bool | Literal["auto"] = False,
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
        if compile is True:
            self.network.compile()
        self.decode = self.configure_decoder()
        self.prepare_steps()
        self.layer_rates: dict[str, float] | None = None
        """A learning rate for each of the network's layer groups, by name, if a callback has set them."""

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

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """The stage's latest results as tables, by the names of their files in the run's folder."""
        return {}

    def fetched_networks(self) -> dict[str, tuple[str, str]]:
        """The networks whose pretrained weights training needs: (name, the weights argument), by argument name."""
        weights = self.hparams["weights"]
        return {} if weights is None else {"network": (self.backbone, weights)}

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        """Images (B, C, H, W), uint8 0..255 or float 0..1, to raw outputs.

        Args:
            images: The images.
            targets: Their targets, for a network that takes them, too; without them if None.

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
            return self.network(images) if targets is None else self.network(images, targets)
        except AssertionError as error:
            # timm's transformers with a fixed grid of patches reject other sizes with an AssertionError.
            height, width = images.shape[2:]
            raise InputError(
                f"network {self.hparams['network']!r} does not take images of {height}x{width}: {error} Set data.size "
                f"to what it expects, or make it for this size, if it can be: --model.network_args.img_size {height}"
            ) from error

    def deployed_network(self) -> nn.Module:
        """The network of an exported file: standardized images to raw outputs, as in evaluate()."""
        return self.network

    def evaluate(self, images: Tensor) -> Any:
        """Images to raw outputs, as in validation, test and prediction."""
        return self(images)

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
