"""Data sets that fit in memory: uint8 tensors, indexed and augmented in whole batches."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.data.base import BatchDataset, ClassesMixin, VisionDataModule
from cnnlab.data.samplers import Draw
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.random import permutation, uniform


@dataclass(frozen=True)
class RandomAffine:
    """Rotate, shift and scale each image of a batch by its own random amounts, in one warp; the caller draws them.

    Pixels from outside the image are 0 (black); interpolation is bilinear.

    Args:
        degrees: Maximum rotation to either side, in degrees.
        translate: Maximum shift, as a share of height and width, 0..1.
        scale: Maximum change of size: 0.1 draws factors from 0.9 to 1.1.

    Raises:
        InputError: If an amount is negative, or if scale is not below 1.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0

    draws = 4
    """The number of uniform random numbers that an image needs."""

    def __post_init__(self) -> None:
        for name, limit in (("degrees", 181.0), ("translate", 1.0), ("scale", 1.0)):
            value = getattr(self, name)
            if not 0 <= value < limit:
                raise InputError(f"{name} is {value}, expected a number from 0 up to (not including) {limit:g}")

    @property
    def is_identity(self) -> bool:
        """Whether all amounts are 0, so that images do not change."""
        return not (self.degrees or self.translate or self.scale)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Warp images (B, C, H, W), uint8 0..255, by draws (B, 4), uniform in [0, 1); shape and dtype stay."""
        centered = draws.to(torch.float32) * 2 - 1
        angle = centered[:, 0] * math.radians(self.degrees)
        factor = 1 + centered[:, 1] * self.scale
        shift = centered[:, 2:4] * 2 * self.translate
        height, width = images.shape[-2:]
        cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
        # affine_grid maps output to input positions in -1..1, so the rotation of an image that is not square needs its
        # aspect ratio.
        theta = torch.stack(
            [
                torch.stack([cos, -sin * height / width, shift[:, 0]], dim=1),
                torch.stack([sin * width / height, cos, shift[:, 1]], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        warped = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", align_corners=False)
        return warped.round_().to(torch.uint8)


class TensorImages(BatchDataset):
    """Images and targets in memory, for evaluation.

    Args:
        images: (N, C, H, W), uint8.
        targets: (N,), int64, in 0..num_classes-1.
        num_classes: The number of classes.

    Raises:
        InputError: If there are no images, if the numbers of images and targets differ, or if a target is out of range.
    """

    def __init__(self, images: Tensor, targets: Tensor, num_classes: int) -> None:
        if len(images) == 0 or len(images) != len(targets):
            raise InputError(f"there are {len(images)} images and {len(targets)} labels, expected as many, and not 0")
        outside = ((targets < 0) | (targets >= num_classes)).nonzero().flatten()
        if len(outside):
            where = int(outside[0])
            raise InputError(
                f"label {int(targets[where])} of image {where} is out of range: there are {num_classes} classes, "
                f"so labels go from 0 to {num_classes - 1} ({len(outside)} of {len(targets)} labels are outside)"
            )
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: list[int]) -> Batch:
        chosen = torch.tensor(draws)
        return Batch(self.images[chosen], self.targets[chosen], chosen, [""] * len(chosen))


@dataclass(eq=False)
class AugmentedImages(BatchDataset):
    """Images and targets in memory, for training: each image is warped by (seed, epoch, index)."""

    source: TensorImages
    augment: RandomAffine
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        epochs, indices, _ = np.array(draws, dtype=np.int64).T
        batch = self.source.__getitems__(indices.tolist())
        if self.augment.is_identity:
            return batch
        numbers = torch.from_numpy(uniform(self.seed, epochs, indices, self.augment.draws))
        return batch.replace(images=self.augment(batch.images, numbers))


class InMemoryDataModule(ClassesMixin, VisionDataModule):
    """A VisionDataModule whose images fit in memory.

    A subclass returns the training and the test images in load(). A stratified share of the training images is used
    for validation. Test images are never trained on.

    Args:
        val_size: Number of training images used for validation.
        split_seed: Decides which; independent of the run's seed, so that runs with different seeds are comparable.
        degrees: Maximum rotation of a training image, in degrees.
        translate: Maximum shift of a training image, as a share of its sides.
        scale: Maximum change of size of a training image: 0.1 draws factors from 0.9 to 1.1.
        **kwargs: See VisionDataModule.
    """

    kind: ClassVar[str | None] = "labels"
    train_set: AugmentedImages
    val_set: TensorImages
    test_set: TensorImages

    def __init__(
        self,
        val_size: int,
        split_seed: int = 0,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.val_size = val_size
        self.split_seed = split_seed
        self.augment = RandomAffine(degrees, translate, scale)

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) uint8 and targets (N,) int64 of the training or the test set."""

    def eval_transform(self) -> EvalTransform:
        """The transform to the size of the data set's images."""
        self.setup("validate")
        assert isinstance(self.val_set, TensorImages)
        height, width = self.val_set.images.shape[2:]
        return EvalTransform(self.channels, (height, width))

    def describe_measured(self, stage: str) -> str:
        """What validate, test or predict has measured: "10,000 of 10,000 images of split test of MNIST"."""
        split, images = ("val", self.val_set) if stage == "validate" else ("test", self.test_set)
        return f"{len(images):,} of {len(images):,} images of split {split} of {type(self).__name__}"

    def setup(self, stage: str) -> None:
        """Load the data of a stage ("fit", "validate", "test" or "predict"), once."""
        if stage in ("fit", "validate") and not hasattr(self, "train_set"):
            images, targets = self.load(train=True)
            check_part("val_size", self.val_size, len(targets))
            held_out = stratified_choice(targets.numpy(), self.val_size, self.split_seed)
            rest = np.setdiff1d(np.arange(len(targets)), held_out)
            self.val_set = TensorImages(images[held_out], targets[held_out], self.num_classes)
            train = TensorImages(images[rest], targets[rest], self.num_classes)
            self.train_set = AugmentedImages(train, self.augment, self.seed)
        if stage in ("test", "predict") and not hasattr(self, "test_set"):
            self.test_set = self.predict_set = TensorImages(*self.load(train=False), self.num_classes)


def check_part(name: str, size: int, whole: int) -> None:
    """Raise InputError unless the part and the rest both have images."""
    if not 0 < size < whole:
        raise InputError(f"data.{name} is {size}, expected from 1 to {whole - 1}: there are {whole} images to divide")


def stratified_choice(targets: npt.NDArray[np.int64], size: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose samples so that each class keeps its share.

    Args:
        targets: (N,) each sample's class.
        size: How many to choose, 0..N.
        seed: Decides which.

    Returns:
        (size,) indices, in ascending order; all of them if size is greater than N.

    >>> stratified_choice(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0).shape
    (3,)
    """
    shuffled = permutation(seed, 0, len(targets))
    # Spread each class evenly over 0..1, then cut: each prefix of this order contains each class's share.
    place = np.empty(len(targets))
    for value in np.unique(targets):
        members = shuffled[targets[shuffled] == value]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = np.argsort(place, kind="stable")[:size]
    return np.sort(chosen)
