"""MaskFolder: images with a mask each, from two folders or from a table."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab.data.augmentation import InputSpec
from cnnlab.data.base import ClassesMixin
from cnnlab.data.drawn_masks import DrawnListing, list_drawn
from cnnlab.data.file_data import FileDataModule, fill
from cnnlab.data.files import AugmentedFiles, FileDataset, read_sizes
from cnnlab.data.mask_files import list_pair_table, list_pairs
from cnnlab.data.mask_survey import (
    MaskSurvey,
    check_meanings,
    count_classes,
    find_values,
    numbers_without,
    survey_masks,
)
from cnnlab.data.mask_values import NO_VALUE, MaskOpener, MaskReader, MaskValues, Value, as_groups, read_mask
from cnnlab.data.samples import Sample, SampleTable
from cnnlab.errors import InputError
from cnnlab.image_files import ImageError, check_name, listed
from cnnlab.imaging import EvalTransform, Preprocessing, height_and_width, resampling

_IGNORED_CLASS = NO_VALUE
"""The target of ignored pixels, if their value in the masks is the number of a class."""
_MANY_PIXELS = 1 << 20


class MaskFolder(ClassesMixin, FileDataModule):
    """Images and the class of each of their pixels.

    They are in ROOT/images/SPLIT and ROOT/masks/SPLIT (train, val, test), in ROOT/SPLIT/images and ROOT/SPLIT/masks
    (or labels), beside each other as NAME and NAME_mask, or in a table with the columns path and mask. A mask has its
    image's name, optionally followed by "_mask" or the like, and any file extension. Without split folders, a fixed
    split is made. An image without a mask, and a mask without an image, is an error; with ``on_error`` skip, it is
    named and left out.

    Without masks, they are drawn from the outlines of the objects in COCO files (ROOT/SPLIT.json, or
    ROOT/annotations/instances_SPLIT.json): background is class 0, then come the categories; where objects overlap, the
    smaller one counts, and a crowd counts as its class. ``class_names`` chooses categories, after the background.

    With ``size`` all images are resized to one size; training resizes random crops of a share of the image. Without it,
    images keep their resolution: training takes crops of ``crop`` pixels, and evaluation takes whole images (one by one
    if they differ in size; see the task's ``window`` for large ones).

    Args:
        root: The folder; paths in a table are relative to it.
        class_names: The classes in the order of their values; the values that the masks have if None.
        mask_values: The value of each class in the masks: a number (also a palette's), a color [red, green, blue]
            (also a palette's), or a list of several: [0, [1, 2]] makes one class of 1 and 2, and
            [[0, 0, 0], [[255, 0, 0], [0, 255, 0]]] one of red and green. 0, 1, 2, ... if None (without class_names,
            ignore_index is skipped). For binary masks of 0 and 255, set it to [0, 255] and ignore_index to null. In
            masks whose format changes values, such as JPEG, a pixel gets the nearest of these values.
        ignore_index: The value of pixels that loss and metrics ignore, or a list of several: numbers, or colors if
            mask_values are colors; None if there are none. The number 255 stands for none beside colors.
        size: Height and width that all images are resized to (or both in one number), whatever their aspect ratio. That
            of the run in ``model.init_from`` if neither this nor ``crop`` is given.
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
    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", "mask_values", "size", *FileDataModule.RESOLVED)
    ANNOTATIONS: ClassVar[Literal["fixed", "masks", "boxes"]] = "masks"

    def __init__(
        self,
        root: str,
        class_names: Sequence[str] | None = None,
        mask_values: Sequence[int | Sequence[int | Sequence[int]]] | None = None,
        ignore_index: int | Sequence[int | Sequence[int]] | None = NO_VALUE,
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
        self._layout = ""
        self._asked_names = class_names
        if self._drawn is not None:
            class_names = self._drawn.class_names
            if mask_values is not None and list(mask_values) != list(range(len(class_names))):
                raise InputError(f"data.mask_values are for masks in files, and {self._layout}: leave them out")
        self._values_are_given = mask_values is not None
        if mask_values is not None and not mask_values:
            raise InputError("data.mask_values is empty: give the value of each class")
        self._colored, _, self._ignored = as_groups(mask_values or (), ignore_index)
        values = self._values(class_names, mask_values)
        _, groups, _ = as_groups(values, ignore_index)
        found_names = [f"#{group[0]:06x}" if self._colored else str(group[0]) for group in groups]
        self.class_names = list(class_names) if class_names is not None else found_names
        for name in self.class_names:
            check_name(name)
        self.hparams["class_names"], self.hparams["mask_values"] = self.class_names, values
        self.ignore_index = max(_IGNORED_CLASS, self.num_classes)
        """The target of ignored pixels: their value in the masks, unless that is the number of a class."""
        if isinstance(ignore_index, int) and not 0 <= ignore_index < self.num_classes:
            self.ignore_index = ignore_index
        self._mask_values = MaskValues(values, ignore_index, self.ignore_index)

    @cached_property
    def _drawn(self) -> DrawnListing | None:
        """What is known of masks that are drawn; None if masks are files."""
        found = None if self.csv is not None else list_drawn(self.root, self._asked_names, self.hparams["on_error"])
        self._layout = found.index.layout if found is not None else ""
        return found

    def _values(self, class_names: Sequence[str] | None, mask_values: Sequence[Value] | None) -> list[Value]:
        """The value of each class in the masks."""
        if mask_values is None and class_names is None:
            return find_values(self._survey, self._ignored)
        if mask_values is None:
            numbers = list(range(len(class_names or ())))
            if mistaken := sorted(set(self._ignored) & set(numbers)):
                wanted = numbers_without(self._ignored, len(numbers))
                raise InputError(
                    f"data.ignore_index is {mistaken[0]}, and would be the value of one of the {len(numbers)} classes: "
                    f"say which values they have, such as --data.mask_values '{wanted}'"
                )
            return [*numbers]
        if class_names is not None and len(class_names) != len(mask_values):
            raise InputError(
                f"data.class_names are {len(class_names)} and data.mask_values {len(mask_values)}: one for each class"
            )
        return list(mask_values)

    @cached_property
    def _survey(self) -> MaskSurvey:
        """The values in all masks.

        Raises:
            ImageError: If one cannot be read; with on_error skip, it is reported later, with all other broken files.
        """
        found = survey_masks([s.mask for s in self.samples if s.mask], self._colored, self._mask_opener)
        if found.broken and self.hparams["on_error"] == "raise":
            raise ImageError(next(iter(found.broken.values())))
        return found

    def inspect_training(self) -> None:
        """Check that each value means the same in all masks, and that each class has training pixels.

        Raises:
            InputError: See mask_survey.check_meanings.
            ImageError: If a mask has a value without a class, or cannot be read; not with on_error skip.
        """
        super().inspect_training()
        used = self._survey.only([sample.mask for sample in self.listing.samples])
        if not self._values_are_given:
            check_meanings(used, self._ignored)
        if changed := sum(mask.lossy for mask in used.of.values()):
            rank_zero_warn(
                f"{changed:,} masks are of a format that changes values, such as JPEG: each pixel gets the nearest of "
                f"data.mask_values {self.hparams['mask_values']}"
            )
        self._count(self.listing.samples)  # Of validation and test too, so that a mistake is known before training.
        counts, _ = self._count(self.listing.of["train"])
        absent = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if absent:
            rank_zero_warn(f"{len(absent)} of {self.num_classes} classes have no training pixels: {listed(absent)}")

    def _count(self, samples: Sequence[Sample]) -> tuple[Tensor, int]:
        """(K,) the pixels of each class, and the number of ignored ones."""
        paths = [sample.mask for sample in samples]
        counts, ignored = count_classes(self._survey, paths, self._mask_values, self.num_classes)
        return torch.from_numpy(counts), ignored

    def list_samples(self) -> Sequence[Sample]:
        """All images, each with its mask."""
        skip = self.hparams["on_error"] == "skip"
        if self._drawn is not None:
            listing = self._drawn.index
        else:
            listing = list_pairs(self.root, skip) if self.csv is None else list_pair_table(self.csv, self.root, skip)
        for note in listing.notes:
            rank_zero_warn(note)
        self._layout = listing.layout
        return listing.samples

    def describe_targets(self) -> str:
        """The number of classes and their names, and how the files lie, where several ways are possible."""
        return "; ".join(filter(None, (super().describe_targets(), self._layout)))

    def read_annotations(self, samples: SampleTable) -> MaskReader:
        """The reader of the masks."""
        masks = list(samples.masks or [""] * len(samples))
        rare = self.hparams["rare_crops"]
        return MaskReader(masks, self._mask_values, self.ignore_index, rare, self._mask_opener)

    @property
    def _mask_opener(self) -> MaskOpener:
        return read_mask if self._drawn is None else self._drawn.masks

    def try_reading(self, sample: Sample) -> None:
        """Read an image and its mask.

        Raises:
            ImageError: If one cannot be read, if they differ in size, or if the mask has a value without a class.
        """
        if sample.split and not sample.mask:
            raise ImageError(f"{sample.path}: has no mask")
        image = self.open_image(sample.path)
        self.read_annotations(SampleTable.of([sample]))(0, image)
        image.read(self.channels)

    def adopt(self, preprocessing: Preprocessing | None) -> None:
        """Adopt the mean of a pretrained network; and the size of another run on masks, if no size or crop is given."""
        super().adopt(preprocessing)
        if preprocessing is not None and preprocessing.whole and self._crop is None and self._size is None:
            self._size = preprocessing.size
            self.hparams["size"] = list(preprocessing.size)

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
        interpolation = self.hparams["interpolation"]
        return self.with_tones(EvalTransform(self.channels, self._size, interpolation=interpolation, stretch=True))

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
        counts, _ = self._count(self.listing.of["train"])
        return counts / counts.sum().clamp(min=1)

    def split_remedy(self, split: str) -> str:
        """Folders, or a table."""
        return (
            f"make the folders {self.root / 'images' / split} and {self.root / 'masks' / split}, or a table with a "
            "column split"
        )

    def describe_training(self) -> str:
        """Each class's share of the training pixels that are not ignored, and the share of those that are."""
        shares = zip(self.class_names, self.class_shares().tolist(), strict=True)
        counts, ignored = self._count(self.listing.of["train"])
        share = ignored / max(int(counts.sum()) + ignored, 1)
        named = ", ".join(f"{name} {share:.2%}" for name, share in shares)
        return f"training pixels by class: {named}; ignored: {share:.2%} of all"

    def target_columns(self, samples: SampleTable) -> dict[str, Iterable[str]]:
        """The files of the masks."""
        return {
            "mask": [os.path.relpath(mask, self.root) if mask else "" for mask in samples.masks or [""] * len(samples)]
        }
