"""The teacher of a distillation: its source, and its logits for a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.checkpoint import read_header
from cnnlab.errors import InputError
from cnnlab.models.factory import create_classifier, preprocessing
from cnnlab.models.standardize import Standardize
from cnnlab.run import find
from cnnlab.tasks.base import load_task
from cnnlab.tasks.classes import ClassTask


class Teacher(nn.Module):
    """A trained classifier with its own standardization and image size, frozen and in eval mode.

    Args:
        standardize: Pixels to the network's input.
        network: Standardized images to logits.
        size: Height and width of its training images; images are not resized if None.
        origin: A readable description of its source.
        sha256: The hash of its weights.
    """

    def __init__(
        self, standardize: nn.Module, network: nn.Module, size: tuple[int, int] | None, origin: str, sha256: str
    ) -> None:
        super().__init__()
        self.standardize = standardize
        self.network = network
        self.size = size
        self.origin = origin
        self.sha256 = sha256
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 0..255 or float 0..1, of any size, to logits (B, K)."""
        if self.size is not None and images.shape[2:] != self.size:
            # Floats in 0..1, since uint8 cannot be interpolated.
            levels = images if images.is_floating_point() else images.float() / 255
            images = F.interpolate(levels, self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(self.standardize(images))
        return logits


def find_teacher(
    name: str,
    task: ClassTask,
    weights: str = "pretrained",
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Teacher:
    """Find the teacher of a task, the student.

    Both must have the same classes in the same order, and the same number of channels. The classes of a network by its
    name are those of ImageNet, unless class_names says others.

    Args:
        name: A run's folder, a checkpoint, or the name of a network: see Distillation.
        task: The student.
        weights: The weights of a network by its name.
        size: Height and width of the teacher's input; those of its training if None.
        class_names: The classes of a network by its name, in order.

    Raises:
        InputError: If there is no such teacher, or if its classes or channels differ from the student's.
    """
    channels = int(task.hparams["channels"])
    if not Path(name).exists():
        try:
            known = preprocessing(name, channels)
        except InputError as error:
            raise InputError(
                f"model.teacher {name}: there is no such run or checkpoint; as a network: {error}"
            ) from error
        if known is None:
            raise InputError(f"model.teacher {name} is a network without weights: give a run's folder or a checkpoint")
        _check_names(name, task, class_names)
        network = create_classifier(name, task.num_classes, channels, weights)
        return Teacher(Standardize(known.mean, known.std), network, size or known.size, name, _hash(network))
    checkpoint = find(name)[1]
    own = load_task(checkpoint)
    if not isinstance(own, ClassTask) or own.kind != "labels" or own.hparams.get("multi_label"):
        raise InputError(f"model.teacher {name} is no classifier of one class an image, and can teach no other")
    _check_classes(name, own, task)
    if own.hparams["channels"] != channels:
        raise InputError(f"model.teacher {name} takes images of {own.hparams['channels']} channels, not {channels}")
    if size is None:
        # None if its data have no fixed size.
        trained = read_header(checkpoint).get("datamodule_hyper_parameters", {}).get("size")
        size = (int(trained[0]), int(trained[1])) if isinstance(trained, (list, tuple)) else None
    return Teacher(own.standardize, own.network, size, str(checkpoint), _hash(own.network))


def _check_names(name: str, student: ClassTask, class_names: Sequence[str] | None) -> None:
    """Check the classes of a teacher that is a network by its name: they cannot be found out from its weights."""
    own = list(student.class_names)
    if class_names is not None:
        if list(class_names) != own:
            raise InputError(
                f"model.teacher_class_names are {_some(class_names)}, and the data have {_some(own)}: a teacher must "
                "have learned the same classes, in the same order"
            )
    elif own not in _imagenet_names():
        raise InputError(
            f"model.teacher {name} is a network by its name, whose classes are ImageNet's, and the data have "
            f"{len(own):,} of their own ({_some(own)}): fine-tune it on them and name that run, or, if its "
            "weights are of these classes, say so with model.teacher_class_names"
        )


def _imagenet_names() -> list[list[str]]:
    """The 1,000 classes of ImageNet in order, by their common forms: WordNet's ids, and names."""
    from timm.data import ImageNetInfo
    from torchvision.models import get_model_weights

    known: Any = ImageNetInfo()
    words = [known.index_to_description(i) for i in range(1000)]
    return [
        known.label_names(),
        words,
        [text.partition(",")[0] for text in words],
        get_model_weights("resnet18")["DEFAULT"].meta["categories"],
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _check_classes(name: str, teacher: ClassTask, student: ClassTask) -> None:
    if teacher.class_names == student.class_names:
        return
    both = [", ".join(task.class_names[:5]) + (", ..." if task.num_classes > 5 else "") for task in (teacher, student)]
    if sorted(teacher.class_names) == sorted(student.class_names):
        raise InputError(
            f"model.teacher {name} has the same classes in another order ({both[0]}; the data: {both[1]}): "
            "set data.class_names to the teacher's"
        )
    raise InputError(
        f"model.teacher {name} tells {teacher.num_classes} classes apart ({both[0]}), and the data have "
        f"{student.num_classes} ({both[1]}): a teacher must have learned the same classes"
    )


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        # Bytes, since NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LogitsCache:
    """A cache of the teacher's logits by the images' pixels, for data without augmentation."""

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The logits (B, K) of images; computed only for new images."""
        pixels = images.contiguous().cpu().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            # Copies: a view would keep the logits of the whole batch in memory.
            self._known |= {keys[i]: row.clone() for i, row in zip(new, compute(images[new]), strict=True)}
        return torch.stack([self._known[key] for key in keys])
