"""MaskFolder: images with a mask each, from two folders or from a table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab.data.augmentation import InputSpec
from cnnlab.data.base import ClassesMixin
from cnnlab.data.file_data import FileDataModule, fill
from cnnlab.data.files import AugmentedFiles, FileDataset, read_sizes
from cnnlab.data.listing import Sample
from cnnlab.data.mask_files import MaskReader, MaskValues, Value, list_pair_table, list_pairs
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, ImageError, LazyImage, height_and_width, read_mask, resampling

_IGNORED_CLASS = 255
"""The target of ignored pixels, if their value in the masks is the number of a class."""
_MANY_PIXELS = 1 << 20


class MaskFolder(ClassesMixin, FileDataModule):
    """Images and the class of each of their pixels.

    They are in ROOT/images/SPLIT and ROOT/masks/SPLIT (train, val, test), or in ROOT/images and ROOT/masks, or in a
    table with the columns path and mask. A mask has its image's name, optionally followed by "_mask" or the like, and
    any file extension. Without split folders, a fixed split is made.

    With ``size`` all images are resized to one size; training resizes random crops of a share of the image. Without it,
    images keep their resolution: training takes crops of ``crop`` pixels, and evaluation takes whole images (one by one
    if they differ in size; see the task's ``window`` for large ones).

    Args:
        root: The folder; paths in a table are relative to it.
        class_names: The classes in the order of their values; the values that the masks have if None.
        mask_values: The value of each class in the masks: numbers (also palette indices), or colors
            [red, green, blue]; 0, 1, 2, ... if None (without class_names, ignore_index is skipped). For binary masks
            of 0 and 255, set it to [0, 255] and ignore_index to null.
        ignore_index: The value of pixels that loss and metrics ignore; None if there are none.
        size: Height and width that all images are resized to (or both in one number), whatever their aspect ratio.
        crop: Height and width of training crops (or both in one number) without ``size``. If None, the size of the
            images, which must all be equal. Crops of smaller images are enlarged to it.
        interpolation: See imaging.INTERPOLATIONS, for images; masks use nearest-neighbor sampling.
        rare_crops: The probability that a training crop is moved to a pixel of a randomly drawn class. All classes in
            the image are equally likely, so rare ones are seen more often. Only for cnnlab's own crops.
        batch_size: Samples per process and step, 1 or greater.
        **kwargs: See FileDataModule.

    Raises:
        InputError: If there are no images, if one has no mask, or if an argument is out of range.
    """

    kind: ClassVar[str | None] = "masks"
    PROVIDES: ClassVar[tuple[str, ...]] = (*ClassesMixin.PROVIDES, "ignore_index")
    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", "mask_values")
    ANNOTATIONS_MOVE: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        class_names: Sequence[str] | None = None,
        mask_values: Sequence[int | Sequence[int]] | None = None,
        ignore_index: int | Sequence[int] | None = 255,
        size: int | Sequence[int] | None = None,
        crop: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
        rare_crops: float = 0.0,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, **kwargs)
        augment = self.hparams["augment"]
        if not 0 <= rare_crops <= 1:
            raise InputError(f"data.rare_crops is {rare_crops}, expected 0 to 1")
        if size is not None and crop is not None:
            raise InputError("data.size and data.crop exclude each other: all images at one size, or crops as they are")
        if rare_crops and (augment == "albumentations" or (augment == "none" and size is not None)):
            raise InputError(
                f"data.rare_crops moves crops, and data.augment {augment} takes none of cnnlab's: choose light, "
                "standard or strong, or leave it out"
            )
        resampling(interpolation)
        self._size, self._crop = height_and_width("data.size", size), height_and_width("data.crop", crop)
        values = self._values(class_names, mask_values, ignore_index)
        self.class_names = list(class_names) if class_names is not None else [_name(value) for value in values]
        self.hparams["class_names"], self.hparams["mask_values"] = self.class_names, values
        self.ignore_index = max(_IGNORED_CLASS, self.num_classes)
        """The target of ignored pixels: their value in the masks, unless that is the number of a class."""
        if isinstance(ignore_index, int) and not 0 <= ignore_index < self.num_classes:
            self.ignore_index = ignore_index
        self._mask_values = MaskValues(values, ignore_index, self.ignore_index)

    def _values(
        self,
        class_names: Sequence[str] | None,
        mask_values: Sequence[int | Sequence[int]] | None,
        ignored: int | Sequence[int] | None,
    ) -> list[Value]:
        """The value of each class in the masks."""
        if mask_values is None and class_names is None:
            return self._found_values(ignored)
        if mask_values is None:
            numbers = list(range(len(class_names or ())))
            if ignored in numbers:
                raise InputError(
                    f"data.ignore_index is {ignored}, and would be the value of one of the {len(numbers)} classes: say "
                    f"which values they have, such as --data.mask_values '{_numbers(len(numbers), ignored)}'"
                )
            return [*numbers]
        if class_names is not None and len(class_names) != len(mask_values):
            raise InputError(
                f"data.class_names are {len(class_names)} and data.mask_values {len(mask_values)}: one for each class"
            )
        return list(mask_values)

    def _found_values(self, ignored: int | Sequence[int] | None) -> list[Value]:
        """The values of the masks, which must be 0, 1, 2, ... without the ignored one.

        Raises:
            InputError: If there are other values, which may be mistakes or classes that are missing from the images.
        """
        # With on_error skip, unreadable masks are reported later, with all other broken files.
        skip = self.hparams["on_error"] == "skip"
        masks = [sample.mask for sample in self.samples]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(partial(_values_in, skip=skip), masks))
        example = {value: mask for values, mask in zip(found, masks, strict=True) for value in values}
        values = sorted(value for value in example if value != ignored)
        if set(values) <= {0}:
            raise InputError(
                f"the masks have nothing but 0 and the ignored {ignored}: for binary masks of 0 and {ignored} say "
                f"--data.mask_values '[0, {ignored}]' --data.ignore_index null"
            )
        expected = _numbers(len(values), ignored)
        if values != expected:
            strange = next(value for value, number in zip(values, expected, strict=True) if value != number)
            shown = ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
            raise InputError(
                f"the masks have the values {shown} (such as {strange} in {example[strange]}), expected 0, 1, 2, ... "
                "without gaps: say which value is which class, --data.mask_values '[0, ...]', or name all classes if "
                "some are in no image, --data.class_names '[background, ...]'"
            )
        return [*values]

    def list_samples(self) -> list[Sample]:
        """All images, each with its mask."""
        return list_pair_table(self.csv, self.root) if self.csv is not None else list_pairs(self.root)

    def read_annotations(self, samples: Sequence[Sample]) -> MaskReader:
        """The reader of the masks."""
        masks = [sample.mask for sample in samples]
        return MaskReader(masks, self._mask_values, self.ignore_index, self.hparams["rare_crops"])

    def try_reading(self, sample: Sample) -> None:
        """Read an image and its mask.

        Raises:
            ImageError: If one cannot be read, if they differ in size, or if the mask has a value without a class.
        """
        image = LazyImage(sample.path)
        self.read_annotations([sample])(0, image)
        image.read(self.channels)

    def input_spec(self) -> InputSpec:
        """The input of the network in training."""
        mean = self.mean if self.preprocessing is None else self.preprocessing.mean
        size = self._size or self._crop or self._common_size
        if size is None:
            raise InputError(
                f"the images in {self.root} differ in size: say data.size, to bring all to one, or data.crop, to train "
                "on parts of them"
            )
        interpolation, native = self.hparams["interpolation"], self._size is None
        return InputSpec(size, self.channels, fill(mean), 1.0, interpolation, stretch=True, native=native)

    def eval_transform(self) -> EvalTransform:
        """The transform of a whole image, to ``size`` or at its own size."""
        return EvalTransform(self.channels, self._size, interpolation=self.hparams["interpolation"], stretch=True)

    @cached_property
    def _common_size(self) -> tuple[int, int] | None:
        """The size of all images, None if they differ."""
        sizes = read_sizes([sample.path for sample in self.listing.samples])
        return sizes.pop() if len(sizes) == 1 else None

    def create_train_set(self, source: FileDataset) -> AugmentedFiles:
        """The training images, augmented with their masks."""
        train_set = super().create_train_set(source)
        height, width = train_set.spec.size
        if self._size is None and self._crop is None and math.prod((height, width)) > _MANY_PIXELS:
            rank_zero_warn(
                f"training takes whole images of {height} x {width} pixels, which needs much memory: say data.crop "
                "for parts of them, or data.size for a smaller size"
            )
        return train_set

    def class_shares(self) -> Tensor:
        """(K,) each class's share of the training pixels that are not ignored, for class weights."""
        samples = self.listing.of["train"]
        reader = self.read_annotations(samples)
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for path in reader.paths:
            classes = reader.read(path)
            counts += torch.bincount(classes[classes != self.ignore_index], minlength=self.num_classes)
        return counts / counts.sum().clamp(min=1)

    def split_remedy(self, split: str) -> str:
        """Folders, or a table."""
        return (
            f"make the folders {self.root / 'images' / split} and {self.root / 'masks' / split}, or a table with a "
            "column split"
        )

    def describe_training(self) -> str:
        """Each class's share of the training pixels."""
        shares = zip(self.class_names, self.class_shares().tolist(), strict=True)
        return "training pixels by class: " + ", ".join(f"{name} {share:.2%}" for name, share in shares)

    def manifest_row(self, sample: Sample) -> dict[str, str]:
        """Path, split, group, bytes, sha256, mask."""
        return {**super().manifest_row(sample), "mask": os.path.relpath(sample.mask, self.root)}


def _numbers(count: int, ignored: int | Sequence[int] | None) -> list[Value]:
    """0, 1, 2, ... without the ignored value."""
    numbers: list[Value] = [number for number in range(count + 1) if number != ignored]
    return numbers[:count]


def _name(value: Value) -> str:
    return str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)


def _values_in(path: str, skip: bool) -> set[int]:
    """The values of a mask; none if it cannot be read and ``skip`` is true.

    Raises:
        InputError: If they are colors.
        ImageError: If it cannot be read and ``skip`` is false.
    """
    try:
        mask = read_mask(path)
    except ImageError:
        if skip:
            return set()
        raise
    if mask.ndim == 3:
        raise InputError(f"{path}: the mask has colors: say in data.mask_values which color is which class")
    return set(np.unique(mask).tolist())
