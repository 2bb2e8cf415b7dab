"""FileDataModule: lists image files with their targets, splits them, reads them and records them."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from cnnlab.data.augmentation import InputSpec
from cnnlab.data.base import IMAGENET, BatchDataset, VisionDataModule, cpu_count
from cnnlab.data.files import AnnotationReader, AugmentedFiles, FileDataset, Opener
from cnnlab.data.image_survey import describe_images, find_range
from cnnlab.data.listing import SPLITS, Sample, SampleIndex, find_broken, unmatched
from cnnlab.data.presets import create_augmentation
from cnnlab.data.splits import keep_splits, select_fold, split_samples
from cnnlab.errors import InputError
from cnnlab.image_files import check_name, listed
from cnnlab.imaging import EvalTransform, LazyImage, list_images
from cnnlab.pixels import check_tones


class FileDataModule(VisionDataModule):
    """Image files, each with a target.

    A subclass lists the samples and reads their annotations. This class handles splits, folds, broken files,
    prediction and the manifest. Without split folders or a column split, a fixed stratified split is made.

    Args:
        root: The folder; paths in a table are relative to it.
        csv: A table with the column path, the columns of the targets, and optionally split (train, val, test) and
            group (images of one group stay in one split). Without it, the images are listed from the folders.
        val_size: The share of the training images used for validation if no validation split is given.
        test_size: The share of all images used for testing if no split is given.
        splits: The manifest.csv of a run. Its images keep their splits, and new training images are left out.
            ``test``, ``predict`` and ``resume`` use their run's manifest, so that added files change no split.
        split_seed: Decides on splits and folds; independent of the run's seed, so that runs with different seeds are
            comparable.
        folds: Divide training and validation images into this number of folds, for cross-validation.
        fold: The fold used for validation, 0..folds-1.
        predict: What to predict: train, val or test, a folder of images, or one image.
        channels: 3 for color, 1 for gray.
        augment: See presets.create_augmentation.
        augment_args: See presets.create_augmentation.
        range: The values that become black and white, of files with more than 8 bits per channel. If None, the lowest
            and the highest value of the training images. Files of 8 bits stay as they are.
        alpha: What a fourth channel does that a file calls alpha: blend (the image is laid on white), or drop (the
            channel is ignored, as for near infrared beside red, green and blue).
        on_error: What to do with files that cannot be read or do not match each other: raise, or skip. With skip, all
            files are read first, and the broken ones are named and left out.
        batch_size: Samples per process and step, 1 or greater.
        num_workers: Processes that read ahead; the number of processors, up to 8, if None.
        **kwargs: See VisionDataModule.

    Raises:
        InputError: If an argument is out of range.
    """

    train_set: AugmentedFiles

    RESOLVED: ClassVar[tuple[str, ...]] = ("range",)
    DIVIDING: ClassVar[tuple[str, ...]] = ("val_size", "test_size", "split_seed", "folds", "fold")
    ANNOTATIONS_MOVE: ClassVar[bool] = False
    """Whether annotations change with the geometry of the image."""

    def __init__(
        self,
        root: str,
        csv: str | None = None,
        val_size: float = 0.15,
        test_size: float = 0.15,
        splits: str | None = None,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        predict: str = "test",
        channels: Literal[1, 3] = 3,
        augment: str = "standard",
        augment_args: dict[str, Any] | None = None,
        range: Sequence[float] | None = None,
        alpha: Literal["blend", "drop"] = "blend",
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 32,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        workers = min(8, cpu_count()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, num_workers=workers, **kwargs)
        if folds is not None and not folds >= 2:
            raise InputError(f"data.folds is {folds}, expected 2 or more")
        if folds is not None and not 0 <= fold < folds:
            raise InputError(f"data.fold is {fold}, expected 0 to {folds - 1}")
        self.root = Path(root)
        self.csv = Path(csv) if csv is not None else None
        self.channels = channels
        self.mean, self.std = IMAGENET[channels]
        self.augmentation = create_augmentation(augment, augment_args, masks=self.ANNOTATIONS_MOVE)
        self._tones = check_tones(range, alpha)
        # A run's folder may be moved, so its checkpoints do not keep this path.
        self._splits = Path(splits) if splits is not None else None
        self.hparams["splits"] = None
        self._broken: dict[str, str] | None = None

    @abstractmethod
    def list_samples(self) -> list[Sample]:
        """All images, each with its split, "" if none is given.

        Raises:
            InputError: If a folder, a table or a target is missing or wrong.
        """

    @abstractmethod
    def read_annotations(self, samples: Sequence[Sample]) -> AnnotationReader:
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

    def manifest_row(self, sample: Sample) -> dict[str, str]:
        """A sample's row in the manifest: path, its target, split, group, bytes, sha256."""
        path = Path(sample.path)
        row = {"path": os.path.relpath(path, self.root), "split": sample.split, "group": sample.group}
        if not path.is_file():
            return {**row, "bytes": "", "sha256": ""}
        with path.open("rb") as file:
            return {**row, "bytes": str(path.stat().st_size), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

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
        found = find_range([sample.path for sample in self._divided.of["train"]])
        if found is not None:
            self._tones, self.hparams["range"] = self._tones._replace(range=found), list(found)
            rank_zero_info(
                f"images have more than 8 bits: {found[0]:g} becomes black and {found[1]:g} white (data.range)"
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

    @cached_property
    def samples(self) -> list[Sample]:
        """All images, as listed by list_samples()."""
        return self.list_samples()

    @cached_property
    def _divided(self) -> SampleIndex:
        options = self.hparams
        listing = SampleIndex(self.samples)
        if self._splits is not None:
            listing, count = keep_splits(listing, self._splits, self.root)
            if count:
                rank_zero_warn(f"{count} images of {self.root} are not in {self._splits}, and are left out")
            return listing
        listing = split_samples(listing, options["val_size"], options["test_size"], options["split_seed"])
        if options["folds"] is None:
            return listing
        return select_fold(listing, options["folds"], options["fold"], options["split_seed"])

    @property
    def listing(self) -> SampleIndex:
        """All images that can be used, each with its split."""
        broken = self._broken or {}
        return SampleIndex([sample for sample in self._divided.samples if sample.path not in broken])

    def setup(self, stage: str) -> None:
        """List the images of a stage, each with its split.

        Raises:
            InputError: If the stage has no images.
        """
        self.adopt_from_trainer()
        if stage == "predict" and self._predicts_elsewhere:
            self.predict_set = self._files(self._prediction_samples(), self.eval_transform().open)
            return
        if stage == "fit":
            self.find_tones()
        self._leave_out_broken()
        listing = self.listing
        used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, (self.hparams["predict"],))
        if stage == "fit":
            self.inspect_training()
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
        samples = [Sample(str(path)) for path in ([place] if place.is_file() else list_images(place))]
        if self.hparams["on_error"] == "skip":
            broken = find_broken(samples, self.try_reading)
            for text in broken.values():
                rank_zero_warn(f"left out: {text}")
            samples = [sample for sample in samples if sample.path not in broken]
        if not samples:
            raise InputError(f"data.predict {place} has no images that can be read")
        return samples

    def _split(self, listing: SampleIndex, split: str, opener: Opener) -> FileDataset:
        if not listing.of[split]:
            raise InputError(f"{self.root} has no images for {split}: {self.split_remedy(split)}")
        return self._files(listing.of[split], opener)

    def _files(self, samples: Sequence[Sample], opener: Opener) -> FileDataset:
        paths = [sample.path for sample in samples]
        return FileDataset(paths, self.read_annotations(samples), self.eval_transform(), opener)

    def _leave_out_broken(self) -> None:
        if self.hparams["on_error"] == "raise" or self._broken is not None:
            return
        samples = self._divided.samples
        self._broken = find_broken(samples, self.try_reading)
        if self._broken:
            named = "\n".join(f"  {text}" for text in self._broken.values())
            rank_zero_warn(f"{len(self._broken)} of {len(samples):,} images cannot be read and are left out:\n{named}")

    def _eval_loader(
        self, dataset: BatchDataset, place: dict[str, int] | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        one_size = self.eval_transform().size is not None or (isinstance(dataset, FileDataset) and dataset.has_one_size)
        return super()._eval_loader(dataset, place, batch_size or (self.batch_size if one_size else 1))

    def check(self) -> tuple[list[str], list[list[str]]]:
        """Read all files.

        Returns:
            The errors of files that cannot be read (with on_error skip); the paths of each image that is in several
            splits.
        """
        self.find_tones()
        self._leave_out_broken()
        rows = self.manifest()
        same: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if row["sha256"] and not row["error"]:
                same.setdefault(row["sha256"], []).append(row)
        copies = [[row["path"] for row in group] for group in same.values() if len({row["split"] for row in group}) > 1]
        return [row["error"] for row in rows if row["error"]], copies

    def describe_images(self) -> list[str]:
        """Lines about the images that are not plain 8-bit files, for ``cnnlab data check``."""
        return describe_images([sample.path for sample in self.listing.samples], self._tones)

    def manifest(self) -> list[dict[str, str]]:
        """A row for each image: see manifest_row, and the error if it was left out."""
        divided = {sample.path: sample for sample in self._divided.samples}
        rows = []
        for sample in self.samples:
            row = self.manifest_row(divided.get(sample.path, sample))
            rows.append({**row, "error": (self._broken or {}).get(sample.path, "")})
        return rows


def fill(mean: Sequence[float]) -> Tensor:
    """The color of pixels outside an image, (C,) float 0..255, from the mean of pixels in 0..1."""
    return torch.tensor([255.0 * value for value in mean])
