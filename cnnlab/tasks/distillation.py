"""Distillation: a small network learns from a large one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.imaging import height_and_width
from cnnlab.imports import parameters_of
from cnnlab.interpret.layers import get_layer
from cnnlab.losses import attention_transfer, soft_targets, total
from cnnlab.tasks.classification import Classification
from cnnlab.tasks.teacher import LogitsCache, Teacher, find_teacher


class Distillation(Classification):
    """Train a network, the student, on the classes and on the outputs of a trained network, the teacher.

    The loss is alpha x T^2 x KL(teacher / T, student / T) + (1 - alpha) x cross-entropy (Hinton et al. 2015,
    arXiv:1503.02531). Validation and test use the metrics of Classification. The teacher is loaded when the training
    starts. It sees the same augmented images, standardized and resized as in its own training. Checkpoints are plain
    ones of Classification without the teacher, and record the teacher's origin and hash.

    Args:
        teacher: A run's folder, a checkpoint, or the name of a timm or torchvision network.
        alpha: The weight of the teacher's part of the loss, 0..1.
        temperature: T, above 0: higher values give unlikely classes more weight.
        teacher_weights: The weights of a teacher that is given by its network's name: see VisionTask's weights.
        teacher_size: The height and width of the teacher's input; those of its training if None.
        features: Pairs of layers whose attention the student learns from the teacher ({student's: teacher's} names):
            losses.attention_transfer. None for none.
        features_weight: The factor of that loss, which is summed over all pairs; about 1 to 10 in the paper's terms.
        cache: Compute the teacher's logits once for each image, for data without augmentation, and keep them in
            memory. A resumed run computes them again, and may differ in the last digits.
        teacher_class_names: The classes, in order, of a teacher that is given by its network's name and weights of
            one's own; ImageNet's if None.
        **kwargs: See Classification.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        teacher: str,
        alpha: float = 0.7,
        temperature: float = 4.0,
        teacher_weights: str = "pretrained",
        teacher_size: int | Sequence[int] | None = None,
        features: dict[str, str] | None = None,
        features_weight: float = 1.0,
        cache: bool = False,
        teacher_class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"model.alpha is {alpha}, expected 0..1")
        if not temperature > 0:
            raise InputError(f"model.temperature is {temperature}, expected above 0")
        if kwargs.get("multi_label"):
            raise InputError("distillation is for images of one class, and the data have several (data.multi_label)")
        if features and kwargs.get("compile"):
            raise InputError("model.features and model.compile exclude each other: switch one of them off")
        if features and cache:
            raise InputError("model.features and model.cache exclude each other: features are compared in each step")
        self._teacher_size = height_and_width("model.teacher_size", teacher_size)
        super().__init__(**kwargs)
        for layer in features or {}:
            get_layer(self.network, layer)
        # Not registered as a submodule: its weights do not belong in checkpoints, the optimizer or averages.
        self._held: list[Teacher] = []
        self._cache = LogitsCache() if cache else None
        self._seen: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}

    @property
    def teacher(self) -> Teacher:
        """The teacher, after the training has started.

        Raises:
            InputError: If the training has not started.
        """
        if not self._held:
            raise InputError("the teacher is looked for when training starts")
        return self._held[0]

    def setup(self, stage: str) -> None:
        """Load the teacher.

        Raises:
            InputError: If there is none, or if its classes or channels differ from the student's.
        """
        if stage != "fit" or self._held:
            return
        hparams = self.hparams
        found = find_teacher(
            hparams["teacher"],
            self,
            hparams["teacher_weights"],
            self._teacher_size,
            hparams["teacher_class_names"],
        )
        self._held = [found]
        for own, taught in (hparams["features"] or {}).items():
            _listen(self.network, own, self._seen["student"])
            _listen(found.network, taught, self._seen["teacher"])
        count = sum(parameter.numel() for parameter in found.parameters())
        own_count = sum(parameter.numel() for parameter in self.network.parameters())
        rank_zero_info(f"teacher {found.origin}: {count:,} parameters; the student has {own_count:,}")

    def on_fit_start(self) -> None:
        """Check that the teacher's logits can be cached, if that is requested.

        Raises:
            InputError: If they are to be cached and the data are augmented.
        """
        super().on_fit_start()
        dataset = getattr(getattr(self.trainer, "datamodule", None), "train_set", None)
        if self._cache is None or dataset is None:
            return
        count = min(8, len(dataset))
        first, second = (
            Batch.of(dataset.__getitems__([(epoch, i, 0) for i in range(count)])).images for epoch in (0, 1)
        )
        if not torch.equal(first, second):
            raise InputError(
                "model.cache remembers what the teacher says of an image, but the data augment it: each epoch has "
                "others. Switch augmentation and mixing off, or leave out model.cache"
            )

    @property
    def num_loss_parts(self) -> int:
        """The teacher's part, that of the classes, and one for each pair of layers."""
        return 2 + len(self.hparams["features"] or {})

    def loss_counts(self, batch: Batch) -> Tensor:
        """All samples; for the classes' part, those whose class is known."""
        known = super().loss_counts(batch)
        samples = torch.full_like(known, float(len(batch)))
        return torch.cat([samples, known, samples.expand(self.num_loss_parts - 2)])

    def parts_and_outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The distillation loss in training, otherwise the cross-entropy, in parts; and the student's logits."""
        hard, outputs = super().parts_and_outputs(batch)
        if not self.training:
            return torch.nn.functional.pad(hard, (1, self.num_loss_parts - 2)), outputs
        device = batch.images.device
        if next(self.teacher.parameters()).device != device:  # Here: searches take steps before training starts.
            self.teacher.to(device)
        taught = self.teacher(batch.images) if self._cache is None else self._cache(batch.images, self.teacher)
        alpha = self.hparams["alpha"]
        parts = [alpha * soft_targets(outputs, taught, self.hparams["temperature"]), (1 - alpha) * total(hard)]
        for own, layer in (self.hparams["features"] or {}).items():
            pair = attention_transfer(self._seen["student"].pop(own), self._seen["teacher"].pop(layer))
            parts.append(self.hparams["features_weight"] * pair)
        return torch.stack(parts), outputs

    def fetched_networks(self) -> dict[str, tuple[str, str]]:
        """The networks of VisionTask, and a teacher that is given by its network's name."""
        teacher = self.hparams["teacher"]
        own = {} if Path(teacher).exists() else {"teacher": (teacher, self.hparams["teacher_weights"])}
        return {**super().fetched_networks(), **own}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn it into a plain checkpoint of Classification that records the teacher's origin and hash."""
        super().on_save_checkpoint(checkpoint)
        own = parameters_of(Classification)
        kept = checkpoint["hyper_parameters"]
        checkpoint["hyper_parameters"] = {name: value for name, value in kept.items() if name in own}
        task = f"{Classification.__module__}.{Classification.__qualname__}"
        checkpoint["cnnlab"]["task"] = task
        if self._held:
            checkpoint["cnnlab"]["teacher"] = {"origin": self.teacher.origin, "sha256": self.teacher.sha256}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the teacher is the one of the resumed run.

        Raises:
            InputError: If the teacher's weights have changed.
        """
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["cnnlab"].get("teacher")
        if self._held and kept is not None and kept["sha256"] != self.teacher.sha256:
            raise InputError(
                f"model.teacher {self.hparams['teacher']} is not the teacher that the run began with "
                f"({kept['origin']}): its weights are others. Name that one, or begin a new run with --model.init_from"
            )


def _listen(network: nn.Module, name: str, seen: dict[str, Tensor]) -> None:
    """Register a hook that keeps the latest features of a layer."""

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise InputError(f"model.features: layer {name!r} gives no features (batch, channels, height, width)")
        seen[name] = output

    get_layer(network, name).register_forward_hook(keep)
