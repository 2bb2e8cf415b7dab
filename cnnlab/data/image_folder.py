"""ImageFolder: one's own photographs, from folders of classes or from a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from cnnlab.data.base import IMAGENET, ClassesMixin, VisionDataModule, cpu_count
from cnnlab.data.cache import ImageCache
from cnnlab.data.files import AugmentedFiles, FileImages, Opener
from cnnlab.data.listing import (
    SPLITS,
    Sample,
    SampleIndex,
    find_broken,
    find_problems,
    folds,
    keep_splits,
    list_folder,
    list_table,
    manifest_row,
    prediction_samples,
    split_samples,
)
from cnnlab.data.mixing import create_mixing
from cnnlab.data.presets import InputSpec, create_augmentation
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, LazyImage, Preprocessing, resampling

_CACHE = Path("~/.cache/cnnlab/images")


class ImageFolder(ClassesMixin, VisionDataModule):
    """Photographs and their classes.

    They lie in ROOT/train/CLASS, ROOT/val/CLASS and ROOT/test/CLASS, or in ROOT/CLASS, or where a table
    says. What is not divided yet is divided here, each class in its share. The classes are numbered once, in the
    order of their names; a checkpoint keeps them.

    Args:
        root: The folder; paths in a table start from it.
        csv: A table with the columns path and label, and perhaps split (train, val, test) and group (what is of one
            group is never divided); classes are then not taken from the folders.
        multi_label: Whether an image may have any number of labels, separated by ";" in the table.
        class_names: The classes in order; those that are found, by name, if None.
        val_size: The share of the training images that validates where there is no folder val.
        test_size: The share of all images that tests where nothing is divided.
        splits: The manifest.csv of a run, whose images keep the splits that they had there, while new ones for
            training are left out; ``test``, ``predict`` and ``resume`` take that of their run, so that added files
            move no image.
        split_seed: Decides which; apart from the run's seed, so that runs with different seeds are comparable.
        folds: Divide training and validation images into so many folds anew, for cross-validation.
        fold: Which of them validates, 0..folds-1.
        predict: What to predict: train, val or test, a folder of images, or one image.
        size: Height and width of what the network sees (or both in one number); the pretrained network's if
            None, 224 without one.
        crop: See imaging.Preprocessing; the pretrained network's if None, 0.875 without one.
        interpolation: See imaging.INTERPOLATIONS; the pretrained network's if None, bilinear without one.
        channels: 3 for colour, 1 for grey.
        augment: See presets.create_augmentation.
        augment_args: See presets.create_augmentation.
        mixing: Mixup and CutMix of the training images: true, or arguments of mixing.Mixing.
        balance: How much rare classes are favoured in training: 0 not at all, 1 makes all classes equally frequent
            (images are drawn with a weight of 1 / (images of the class) to this power, with repetition).
        on_error: What is done with files that cannot be read: raise, or skip, which reads all files before the
            start and leaves the broken ones out, each named.
        cache: Keep decoded images, made no larger than evaluation needs them, in memory or on disk.
        cache_folder: Where the disk's cache lies; ~/.cache/cnnlab/images if None.
        batch_size: See VisionDataModule.
        num_workers: Processes that read ahead; as many as there are processors, up to 8, if None.
        drop_last: See VisionDataModule.
        seed: See VisionDataModule.

    Raises:
        InputError: If there are no images, or if an argument does not fit.
    """

    kind: ClassVar[str | None] = "labels"
    train_set: AugmentedFiles

    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", "size", "crop", "interpolation")
    DIVIDING: ClassVar[tuple[str, ...]] = ("val_size", "test_size", "split_seed", "folds", "fold")

    def __init__(
        self,
        root: str,
        csv: str | None = None,
        multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        val_size: float = 0.15,
        test_size: float = 0.15,
        splits: str | None = None,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        predict: str = "test",
        size: int | Sequence[int] | None = None,
        crop: float | None = None,
        interpolation: str | None = None,
        channels: Literal[1, 3] = 3,
        augment: str = "standard",
        augment_args: dict[str, Any] | None = None,
        mixing: bool | dict[str, float] = False,
        balance: float = 0.0,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Literal["memory", "disk"] | None = None,
        cache_folder: str | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        drop_last: bool = True,
        seed: int | None = None,
    ) -> None:
        workers = min(8, cpu_count()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, num_workers=workers, drop_last=drop_last, seed=seed)
        if multi_label and csv is None:
            raise InputError("data.multi_label needs a table of labels: data.csv")
        if folds is not None and not folds >= 2:
            raise InputError(f"data.folds is {folds}, expected 2 or more")
        if folds is not None and not 0 <= fold < folds:
            raise InputError(f"data.fold is {fold}, expected 0 to {folds - 1}")
        if not 0 <= balance <= 1:
            raise InputError(f"data.balance is {balance}, expected 0 to 1")
        if crop is not None and not 0 < crop <= 1:
            raise InputError(f"data.crop is {crop}, expected above 0, to 1")
        self.root = Path(root)
        self.multi_label = multi_label
        self.channels = channels
        self.mean, self.std = IMAGENET[channels]
        self.augmentation = create_augmentation(augment, augment_args)
        self.mixing = create_mixing(mixing)
        self._csv = Path(csv) if csv is not None else None
        self._balance = balance
        # A run may be moved: its checkpoints do not keep where it was.
        self._splits = Path(splits) if splits is not None else None
        self.hparams["splits"] = None
        self._listing: SampleIndex | None = None
        self._broken: dict[str, str] | None = None
        self.class_names = list(class_names) if class_names is not None else self._list(None).class_names
        self.hparams["class_names"] = self.class_names
        if multi_label and self.num_classes < 2:
            raise InputError(
                f"data.multi_label: {csv} has one label, {self.class_names}: give the images two classes instead "
                "(with it and without it), and leave data.multi_label out"
            )
        # A checkpoint holds plain lists, and is read where the working folder is another.
        self.hparams["size"] = [size, size] if isinstance(size, int) else list(size) if size is not None else None
        if size is not None and (len(self.hparams["size"]) != 2 or min(self.hparams["size"]) < 1):
            raise InputError(f"data.size is {size}, expected one number, or height and width, 1 or more")
        if interpolation is not None:
            resampling(interpolation)
        # The hyperparameters get what is found out; another task may expect something else.
        self._asked = {"size": self.hparams["size"], "crop": crop, "interpolation": interpolation}
        if self.num_classes == 1 and not multi_label:
            rank_zero_warn(f"{root} has one class, {self.class_names[0]!r}: there is nothing to tell apart")
        self._warn_of_mirrors()

    def _warn_of_mirrors(self) -> None:
        names = [name.lower() for name in self.class_names]
        sided = [name for name in names if "left" in name or "right" in name]
        characters = all(len(name) == 1 for name in names)
        if self.augmentation.mirrors and (sided or characters):
            rank_zero_warn(
                f"the augmentation mirrors images, which changes what classes such as {(sided or names)[0]!r} mean: "
                "set data.augment_args.flip to 0 if it does"
            )

    def _list(self, class_names: Sequence[str] | None) -> SampleIndex:
        if self._listing is None:
            if self._csv is not None:
                self._listing = list_table(self._csv, self.root, class_names, self.multi_label)
            else:
                self._listing = list_folder(self.root, class_names)
                if ignored := self._listing.left_out:
                    kinds = ", ".join(f"{count} with {ending}" for ending, count in sorted(ignored.items()))
                    rank_zero_warn(f"{self.root}: {ignored.total()} files are no images by their endings: {kinds}")
        return self._listing

    @property
    def listing(self) -> SampleIndex:
        """All images that can be used, each with its split."""
        broken = self._broken or {}
        whole = self._divided
        return SampleIndex([sample for sample in whole.samples if sample.path not in broken], whole.class_names)

    @cached_property
    def _divided(self) -> SampleIndex:
        options = self.hparams
        listing = self._list(self.class_names)
        if self._splits is not None:
            listing, count = keep_splits(listing, self._splits, self.root)
            if count:
                rank_zero_warn(f"{count} images of {self.root} are not in {self._splits}, and are left out")
        else:
            listing = split_samples(listing, options["val_size"], options["test_size"], options["split_seed"])
            if options["folds"] is not None:
                listing = _refold(listing, options["folds"], options["fold"], options["split_seed"])
        return listing

    def input_spec(self) -> InputSpec:
        """What images are brought to: as asked, else as the pretrained network expects them."""
        given: dict[str, Any] = {"size": (224, 224), "crop": 0.875, "interpolation": "bilinear", "mean": self.mean}
        if self.preprocessing is not None:
            given |= self.preprocessing._asdict()
        given |= {name: value for name, value in self._asked.items() if value is not None}
        height, width = given["size"]
        fill = torch.tensor([255.0 * value for value in given["mean"]])
        return InputSpec((height, width), self.channels, fill, given["crop"], given["interpolation"])

    def eval_transform(self) -> EvalTransform:
        """As asked, else as the pretrained network expects it."""
        spec = self.input_spec()
        return EvalTransform(spec.channels, spec.size, spec.crop, spec.interpolation)

    def adopt(self, preprocessing: Preprocessing | None) -> None:
        """Take over what a pretrained network expects, where nothing else was asked for."""
        super().adopt(preprocessing)
        spec = self.input_spec()
        self.hparams["size"] = list(spec.size)
        self.hparams["crop"], self.hparams["interpolation"] = spec.crop, spec.interpolation

    def prepare_data(self) -> None:
        """Make the disk's cache; Lightning calls this on one process of a machine."""
        self.adopt_from_trainer()
        if self.hparams["cache"] == "disk" and not self._predicts_elsewhere:
            self._leave_out_broken()
            self._opener(self.listing, SPLITS)

    def setup(self, stage: str) -> None:
        """List the images of a stage, and divide them where that is left to do.

        Raises:
            InputError: If the stage has no images.
        """
        self.adopt_from_trainer()
        if stage == "predict" and self._predicts_elsewhere:
            samples = prediction_samples(Path(self.hparams["predict"]), self.channels, self.hparams["on_error"])
            self.predict_set = FileImages(samples, torch.full((len(samples),), -1), self.input_spec())
            return
        self._leave_out_broken()
        listing = self.listing
        used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, (self.hparams["predict"],))
        opener = self._opener(listing, used)
        if stage == "fit":
            self.train_set = AugmentedFiles(
                self._files(listing, "train", opener), self.augmentation, self.seed, self.num_classes, self.mixing
            )
            counts = {split: len(samples) for split, samples in listing.of.items() if samples}
            rank_zero_info(f"{self.num_classes} classes; images: {counts}")
        if stage in ("fit", "validate"):
            self.val_set = self._files(listing, "val", opener)
        if stage == "test":
            self.test_set = self._files(listing, "test", opener)
        if stage == "predict":
            self.predict_set = self._files(listing, self.hparams["predict"], opener)

    @property
    def _predicts_elsewhere(self) -> bool:
        trainer = self.trainer
        return self.hparams["predict"] not in SPLITS and (trainer is None or trainer.state.fn == "predict")

    def _leave_out_broken(self) -> None:
        if self.hparams["on_error"] == "raise" or self._broken is not None:
            return
        samples = self.listing.samples
        self._broken = find_broken(samples, self.channels)
        if self._broken:
            named = "\n".join(f"  {text}" for text in self._broken.values())
            rank_zero_warn(f"{len(self._broken)} of {len(samples):,} images cannot be read and are left out:\n{named}")

    def _opener(self, listing: SampleIndex, used: Sequence[str]) -> Opener:
        """What opens the images of the splits that are used; the file of the disk's cache has all splits."""
        if self.hparams["cache"] is None:
            return LazyImage
        if self.hparams["cache"] == "memory":
            return ImageCache([sample.path for split in used for sample in listing.of[split]], self.input_spec())
        folder = Path(self.hparams["cache_folder"] or _CACHE).expanduser()
        return ImageCache([sample.path for sample in listing.samples], self.input_spec(), folder)

    def _files(self, listing: SampleIndex, split: str, opener: Opener) -> FileImages:
        samples = listing.of[split]
        if not samples:
            raise InputError(
                f"{self.root} has no images for {split}: make a folder {self.root / split} with one folder for each "
                "class, or a table with a column split"
            )
        return FileImages(samples, self._targets(samples), self.input_spec(), opener)

    def _targets(self, samples: Sequence[Sample]) -> Tensor:
        number = {name: i for i, name in enumerate(self.class_names)}
        if not self.multi_label:
            return torch.tensor([number[sample.labels[0]] for sample in samples])
        targets = torch.zeros(len(samples), self.num_classes)
        for row, sample in zip(targets, samples, strict=True):
            row[[number[label] for label in sample.labels]] = 1.0
        return targets

    def train_weights(self) -> Tensor | None:
        """(N,) how often each training image is drawn, in proportion; None if all are drawn alike."""
        if not self._balance:
            return None
        targets = self.train_set.source.targets
        if targets.ndim == 1:
            targets = torch.nn.functional.one_hot(targets, self.num_classes).to(torch.float32)
        rarity = targets.sum(dim=0).clamp(min=1) ** -self._balance
        # An image with several labels counts as its rarest; one without any as the most frequent.
        return torch.where(targets.any(dim=1), (targets * rarity).amax(dim=1), rarity.min())

    def describe_training(self) -> str:
        """How many training images each class has."""
        counts = Counter(label for sample in self.listing.of["train"] for label in sample.labels)
        return "training images by class: " + ", ".join(f"{name} {counts[name]}" for name in self.class_names)

    def check(self) -> tuple[list[str], list[list[str]]]:
        """Read all files.

        Returns:
            What is wrong with those that cannot be read; the paths of each image that stands in several splits.
        """
        self._leave_out_broken()
        return find_problems(self.manifest())

    def manifest(self) -> list[dict[str, str]]:
        """A row for each image: path, label, split, group, bytes, sha256, and the error of those left out."""
        divided = {sample.path: sample for sample in self.listing.samples}
        rows = []
        for sample in self._list(self.class_names).samples:
            row = manifest_row(divided.get(sample.path, sample), self.root)
            rows.append({**row, "error": (self._broken or {}).get(sample.path, "")})
        return rows


def _refold(listing: SampleIndex, count: int, fold: int, seed: int) -> SampleIndex:
    """Training and validation images anew: a fold validates, the others train. The test stays as it is."""
    together = [sample for sample in listing.samples if sample.split != "test"]
    if len(together) < count:
        raise InputError(f"data.folds is {count}, and there are only {len(together)} images to divide")
    places = folds(together, count, seed)
    moved = [
        Sample(sample.path, sample.labels, "val" if place == fold else "train", sample.group)
        for sample, place in zip(together, places, strict=True)
    ]
    return SampleIndex([*moved, *listing.of["test"]], listing.class_names)
