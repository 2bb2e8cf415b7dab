"""FileDataModule: reads image files with their targets, for training, evaluation and prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from cnnlab import tree
from cnnlab.data.augmentation import InputSpec
from cnnlab.data.base import IMAGENET, BatchDataset
from cnnlab.data.contents import ContentNotes
from cnnlab.data.files import AnnotationReader, AugmentedFiles, FileDataset, Opener
from cnnlab.data.image_survey import any_deep, describe_images, find_range
from cnnlab.data.listed_files import ListedFiles
from cnnlab.data.listing import find_broken, unmatched
from cnnlab.data.presets import create_augmentation
from cnnlab.data.samples import SPLITS, Sample, SampleIndex, SampleTable
from cnnlab.data.shared import shared
from cnnlab.errors import InputError
from cnnlab.image_files import check_name, listed
from cnnlab.imaging import EvalTransform, LazyImage, list_images
from cnnlab.pixels import check_tones


class FileDataModule(ListedFiles):
    """Image files, each with a target.

    A subclass lists the samples and reads their annotations. ListedFiles handles splits, folds, broken files and the
    manifest.

    Args:
        root: The folder; paths in a table are relative to it.
        predict: What to predict: train, val or test, a folder of images, or one image.
        channels: 3 for color, 1 for gray.
        augment: See presets.create_augmentation.
        augment_args: See presets.create_augmentation.
        range: The values that become black and white, of files with more than 8 bits per channel. If None, the lowest
            and the highest value of the training images. Files of 8 bits stay as they are.
        alpha: What a fourth channel does that a file calls alpha: blend (the image is laid on white), or drop (the
            channel is ignored, as for near infrared beside red, green and blue).
        batch_size: Samples per process and step, 1 or greater.
        num_workers: See VisionDataModule.
        **kwargs: See ListedFiles.

    Raises:
        InputError: If an argument is out of range.
    """

    train_set: AugmentedFiles

    RESOLVED: ClassVar[tuple[str, ...]] = ("range",)
    ANNOTATIONS: ClassVar[Literal["fixed", "masks", "boxes"]] = "fixed"
    """What annotations are, as far as augmentation is concerned: fixed ones do not change with the image."""

    def __init__(
        self,
        root: str,
        predict: str = "test",
        channels: Literal[1, 3] = 3,
        augment: str = "standard",
        augment_args: dict[str, Any] | None = None,
        range: Sequence[float] | None = None,
        alpha: Literal["blend", "drop"] = "blend",
        batch_size: int = 32,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers, **kwargs)
        self.channels = channels
        self.mean, self.std = IMAGENET[channels]
        self.augmentation = create_augmentation(augment, augment_args, self.ANNOTATIONS)
        self._tones = check_tones(range, alpha)

    @abstractmethod
    def read_annotations(self, samples: SampleTable) -> AnnotationReader:
        """The reader of the annotations of these samples; the targets of samples without a split are unknown."""

    @abstractmethod
    def input_spec(self) -> InputSpec:
        """The input of the network in training.

        Raises:
            InputError: If it cannot be determined.
        """

    @abstractmethod
    def split_remedy(self, split: str) -> str:
        """What to do if a split has no images."""

    def try_reading(self, sample: Sample) -> None:
        """Read a sample's files.

        Raises:
            ImageError: If one cannot be read, or does not match the others.
        """
        self.open_image(sample.path).read(self.channels, at_least=(1, 1))

    def open_image(self, path: str) -> LazyImage:
        """Open an image file, whose values are read as ``range`` and ``alpha`` say."""
        return LazyImage(path, self._tones)

    def opener(self, listing: SampleIndex, splits: Sequence[str]) -> Opener:
        """The function that opens the images of these splits."""
        return self.eval_transform().open

    def create_train_set(self, source: FileDataset) -> AugmentedFiles:
        """The training images, augmented."""
        return AugmentedFiles(source, self.augmentation, self.input_spec(), self.seed)

    def eval_transform(self) -> EvalTransform:
        """The transform of training without augmentation."""
        return self.with_tones(self.input_spec().eval_transform())

    def with_tones(self, transform: EvalTransform) -> EvalTransform:
        """A transform of files whose values are read as ``range`` and ``alpha`` say."""
        return transform._replace(range=self._tones.range, alpha=self._tones.alpha)

    def find_tones(self) -> None:
        """Find the range of training images with more than 8 bits; a resumed run goes on as it began."""
        resumed = self.trainer is not None and self.trainer.ckpt_path is not None
        if self._tones.range is not None or resumed:
            return
        found = find_range(self._divided.of["train"].paths)
        if found is not None:
            self._tones, self.hparams["range"] = self._tones._replace(range=found), list(found)
            rank_zero_info(
                f"images have more than 8 bits: {found[0]:g} becomes black and {found[1]:g} white (data.range)"
            )

    def _compare_tones(self, paths: Sequence[str]) -> None:
        """Say that images have more than 8 bits, if those of the training had not."""
        if self._tones.range is None and any_deep(paths):
            rank_zero_warn(
                "images have more than 8 bits, and those of the training had not: the lowest and the highest possible "
                "value become black and white; say which values do with --data.range"
            )

    def inspect_training(self) -> None:
        """Look at the training samples before a fit or a check; a subclass adds what it knows of its targets.

        Raises:
            InputError: If nothing could be learned, or if files of a table are missing.
        """
        if self.csv is not None:
            self._compare_with_folders(self.csv)

    def _compare_with_folders(self, table: Path) -> None:
        missing, strange, others = unmatched(self._divided.samples)
        if (missing or strange) and self.hparams["on_error"] == "raise":
            absent = f"{len(missing)} files do not exist: {listed(missing)}" if missing else str(strange)
            raise InputError(
                f"{table}: {absent}: correct the table or data.root, or leave the rows out with --data.on_error skip"
            )
        if others:
            rank_zero_warn(f"{len(others):,} images have no row in {table}: {listed(others)}")

    def setup(self, stage: str) -> None:
        """List the images of a stage, each with its split.

        Raises:
            InputError: If the stage has no images.
        """
        self.adopt_from_trainer()
        if stage == "predict" and self._predicts_elsewhere:
            samples = SampleTable.of(self._prediction_samples(), self.root)
            self.predict_set = self._files(samples, self.eval_transform().open)
            self._compare_tones(samples.paths)
            return
        used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, (self.hparams["predict"],))
        self.compare_with_run(used)
        if stage == "fit":
            self.find_tones()
        self.leave_out_broken()
        listing = self.listing
        if stage == "fit":
            self.inspect_training()
        if stage != "fit":
            self._compare_tones([path for split in used for path in listing.of[split].paths])
        opener = self.opener(listing, used)
        if stage == "fit":
            self.train_set = self.create_train_set(self._split(listing, "train", opener))
            counts = {split: len(samples) for split, samples in listing.of.items() if samples}
            rank_zero_info(f"{self.describe_targets()}; images: {counts}")
        if stage in ("fit", "validate"):
            self.val_set = self._split(listing, "val", opener)
        if stage == "test":
            self.test_set = self._split(listing, "test", opener)
        if stage == "predict":
            self.predict_set = self._split(listing, self.hparams["predict"], opener)

    @abstractmethod
    def describe_targets(self) -> str:
        """A short description of the targets."""

    @property
    def _predicts_elsewhere(self) -> bool:
        trainer = self.trainer
        return self.hparams["predict"] not in SPLITS and (trainer is None or trainer.state.fn == "predict")

    def _prediction_samples(self) -> list[Sample]:
        """The image, or the images of a folder, to predict."""
        place = Path(self.hparams["predict"])
        check_name(place)
        paths = [place] if tree.is_file(place) and not tree.is_dir(place) else list_images(place)
        samples = [Sample(str(path), name=path.name) for path in paths]
        if self.hparams["on_error"] == "skip":
            broken = find_broken(samples, self.try_reading)
            for text in broken.values():
                rank_zero_warn(f"left out: {text}")
            samples = [sample for sample in samples if sample.path not in broken]
        if not samples:
            raise InputError(f"data.predict {place} has no images that can be read")
        return samples

    def _split(self, listing: SampleIndex, split: str, opener: Opener) -> FileDataset:
        if not len(listing.of[split]):
            raise InputError(f"{self.root} has no images for {split}: {self.split_remedy(split)}")
        rows = shared(self.rows_of(split).astype(np.int32))
        return self._files(listing.of[split], opener, ContentNotes(self.contents, rows) if self._is("fit") else None)

    def _files(self, samples: SampleTable, opener: Opener, notes: ContentNotes | None = None) -> FileDataset:
        skip, paths = self.hparams["on_error"] == "skip", samples.paths.mapped(shared)
        return FileDataset(paths, self.read_annotations(samples), self.eval_transform(), opener, notes, skip)

    def _eval_loader(
        self, dataset: BatchDataset, place: dict[str, int] | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        one_size = self.eval_transform().size is not None or (isinstance(dataset, FileDataset) and dataset.has_one_size)
        return super()._eval_loader(dataset, place, batch_size or (self.eval_batch_size if one_size else 1))

    def check(self) -> tuple[list[str], list[list[str]]]:
        """Read all files: see ListedFiles.check."""
        self.find_tones()
        return super().check()

    def describe_images(self) -> list[str]:
        """Lines about the images that are not plain 8-bit files, for ``cnnlab data check``."""
        return describe_images([sample.path for sample in self.listing.samples], self._tones)


def fill(mean: Sequence[float]) -> Tensor:
    """The color of pixels outside an image, (C,) float 0..255, from the mean of pixels in 0..1."""
    return torch.tensor([255.0 * value for value in mean])
