"""Images with their masks as data sets that are read a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.data.base import BatchDataset
from cnnlab.data.mask_values import MaskValues
from cnnlab.data.presets import MASK_DRAWS, Augmentation, InputSpec, Mask, nearest_resized, stretched
from cnnlab.data.samplers import Draw
from cnnlab.imaging import ImageError, LazyImage, read_mask
from cnnlab.random import uniform


class Pair(NamedTuple):
    """An image's file and that of its mask."""

    image: str
    mask: str | None
    """None where the truth is not known."""


def sizes_of(paths: Sequence[str]) -> set[tuple[int, int]]:
    """The heights and widths that images have.

    Raises:
        ImageError: If one cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        return set(pool.map(lambda path: LazyImage(path).size, paths))


class PairReader:
    """Opens images with their masks.

    Args:
        values: Which value of a mask is which class.
        ignore_index: What pixels without a class are.
        channels: 3 for colour, 1 for grey.
    """

    def __init__(self, values: MaskValues, ignore_index: int, channels: int) -> None:
        self.values = values
        self.ignore_index = ignore_index
        self.channels = channels

    def classes(self, path: str) -> Tensor:
        """The classes (H, W) int64 in a mask's file.

        Raises:
            ImageError: If it cannot be read, or if it has values of no class.
        """
        return torch.from_numpy(self.values.classes(read_mask(path), path))

    def __call__(self, pair: Pair) -> tuple[LazyImage, Tensor]:
        """The opened image, and its classes (H, W) int64; ignore_index everywhere where there is no mask.

        Raises:
            ImageError: If a file cannot be read, or if the two differ in size.
        """
        image = LazyImage(pair.image)
        if pair.mask is None:
            return image, torch.full(image.size, self.ignore_index)
        classes = self.classes(pair.mask)
        if tuple(classes.shape) != image.size:
            raise ImageError(
                f"{pair.image} has {image.size[0]} x {image.size[1]} pixels (height x width), its mask {pair.mask} "
                f"{classes.shape[0]} x {classes.shape[1]}: make them equal"
            )
        return image, classes


class MaskFiles(BatchDataset):
    """Images and masks for evaluation.

    Args:
        pairs: The files.
        reader: What opens them.
        size: Height and width that all are brought to; each one's own if None.
        interpolation: See imaging.INTERPOLATIONS.
    """

    def __init__(
        self, pairs: Sequence[Pair], reader: PairReader, size: tuple[int, int] | None, interpolation: str
    ) -> None:
        self.pairs = pairs
        self.paths = [pair.image for pair in pairs]
        self.reader = reader
        self.size = size
        self.interpolation = interpolation

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pairs)

    @cached_property
    def have_one_size(self) -> bool:
        """Whether all can stand in one batch."""
        return self.size is not None or len(sizes_of([pair.image for pair in self.pairs])) == 1

    def __getitems__(self, draws: list[int]) -> Batch:
        """The batch of these indices; its targets are (B, H, W) int64.

        Raises:
            ImageError: If a file cannot be read, or if a mask does not fit its image.
        """
        images, masks = zip(*(self._read(self.pairs[index]) for index in draws), strict=True)
        return Batch(torch.stack(images), torch.stack(masks), torch.tensor(draws), [self.paths[i] for i in draws])

    def _read(self, pair: Pair) -> tuple[Tensor, Tensor]:
        image, classes = self.reader(pair)
        size = self.size or image.size
        target = InputSpec(size, self.reader.channels, torch.zeros(0), 1.0, self.interpolation)
        return stretched(image, target), nearest_resized(classes, size)


class AugmentedMasks(BatchDataset):
    """Images and masks for training: each pair is augmented by (seed, epoch, index).

    Args:
        source: The files.
        augmentation: What happens to each.
        spec: What each is brought to.
        seed: The run's seed.
        native: See presets.Mask.
        rare: See presets.Mask.
    """

    def __init__(
        self,
        source: MaskFiles,
        augmentation: Augmentation,
        spec: InputSpec,
        seed: int,
        native: bool = False,
        rare: float = 0.0,
    ) -> None:
        self.source = source
        self.augmentation = augmentation
        self.spec = spec
        self.seed = seed
        self.native = native
        self.rare = rare

    def __len__(self) -> int:
        """The number of images."""
        return len(self.source)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        """The batch of these (epoch, index) pairs.

        Raises:
            ImageError: If a file cannot be read, or if a mask does not fit its image.
        """
        epochs, indices = np.array(draws, dtype=np.int64).T
        numbers = uniform(self.seed, epochs, indices, self.augmentation.draws + MASK_DRAWS)
        reader = self.source.reader
        made = []
        for index, drawn in zip(indices, numbers.tolist(), strict=True):
            image, classes = reader(self.source.pairs[index])
            mask = Mask(classes, reader.ignore_index, self.native, self.rare)
            made.append(self.augmentation.together(image, mask, self.spec, drawn))
        images, masks = zip(*made, strict=True)
        paths = [self.source.paths[index] for index in indices]
        return Batch(torch.stack(images), torch.stack(masks), torch.from_numpy(indices), paths)
