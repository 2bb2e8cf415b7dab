"""Splits: which images are for training, validation and test, and folds of cross-validation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from cnnlab.data.listing import Sample, SampleIndex
from cnnlab.errors import InputError

_GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, fill 0..1 evenly."""


def place(name: str, seed: int) -> float:
    """Where a name stands in 0..1, whatever other names there are.

    Names that differ only in their last number, as cameras and scripts give them, are spread evenly: their places are
    multiples of the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4). Others are random numbers.

    Args:
        name: An image's path below the root, or a group's name.
        seed: Other seeds give other places.

    >>> [round(place(f"cat/{number}.jpg", seed=0), 2) for number in range(1, 5)]
    [0.75, 0.37, 0.98, 0.6]
    """
    before, number, after = _LAST_NUMBER.fullmatch(name).groups()  # type: ignore[union-attr]
    text = f"{seed}\0{before}\0{after}".encode(errors="surrogateescape")
    start = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return (start + int(number or 0) * _GOLDEN) % 2**64 / 2**64


_LAST_NUMBER = re.compile(r"(.*?)(\d*)(\D*)", re.DOTALL)
_GOLDEN = round(_GOLDEN_RATIO * 2**64)


def split_samples(listing: SampleIndex, val_size: float, test_size: float, seed: int) -> SampleIndex:
    """Assign a split to each sample without one, by the place of its name, or of its group's.

    So an added or removed file moves no other. Where a class would have no training image, or a split no image at all,
    the nearest ones are moved. With a training split but no validation split, a part of the training samples is used
    for validation. A test split is made only if no sample has a split.

    Args:
        listing: The samples, with their names.
        val_size: The share of the validation split, 0..1.
        test_size: The share of the test split, 0..1.
        seed: Decides which samples.

    Raises:
        InputError: If the shares leave no training samples, if a split would be empty, or if a group has two splits.
    """
    given = {sample.split for sample in listing.samples}
    shares = {"test": test_size if given == {""} else 0.0, "val": val_size if "val" not in given else 0.0}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise InputError(
            f"data.val_size is {val_size} and data.test_size {test_size}, expected shares, below 1 together"
        )
    samples = _with_their_groups(listing.samples)
    units: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if sample.split in ("", "train"):
            units.setdefault(_key(sample), []).append(i)
    divided = _divide({key: place(key, seed) for key in units}, shares)
    labels = {key: {label for i in members for label in samples[i].labels} for key, members in units.items()}
    _train_on_each_class(divided, labels)
    _fill_empty_splits(divided, labels, [split for split, share in shares.items() if share])
    for key, (split, _) in divided.items():
        for i in units[key]:
            samples[i] = replace(samples[i], split=split)
    found = SampleIndex(samples, listing.class_names)
    for split in ("train", *(split for split, share in shares.items() if share)):
        if units and not found.of[split]:
            count = sum(map(len, units.values()))
            groups = f" in {len(units)} groups" if len(units) < count else ""
            raise InputError(
                f"{count} images{groups} leave none for {split}: give more {'groups' if groups else 'images'}, or "
                f"another {'data.val_size' if split == 'train' else f'data.{split}_size'}"
            )
    return found


def _key(sample: Sample) -> str:
    return sample.group or sample.name or sample.path


