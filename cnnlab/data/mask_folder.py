"""MaskFolder: images with a mask each, from two folders or from a table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from cnnlab.data.base import IMAGENET, BatchDataset, ClassesMixin, VisionDataModule, cpu_count
from cnnlab.data.listing import (
    SPLITS,
    Sample,
    SampleIndex,
    find_problems,
    keep_splits,
    manifest_row,
    prediction_samples,
    split_samples,
)
from cnnlab.data.mask_files import AugmentedMasks, MaskFiles, Pair, PairReader, sizes_of
from cnnlab.data.mask_listing import list_pair_table, list_pairs
from cnnlab.data.mask_values import MaskValues, Value
from cnnlab.data.presets import InputSpec, create_augmentation
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, ImageError, read_mask, resampling

_OTHERWISE_IGNORED = 255
_MANY_PIXELS = 1 << 20


class MaskFolder(ClassesMixin, VisionDataModule):
    """Images and the class of each of their pixels.

    They lie in ROOT/images/SPLIT and ROOT/masks/SPLIT (train, val, test), or in ROOT/images and ROOT/masks, or where a
    table says; a mask has its image's name, with any ending. What is not divided yet is divided here.

    With ``size`` all images are brought to one size, in training by way of random crops of a share of the image.
    Without, pixels stay as large as they are: training takes crops of ``crop`` pixels, evaluation whole images (one by
    one where they differ in size; see the task's ``window`` for large ones).

    Args:
        root: The folder; paths in a table start from it.
        csv: A table with the columns path and mask, and perhaps split (train, val, test) and group (what is of one
            group is never divided).
        class_names: The classes in the order of their values; the values that the masks have if None.
        mask_values: The value of each class in the masks: numbers (of a palette too), or colours [red, green, blue];
            0, 1, 2, ... if None (and without names but for ignore_index). Binary masks of 0 and 255: [0, 255], and
            ignore_index null.
        ignore_index: The value of pixels that count for nothing; None if there are none.
        val_size: The share of the training images that validates where there is no folder val.
        test_size: The share of all images that tests where nothing is divided.
        splits: See ImageFolder.
        split_seed: Decides which; apart from the run's seed.
        predict: What to predict: train, val or test, a folder of images, or one image.
        size: Height and width that all images are brought to (or both in one number), whatever their proportions.
        crop: Height and width of training crops (or both in one number) where pixels stay as large as they are; the
            images' size if None and all have the same. Parts of smaller images are enlarged to it.
        interpolation: See imaging.INTERPOLATIONS, for images; masks take the nearest pixel.
        channels: 3 for colour, 1 for grey.
        augment: See presets.create_augmentation; masks go in step.
        augment_args: See presets.create_augmentation.
        rare_crops: The probability that a training crop is put onto a pixel of a class that is drawn among those of
            the image, each as likely as any other, so that rare ones are met more often; for cnnlab's own crops.
        on_error: What is done with pairs that cannot be read or do not fit each other: raise, or skip, which reads all
            files before the start and leaves the broken ones out, each named.
        batch_size: See VisionDataModule.
        num_workers: Processes that read ahead; as many as there are processors, up to 8, if None.
        drop_last: See VisionDataModule.
        seed: See VisionDataModule.

    Raises:
        InputError: If there are no images, if one has no mask, or if an argument does not fit.
    """

    kind: ClassVar[str | None] = "masks"
    PROVIDES: ClassVar[tuple[str, ...]] = (*ClassesMixin.PROVIDES, "ignore_index")
    train_set: AugmentedMasks

    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", "mask_values")
    DIVIDING: ClassVar[tuple[str, ...]] = ("val_size", "test_size", "split_seed")

    def __init__(
        self,
        root: str,
        csv: str | None = None,
        class_names: Sequence[str] | None = None,
        mask_values: Sequence[int | Sequence[int]] | None = None,
        ignore_index: int | Sequence[int] | None = 255,
        val_size: float = 0.15,
        test_size: float = 0.15,
        splits: str | None = None,
        split_seed: int = 0,
        predict: str = "test",
        size: int | Sequence[int] | None = None,
        crop: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
        channels: Literal[1, 3] = 3,
        augment: str = "standard",
        augment_args: dict[str, Any] | None = None,
        rare_crops: float = 0.0,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 8,
        num_workers: int | None = None,
        drop_last: bool = True,
        seed: int | None = None,
    ) -> None:
        workers = min(8, cpu_count()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, num_workers=workers, drop_last=drop_last, seed=seed)
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
        self.root = Path(root)
        self.channels = channels
        self.mean, self.std = IMAGENET[channels]
        self.augmentation = create_augmentation(augment, augment_args, masks=True)
        self._size, self._crop = _sides("size", size), _sides("crop", crop)
        # A run may be moved: its checkpoints do not keep where it was.
        self._splits = Path(splits) if splits is not None else None
        self.hparams["splits"] = None
        self._broken: dict[str, str] = {}
        self._searched = False
        self._csv = Path(csv) if csv is not None else None
        values = self._values(class_names, mask_values, ignore_index)
        self.class_names = list(class_names) if class_names is not None else [_name(value) for value in values]
        self.hparams["class_names"], self.hparams["mask_values"] = self.class_names, values
        self.ignore_index = max(_OTHERWISE_IGNORED, self.num_classes)
        """What the targets of ignored pixels are: their value in the masks, where it is no class's number."""
        if isinstance(ignore_index, int) and not 0 <= ignore_index < self.num_classes:
            self.ignore_index = ignore_index
        self.reader = PairReader(MaskValues(values, ignore_index, self.ignore_index), self.ignore_index, channels)

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
        """The values of the masks, where they are 0, 1, 2, ... but for the ignored one.

        Raises:
            InputError: If they are others, which may be mistakes, or classes that no image has.
        """
        # What cannot be read is left to be named with all else that is broken.
        skip = self.hparams["on_error"] == "skip"
        masks = list(self._mask_of.values())
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

    @cached_property
    def _found(self) -> tuple[list[Sample], dict[str, str]]:
        return list_pair_table(self._csv, self.root) if self._csv is not None else list_pairs(self.root)

    @property
    def _mask_of(self) -> dict[str, str]:
        return self._found[1]

    @cached_property
    def _divided(self) -> SampleIndex:
        options = self.hparams
        found = SampleIndex(self._found[0], [])
        if self._splits is None:
            return split_samples(found, options["val_size"], options["test_size"], options["split_seed"])
        listing, count = keep_splits(found, self._splits, self.root)
        if count:
            rank_zero_warn(f"{count} images of {self.root} are not in {self._splits}, and are left out")
        return listing

    @property
    def listing(self) -> SampleIndex:
        """All images that can be used, each with its split."""
        return SampleIndex([sample for sample in self._divided.samples if sample.path not in self._broken], [])

    def input_spec(self) -> InputSpec:
        """What images are brought to in training."""
        preprocessing = self.preprocessing
        mean = self.mean if preprocessing is None else preprocessing.mean
        fill = torch.tensor([255.0 * value for value in mean])
        size = self._size or self._crop or self._common_size
        if size is None:
            raise InputError(
                f"the images in {self.root} differ in size: say data.size, to bring all to one, or data.crop, to train "
                "on parts of them"
            )
        return InputSpec(size, self.channels, fill, 1.0, self.hparams["interpolation"])

    def eval_transform(self) -> EvalTransform:
        """All of an image, at one size or at its own."""
        return EvalTransform(self.channels, self._size, interpolation=self.hparams["interpolation"], stretch=True)

    @cached_property
    def _common_size(self) -> tuple[int, int] | None:
        """The size of all images, None where they differ."""
        sizes = sizes_of([sample.path for sample in self.listing.samples])
        return sizes.pop() if len(sizes) == 1 else None

    def setup(self, stage: str) -> None:
        """List the images of a stage, and divide them where that is left to do.

        Raises:
            InputError: If the stage has no images.
        """
        self.adopt_from_trainer()
        if stage == "predict" and self.hparams["predict"] not in SPLITS:
            samples = prediction_samples(Path(self.hparams["predict"]), self.channels, self.hparams["on_error"])
            self.predict_set = self._pairs([Pair(sample.path, None) for sample in samples])
            return
        self._leave_out_broken()
        listing = self.listing
        if stage == "fit":
            self.train_set = AugmentedMasks(
                self._files(self._of(listing, "train")),
                self.augmentation,
                self.input_spec(),
                self.seed,
                native=self._size is None,
                rare=self.hparams["rare_crops"],
            )
            if self._size is None and self._crop is None and math.prod(self.train_set.spec.size) > _MANY_PIXELS:
                height, width = self.train_set.spec.size
                rank_zero_warn(
                    f"training takes whole images of {height} x {width} pixels, which needs much memory: say data.crop "
                    "for parts of them, or data.size for a smaller size"
                )
            counts = {split: len(samples) for split, samples in listing.of.items() if samples}
            rank_zero_info(f"{self.num_classes} classes; images: {counts}")
        if stage in ("fit", "validate"):
            self.val_set = self._files(self._of(listing, "val"))
        if stage == "test":
            self.test_set = self._files(self._of(listing, "test"))
        if stage == "predict":
            self.predict_set = self._files(self._of(listing, self.hparams["predict"]))

    def _of(self, listing: SampleIndex, split: str) -> list[Sample]:
        if not listing.of[split]:
            raise InputError(
                f"{self.root} has no images for {split}: make the folders {self.root / 'images' / split} and "
                f"{self.root / 'masks' / split}, or a table with a column split"
            )
        return listing.of[split]

    def _files(self, samples: Sequence[Sample]) -> MaskFiles:
        pairs = [Pair(sample.path, self._mask_of[sample.path]) for sample in samples]
        return self._pairs(pairs)

    def _pairs(self, pairs: Sequence[Pair]) -> MaskFiles:
        return MaskFiles(pairs, self.reader, self._size, self.hparams["interpolation"])

    def _eval_loader(
        self, dataset: BatchDataset, place: dict[str, int] | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        together = isinstance(dataset, MaskFiles) and dataset.have_one_size
        return super()._eval_loader(dataset, place, batch_size or (self.batch_size if together else 1))

    def _leave_out_broken(self) -> None:
        if self.hparams["on_error"] == "raise" or self._searched:
            return
        samples = self._divided.samples
        self._broken, self._searched = self._find_broken(samples), True
        if self._broken:
            named = "\n".join(f"  {text}" for text in self._broken.values())
            rank_zero_warn(f"{len(self._broken)} of {len(samples):,} pairs are broken and left out:\n{named}")

    def _find_broken(self, samples: Sequence[Sample]) -> dict[str, str]:
        def trouble(sample: Sample) -> tuple[str, str] | None:
            try:
                self.reader(Pair(sample.path, self._mask_of[sample.path]))[0].read(self.channels)
            except ImageError as error:
                return sample.path, str(error)
            return None

        with ThreadPoolExecutor() as pool:
            return dict(found for found in pool.map(trouble, samples) if found is not None)

    def class_shares(self) -> Tensor:
        """(K,) each class's share of the training pixels that count: what class weights are made from."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for sample in self.listing.of["train"]:
            classes = self.reader.classes(self._mask_of[sample.path])
            counts += torch.bincount(classes[classes != self.ignore_index], minlength=self.num_classes)
        return counts / counts.sum().clamp(min=1)

    def describe_training(self) -> str:
        """The share of the training pixels that each class has."""
        shares = zip(self.class_names, self.class_shares().tolist(), strict=True)
        return "training pixels by class: " + ", ".join(f"{name} {share:.2%}" for name, share in shares)

    def check(self) -> tuple[list[str], list[list[str]]]:
        """Read all files: see ImageFolder.check."""
        self._leave_out_broken()
        return find_problems(self.manifest())

    def manifest(self) -> list[dict[str, str]]:
        """A row for each image: path, split, group, bytes, sha256, its mask, and the error of those left out."""
        rows = []
        for sample in self._divided.samples:
            row = manifest_row(sample, self.root)
            del row["label"]
            mask = os.path.relpath(self._mask_of[sample.path], self.root)
            rows.append({**row, "mask": mask, "error": self._broken.get(sample.path, "")})
        return rows


def _sides(name: str, value: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width of an option.

    Raises:
        InputError: If it is not one number, or two, of 1 or more.
    """
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"data.{name} is {value}, expected one number, or height and width, 1 or more")
    return sides[0], sides[1]


def _numbers(count: int, ignored: int | Sequence[int] | None) -> list[Value]:
    """0, 1, 2, ... without the ignored value."""
    numbers: list[Value] = [number for number in range(count + 1) if number != ignored]
    return numbers[:count]


def _name(value: Value) -> str:
    return str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)


def _values_in(path: str, skip: bool) -> set[int]:
    """The values that a mask has; none where it cannot be read and that is to be skipped.

    Raises:
        InputError: If they are colours.
        ImageError: If it cannot be read.
    """
    try:
        mask = read_mask(path)
    except ImageError:
        if skip:
            return set()
        raise
    if mask.ndim == 3:
        raise InputError(f"{path}: the mask has colours: say in data.mask_values which colour is which class")
    return set(np.unique(mask).tolist())
