"""Splits: which images are for training, validation and test, and folds of cross-validation."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cnnlab.data.listing import Sample, SampleIndex
from cnnlab.errors import InputError
from cnnlab.random import permutation

_GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, fill 0..1 evenly."""


def split_samples(listing: SampleIndex, val_size: float, test_size: float, seed: int) -> SampleIndex:
    """Assign a split to each sample without one: each class or stratum keeps its share, and groups stay whole.

    With a training split but no validation split, a part of the training samples is used for validation. A test split
    is made only if no sample has a split. The sizes are shares, 0..1; the seed decides which samples.

    Raises:
        InputError: If the shares leave no training samples, or a split would be empty.
    """
    given = {sample.split for sample in listing.samples}
    shares = {"val": val_size if "val" not in given else 0.0, "test": test_size if given == {""} else 0.0}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise InputError(
            f"data.val_size is {val_size} and data.test_size {test_size}, expected shares, below 1 together"
        )
    open_ = [i for i, sample in enumerate(listing.samples) if sample.split in ("", "train")]
    places = _spread([listing.samples[i] for i in open_], seed)
    samples = list(listing.samples)
    for i, place in zip(open_, places, strict=True):
        split = "test" if place < shares["test"] else "val" if place < sum(shares.values()) else "train"
        samples[i] = replace(samples[i], split=split)
    divided = SampleIndex(samples, listing.class_names)
    for split, share in (("train", 1.0), *shares.items()):
        if open_ and share and not divided.of[split]:
            raise InputError(
                f"{len(open_)} images leave none for {split}: give more images, or another data.{split}_size"
            )
    return divided


def keep_splits(listing: SampleIndex, manifest: Path, root: Path) -> tuple[SampleIndex, int]:
    """Assign to images the splits in a run's manifest.

    The manifest's paths start from ``root``. Other images keep the validation or test split of their folder, since the
    run was not trained on them.

    Returns:
        The listing without training images that are not in the manifest, and the number of images left out.

    Raises:
        InputError: If there is no such file, or if it has none of the images.
    """
    if not manifest.is_file():
        raise InputError(f"data.splits {manifest}: there is no such file")
    with manifest.open(newline="", encoding="utf-8") as file:
        known = {row["path"]: row["split"] for row in csv.DictReader(file)}
    kept = []
    for sample in listing.samples:
        split = known.get(os.path.relpath(sample.path, root))
        if split is not None:
            kept.append(replace(sample, split=split))
        elif sample.split not in ("", "train"):
            kept.append(sample)
    if not kept:
        raise InputError(f"data.splits {manifest} has none of the {len(listing.samples)} images in {root}")
    return SampleIndex(kept, listing.class_names), len(listing.samples) - len(kept)


def folds(samples: Sequence[Sample], count: int, seed: int) -> np.ndarray:
    """Divide samples into folds of equal size; each class or stratum is spread evenly, groups stay whole.

    Returns:
        (N,) each sample's fold, 0..count-1.
    """
    return np.minimum((_spread(samples, seed) * count).astype(np.int64), count - 1)


def _spread(samples: Sequence[Sample], seed: int) -> np.ndarray:
    """Assign to each sample a place in 0..1, so that any interval has its share of each class or stratum.

    Samples of a group have the same place.
    """
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(f"g{sample.group}" if sample.group else f"s{i}", []).append(i)
    units = list(groups.values())
    order = permutation(seed, 0, len(units))
    kinds: dict[tuple[tuple[str, ...], str], list[list[int]]] = {}
    for unit in order:
        members = units[unit]
        own = [(samples[i].labels, samples[i].stratum) for i in members]
        kinds.setdefault(max(set(own), key=lambda kind: (own.count(kind), kind)), []).append(members)
    places = np.empty(len(samples))
    # Classes or strata follow each other around a circle, so that their rounding errors cancel.
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    start = generator.random()
    for kind in sorted(kinds.values(), key=len, reverse=True):
        total, before = sum(map(len, kind)), 0
        for members in kind:
            places[members] = (start + (before + len(members) / 2) / total) % 1
            before += len(members)
        start += _GOLDEN_RATIO / total
    return places


def select_fold(listing: SampleIndex, count: int, fold: int, seed: int) -> SampleIndex:
    """Divide training and validation samples into folds: one, 0..count-1, for validation, the others for training.

    The test split is unchanged.

    Raises:
        InputError: If there are fewer samples than folds.
    """
    together = [sample for sample in listing.samples if sample.split != "test"]
    if len(together) < count:
        raise InputError(f"data.folds is {count}, and there are only {len(together)} images to divide")
    places = folds(together, count, seed)
    moved = [
        replace(sample, split="val" if place == fold else "train")
        for sample, place in zip(together, places, strict=True)
    ]
    return SampleIndex([*moved, *listing.of["test"]], listing.class_names)