def _with_their_groups(samples: Iterable[Sample]) -> list[Sample]:
    """Give samples without a split the one of their group."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.group and sample.split:
            other = first.setdefault(sample.group, sample)
            if other.split != sample.split:
                raise InputError(
                    f"group {sample.group!r} is in two splits: {other.path} in {other.split}, {sample.path} in "
                    f"{sample.split}: give all images of a group the same split, or another group"
                )
    return [
        sample if sample.split or sample.group not in first else replace(sample, split=first[sample.group].split)
        for sample in samples
    ]


def _divide(places: dict[str, float], shares: dict[str, float]) -> dict[str, tuple[str, float]]:
    """The split and the place of each unit: the shares follow each other from 0, the rest is for training."""
    test, both = shares["test"], sum(shares.values())
    return {key: ("test" if at < test else "val" if at < both else "train", at) for key, at in places.items()}


def _train_on_each_class(divided: dict[str, tuple[str, float]], labels: dict[str, set[str]]) -> None:
    """Move the unit with the greatest place to training, for each class that has none there."""
    trained = {label for key, (split, _) in divided.items() if split == "train" for label in labels[key]}
    for label in sorted(set().union(*labels.values()) - trained):
        key = max((at, key) for key, (_, at) in divided.items() if label in labels[key])[1]
        divided[key] = ("train", divided[key][1])


def _fill_empty_splits(divided: dict[str, tuple[str, float]], labels: dict[str, set[str]], wanted: list[str]) -> None:
    """Move a training unit to each split that has none, if possible one whose classes have others."""
    for split in wanted:
        own = {key for key, (current, _) in divided.items() if current == "train"}
        if len(own) < 2 or any(current == split for current, _ in divided.values()):
            continue
        counts = Counter(label for key in own for label in labels[key])
        key = min(own, key=lambda key: (any(counts[label] < 2 for label in labels[key]), divided[key][1], key))
        divided[key] = (split, divided[key][1])


def folds(samples: Sequence[Sample], count: int, seed: int, start: float = 0.0) -> np.ndarray:
    """Assign a fold to each sample by the place of its name, or of its group's, so that other files do not matter.

    Where a fold would have no sample, or none of a class or stratum, the nearest one of a fold with several is moved.

    Args:
        samples: The samples, with their names.
        count: The number of folds, 2 or more.
        seed: Decides which samples.
        start: Where places begin, 0..1: those before it are in the test split.

    Returns:
        (N,) each sample's fold, 0..count-1.
    """
    places = {_key(sample): max(0.0, (place(_key(sample), seed) - start) / (1 - start)) for sample in samples}
    chosen = {key: min(int(at * count), count - 1) for key, at in places.items()}
    kinds: dict[str, set[str]] = {key: {_EVERY} for key in places}
    for sample in samples:
        kinds[_key(sample)].update(filter(None, (*sample.labels, sample.stratum)))
    present = Counter((fold, kind) for key, fold in chosen.items() for kind in kinds[key])
    for kind in sorted(set().union(*kinds.values())):
        for fold in range(count):
            if present[fold, kind]:
                continue
            spare = [key for key, own in chosen.items() if kind in kinds[key] and _is_spare(own, kinds[key], present)]
            if not spare:
                break
            key = min(spare, key=lambda key: (_distance(places[key], (fold + 0.5) / count), key))
            present.subtract((chosen[key], own) for own in kinds[key])
            present.update((fold, own) for own in kinds[key])
            chosen[key] = fold
    return np.array([chosen[_key(sample)] for sample in samples], dtype=np.int64)


_EVERY = ""
"""The kind that each sample is of."""


def _is_spare(fold: int, kinds: set[str], present: Counter[tuple[int, str]]) -> bool:
    """Whether a fold has others of all kinds of a sample."""
    return all(present[fold, kind] > 1 for kind in kinds)


def _distance(first: float, second: float) -> float:
    """Between two places on a circle of length 1."""
    return abs((first - second + 0.5) % 1 - 0.5)


def select_fold(listing: SampleIndex, count: int, fold: int, seed: int, start: float = 0.0) -> SampleIndex:
    """Divide training and validation samples into folds: one for validation, the others for training.

    The test split is unchanged.

    Args:
        listing: The samples, each with a split.
        count: The number of folds, 2 or more.
        fold: The one for validation, 0..count-1.
        seed: Decides which samples.
        start: The share of the test split, if it was made by split_samples, 0..1.

    Raises:
        InputError: If there are fewer samples, or groups, than folds.
    """
    together = [sample for sample in listing.samples if sample.split != "test"]
    units = len({_key(sample) for sample in together})
    if units < count:
        groups = f" in {units} groups" if units < len(together) else ""
        raise InputError(f"data.folds is {count}, and there are only {len(together)} images{groups} to divide")
    places = folds(together, count, seed, start)
    moved = [
        replace(sample, split="val" if place == fold else "train")
        for sample, place in zip(together, places, strict=True)
    ]
    return SampleIndex([*moved, *listing.of["test"]], listing.class_names)
