"""ImageFolder: images and their classes, from folders of classes or from a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab import tree
from cnnlab.data.base import ClassesMixin
from cnnlab.data.center_crop import CenterCropDataModule
from cnnlab.data.files import AugmentedFiles, FileDataset, FixedTargets
from cnnlab.data.listing import list_folder, list_table, split_folders
from cnnlab.data.mixing import create_mixing
from cnnlab.data.samples import Sample, SampleIndex, SampleTable
from cnnlab.errors import InputError
from cnnlab.image_files import check_name, listed, subfolders


class ImageFolder(ClassesMixin, CenterCropDataModule):
    """Images and their classes.

    The images are in ROOT/train/CLASS, ROOT/val/CLASS and ROOT/test/CLASS, or in ROOT/CLASS, or in a table with the
    columns path and label; classes are then not taken from the folders. Without split folders, a fixed stratified
    split is made. The classes are numbered once, in the order of their names; a checkpoint keeps them.

    Args:
        root: The folder; paths in a table are relative to it.
        multi_label: Whether an image may have any number of labels, separated by ";" in the table.
        class_names: The classes in order; if None, the classes found, sorted by name.
        mixing: Mixup and CutMix of the training images: true, or arguments of mixing.Mixing.
        balance: How much rare classes are favored in training: 0 not at all, 1 makes all classes equally frequent
            (images are drawn with replacement, with the weight 1 / (images of the class) to this power).
        **kwargs: See CenterCropDataModule.

    Raises:
        InputError: If there are no images, or if an argument is out of range.
    """

    kind: ClassVar[str | None] = "labels"
    RESOLVED: ClassVar[tuple[str, ...]] = ("class_names", *CenterCropDataModule.RESOLVED)

    def __init__(
        self,
        root: str,
        multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        mixing: bool | dict[str, float] = False,
        balance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        if multi_label and self.csv is None:
            raise InputError("data.multi_label needs a table of labels: data.csv")
        if not 0 <= balance <= 1:
            raise InputError(f"data.balance is {balance}, expected 0 to 1")
        self.multi_label = multi_label
        self.mixing = create_mixing(mixing)
        self._balance = balance
        self._given_names = class_names
        self.class_names = list(class_names) if class_names is not None else self._found.class_names
        for name in self.class_names:
            check_name(name)
        self.hparams["class_names"] = self.class_names
        if multi_label and self.num_classes < 2:
            raise InputError(
                f"data.multi_label: {self.csv} has one label, {self.class_names}: give the images two classes instead "
                "(with it and without it), and leave data.multi_label out"
            )
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

    @cached_property
    def _found(self) -> SampleIndex:
        if self.csv is not None:
            return list_table(self.csv, self.root, self._given_names, self.multi_label)
        listing = list_folder(self.root, self._given_names)
        for note in listing.notes:
            rank_zero_warn(note)
        return listing

    def list_samples(self) -> Sequence[Sample]:
        """All images, each with its labels."""
        return self._found.samples

    def read_annotations(self, samples: SampleTable) -> FixedTargets:
        """The classes, (N,) int64 (-1 if unknown), or (N, K) float with multi-label data."""
        number = {name: i for i, name in enumerate(self.class_names)}
        if not self.multi_label or not samples.splits.any():
            if samples.labels is None:
                return FixedTargets(torch.full((len(samples),), -1))
            first = torch.tensor([number[labels[0]] if labels else -1 for labels in samples.labels.values])
            return FixedTargets(first[torch.from_numpy(samples.labels.numbers).long()])
        targets = torch.zeros(len(samples), self.num_classes)
        names, rows, labels = samples.pairs()
        targets[rows, np.array([number[name] for name in names], np.int64)[labels]] = 1.0
        return FixedTargets(targets)

    def inspect_training(self) -> None:
        """Check that there is something to learn.

        Raises:
            InputError: If there is one class.
        """
        super().inspect_training()
        if self.num_classes == 1 and not self.multi_label:
            raise InputError(self._one_class())
        counts = self._training_counts()
        if absent := [name for name in self.class_names if not counts[name]]:
            rank_zero_warn(f"{len(absent)} of {self.num_classes} classes have no training images: {listed(absent)}")

    def _one_class(self) -> str:
        name = self.class_names[0]
        said = f"{self.csv or self.root} has one class, {name!r}: nothing can be learned from one"
        if self.csv is not None:
            return f"{said}: add images of another class"
        inner = next(path for place in (*self._splits_of_root(), self.root) if tree.is_dir(path := place / name))
        of_split = inner.parent != self.root
        while len(below := subfolders(inner)) == 1:
            inner = inner / below[0]
        if below and of_split:
            return f"{said}; are the classes the folders of {inner}? Move them up"
        if below:
            return f"{said}; did you mean --data.root {inner}?"
        return f"{said}: add images of another class, in a folder beside it"

    def _splits_of_root(self) -> list[Path]:
        return list(split_folders(self.root, self._given_names or (), nested=True)[0].values())

    def _training_counts(self) -> Counter[str]:
        names, _, labels = self.listing.of["train"].pairs()
        return Counter(dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True)))

    def create_train_set(self, source: FileDataset) -> AugmentedFiles:
        """The training images, augmented and, with ``mixing``, mixed."""
        return AugmentedFiles(
            source, self.augmentation, self.input_spec(), self.seed, self.mixing, num_classes=self.num_classes
        )

    def train_weights(self) -> Tensor | None:
        """(N,) relative sampling weight of each training image; None if each is drawn once an epoch."""
        if not self._balance:
            return None
        assert isinstance(self.train_set.source.annotations, FixedTargets)
        targets = self.train_set.source.annotations.targets
        if targets.ndim == 1:
            targets = torch.nn.functional.one_hot(targets, self.num_classes).to(torch.float32)
        rarity = targets.sum(dim=0).clamp(min=1) ** -self._balance
        # An image with several labels is weighted by its rarest label, one without labels like the most frequent class.
        return torch.where(targets.any(dim=1), (targets * rarity).amax(dim=1), rarity.min())

    def split_remedy(self, split: str) -> str:
        """Folders, or a table."""
        return f"make a folder {self.root / split} with one folder for each class, or a table with a column split"

    def describe_training(self) -> str:
        """The number of training images in each class."""
        counts = self._training_counts()
        return "training images by class: " + ", ".join(f"{name} {counts[name]}" for name in self.class_names)

    def target_columns(self, samples: SampleTable) -> dict[str, Iterable[str]]:
        """The classes."""
        if samples.labels is None:
            return {"label": [""] * len(samples)}
        texts = [";".join(labels) for labels in samples.labels.values]
        return {"label": map(texts.__getitem__, samples.labels.numbers.tolist())}
