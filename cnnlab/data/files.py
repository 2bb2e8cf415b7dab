"""Image files as data sets that are read a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.data.base import BatchDataset
from cnnlab.data.listing import Sample
from cnnlab.data.mixing import Mixing
from cnnlab.data.presets import Augmentation, InputSpec, evaluated
from cnnlab.data.samplers import Draw
from cnnlab.imaging import ImageSource, LazyImage
from cnnlab.random import uniform

Opener = Callable[[str], ImageSource]


class FileImages(BatchDataset):
    """Image files for evaluation, resized and cropped.

    Args:
        samples: The files.
        targets: (N,) int64, or (N, K) float for multi-label data.
        spec: What an image is brought to.
        opener: What opens a file: LazyImage, or a cache.
    """

    def __init__(self, samples: Sequence[Sample], targets: Tensor, spec: InputSpec, opener: Opener = LazyImage) -> None:
        self.paths = [sample.path for sample in samples]
        self.targets = targets
        self.spec = spec
        self.opener = opener

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitems__(self, draws: list[int]) -> Batch:
        """The batch of these indices.

        Raises:
            ImageError: If a file cannot be read.
        """
        images = [evaluated(self.opener(self.paths[index]), self.spec) for index in draws]
        chosen = torch.tensor(draws)
        return Batch(torch.stack(images), self.targets[chosen], chosen, [self.paths[index] for index in draws])


class AugmentedFiles(BatchDataset):
    """Image files for training: each is augmented by (seed, epoch, index), then mixed with its neighbour.

    Args:
        source: The files.
        augmentation: What happens to each.
        seed: The run's seed.
        num_classes: The number of classes.
        mixing: What happens to pairs of them, if anything.
    """

    def __init__(
        self, source: FileImages, augmentation: Augmentation, seed: int, num_classes: int, mixing: Mixing | None = None
    ) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.num_classes = num_classes
        self.mixing = mixing

    def __len__(self) -> int:
        """The number of images."""
        return len(self.source)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        """The batch of these (epoch, index) pairs.

        Raises:
            ImageError: If a file cannot be read.
        """
        epochs, indices = np.array(draws, dtype=np.int64).T
        own = self.augmentation.draws
        numbers = uniform(self.seed, epochs, indices, own + (self.mixing.draws if self.mixing else 0))
        images = torch.stack(
            [
                self.augmentation(self.source.opener(self.source.paths[index]), self.source.spec, drawn)
                for index, drawn in zip(indices, numbers[:, :own].tolist(), strict=True)
            ]
        )
        chosen = torch.from_numpy(indices)
        targets = self.source.targets[chosen]
        if self.mixing is not None:
            images, targets = self.mixing(images, targets, numbers[:, own:], self.num_classes)
        return Batch(images, targets, chosen, [self.source.paths[index] for index in indices])
