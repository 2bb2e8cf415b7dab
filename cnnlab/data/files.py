"""Data sets of image files, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.data.annotations import Annotation, FixedTarget
from cnnlab.data.augmentation import Augmentation, InputSpec, as_tensor
from cnnlab.data.base import BatchDataset
from cnnlab.data.contents import ContentNotes
from cnnlab.data.mixing import Mixing
from cnnlab.data.samplers import Draw
from cnnlab.imaging import EvalTransform, ImageError, ImageSource, LazyImage, preprocess
from cnnlab.random import uniform

Opener = Callable[[str], ImageSource]


class AnnotationReader(Protocol):
    """Reads the annotation of each image; it is sent to the worker processes."""

    @property
    def draws(self) -> int:
        """See Annotation.draws."""

    def __call__(self, index: int, image: ImageSource) -> Annotation:
        """The annotation of an opened image, by its index in the data set.

        Raises:
            ImageError: If it cannot be read, or does not match the image.
        """


@dataclass(eq=False)
class FixedTargets:
    """Labels or values, in memory."""

    targets: Tensor
    """(N,) int64, or (N, K) float."""
    draws = 0

    def __call__(self, index: int, image: ImageSource) -> FixedTarget:
        """The target of an image."""
        return FixedTarget(self.targets[index])


@dataclass(eq=False)
class FileDataset(BatchDataset):
    """Image files for evaluation and prediction.

    Raises:
        ImageError: In reading a batch, if a file cannot be read, or if an annotation does not match its image.
    """

    paths: Sequence[str] = field()  # Without field() it would have BatchDataset's default.
    annotations: AnnotationReader
    """Reads the annotation of each image."""
    transform: EvalTransform
    opener: Opener = LazyImage
    """Opens a file: LazyImage, or a cache."""
    hashes: ContentNotes | None = None
    """Take the hash of each file's content as it is read."""
    skip: bool = False
    """Leave out files that can no longer be read, instead of raising."""

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def has_one_size(self) -> bool:
        """Whether all images fit in one batch; reads their headers if the transform keeps their sizes."""
        return self.transform.size is not None or len(read_sizes(self.paths)) == 1

    def __getitems__(self, draws: list[int]) -> Batch:
        return self.stack(draws, map(self._sample, draws))

    def _sample(self, index: int) -> tuple[Tensor, Annotation]:
        image, annotation = self.open(index)
        pixels = as_tensor(preprocess(image, self.transform))
        return pixels, annotation.resize(self.transform.place(image.size).covers)

    def open(self, index: int) -> tuple[ImageSource, Annotation]:
        """An opened image and its annotation."""
        image = self.opener(self.paths[index])
        if self.hashes is not None and isinstance(image, LazyImage) and not self.hashes.note(index, image.content):
            raise ImageError(
                f"{self.paths[index]}: is another file than the one that this training has read before: put that back, "
                "or begin a new run; --data.on_error skip leaves it out"
            )
        return image, self.annotations(index, image)

    def stack(self, indices: Sequence[int], samples: Iterable[tuple[Tensor, Annotation]]) -> Batch:
        """The batch of these images (C, H, W) and their annotations, which are read one by one.

        Raises:
            ImageError: If an image cannot be read, and none of the others can be or ``skip`` is false.
        """
        read, kept, reader = [], [], iter(samples)
        for index in indices:
            try:
                read.append(next(reader))
            except ImageError as error:
                if not self.skip or (index == indices[-1] and not read):
                    raise
                rank_zero_warn(f"left out: {error}")
            else:
                kept.append(index)
        images, annotations = zip(*read, strict=True)
        targets = type(annotations[0]).stack(annotations)
        return Batch(torch.stack(images), targets, torch.tensor(kept), [self.paths[index] for index in kept])


@dataclass(eq=False)
class AugmentedFiles(BatchDataset):
    """Image files for training: each is augmented by (seed, epoch, index), then mixed with its neighbor.

    Raises:
        ImageError: See FileDataset.
    """

    source: FileDataset
    """The same files without augmentation."""
    augmentation: Augmentation
    spec: InputSpec
    """The network's input."""
    seed: int
    """The run's seed."""
    mixing: Mixing | None = None
    """Mixes pairs of images that have classes."""
    num_classes: int = 0
    """The number of classes, for mixing."""

    def __post_init__(self) -> None:
        self.paths = self.source.paths

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        epochs, indices, _ = np.array(draws, dtype=np.int64).T
        own = self.draws
        numbers = uniform(self.seed, epochs, indices, own + (self.mixing.draws if self.mixing else 0))
        batch = self.source.stack(
            indices.tolist(), map(self.create_sample, indices.tolist(), numbers[:, :own].tolist())
        )
        if self.mixing is None:
            return batch
        numbers = numbers[np.isin(indices, batch.indices.numpy())]
        images, targets = self.mixing(batch.images, batch.targets, numbers[:, own:], self.num_classes)
        return batch.replace(images=images, targets=targets)

    @property
    def draws(self) -> int:
        """How many random numbers create_sample() needs."""
        return self.augmentation.draws + self.source.annotations.draws

    def create_sample(self, index: int, numbers: Sequence[float]) -> tuple[Tensor, Any]:
        """One training sample: an augmented image (C, H, W) uint8 and its annotation.

        The numbers are uniform in [0, 1), as many as ``draws``.
        """
        image, annotation = self.source.open(index)
        return self.augmentation(image, annotation, self.spec, numbers)


def read_sizes(paths: Sequence[str]) -> set[tuple[int, int]]:
    """The distinct (height, width) of the images.

    Raises:
        ImageError: If one cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        return set(pool.map(lambda path: LazyImage(path).size, paths))
