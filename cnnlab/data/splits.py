"""Splits: which images are for training, validation and test, and folds of cross-validation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.data.samples import Sample, SampleIndex, SampleTable, code_of, split_of
from cnnlab.errors import InputError

_GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, fill 0..1 evenly."""
_NONE, _TRAIN, _VAL, _TEST = map(code_of, ("", "train", "val", "test"))


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
    last = _LAST_NUMBER.search(name)
    start, end = last.span() if last else (0, 0)
    text = f"{seed}\0{name[:start]}\0{name[end:]}".encode(errors="surrogateescape")
    first = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return (first + int(name[start:end] or 0) * _GOLDEN) % 2**64 / 2**64


_LAST_NUMBER = re.compile(r"\d+(?=\D*\Z)")
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
    table = listing.table
    given = {split_of(code) for code in np.unique(table.splits).tolist()}
    shares = {"test": test_size if given == {""} else 0.0, "val": val_size if "val" not in given else 0.0}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise InputError(
            f"data.val_size is {val_size} and data.test_size {test_size}, expected shares, below 1 together"
        )
    splits = _with_their_groups(table)
    rows = np.flatnonzero((splits == _NONE) | (splits == _TRAIN))
    units = _units(table.take(rows))
    places = np.fromiter((place(key, seed) for key in units.keys), np.float64, len(units.keys))
    test, both = shares["test"], sum(shares.values())
    # The shares follow each other from 0, the rest is for training.
    codes = np.where(places < test, _TEST, np.where(places < both, _VAL, _TRAIN)).astype(np.uint8)
    _train_on_each_class(codes, places, units)
    _fill_empty_splits(codes, places, units, [split for split, share in shares.items() if share])
    splits[rows] = codes[units.of_row]
    found = SampleIndex(table.with_splits(splits), listing.class_names)
    for split in ("train", *(split for split, share in shares.items() if share)):
        if len(rows) and not (splits == code_of(split)).any():
            groups = f" in {len(codes)} groups" if len(codes) < len(rows) else ""
            raise InputError(
                f"{len(rows)} images{groups} leave none for {split}: give more {'groups' if groups else 'images'}, or "
                f"another {'data.val_size' if split == 'train' else f'data.{split}_size'}"
            )
    return found


class _Units(NamedTuple):
    """What is divided: groups, and samples without a group."""

    keys: Sequence[str]
    """The name of each, (U,)."""
    of_row: npt.NDArray[np.int64]
    """The unit of each sample, (N,)."""
    names: Sequence[str]
    """The names of all labels, sorted."""
    pairs: npt.NDArray[np.int64]
    """(L, 2), each unit and each label that one of its samples has."""


def _units(samples: SampleTable) -> _Units:
    names, rows, labels = samples.pairs()
    of_row: npt.NDArray[np.int64] = np.arange(len(samples))
    keys: Sequence[str] = list(samples.paths.names())
    if samples.groups is not None and any(samples.groups):
        number: dict[str, int] = {}
        of_row = np.array(
            [number.setdefault(group or name, len(number)) for group, name in zip(samples.groups, keys, strict=True)]
        )
        keys = list(number)
    pairs = np.stack([of_row[rows], labels], axis=1) if len(rows) else np.zeros((0, 2), np.int64)
    return _Units(keys, of_row, names, pairs if len(keys) == len(samples) else np.unique(pairs, axis=0))


def _key(sample: Sample) -> str:
    return sample.group or sample.name or sample.path


def _with_their_groups(table: SampleTable) -> npt.NDArray[np.uint8]:
    """The splits of samples, where those without one get the one of their group."""
    splits = table.splits.copy()
    if table.groups is None:
        return splits
    first: dict[str, int] = {}
    for row, group in enumerate(table.groups):
        if group and splits[row] != _NONE:
            other = first.setdefault(group, row)
            if splits[other] != splits[row]:
                one, two = table[other], table[row]
                raise InputError(
                    f"group {group!r} is in two splits: {one.path} in {one.split}, {two.path} in {two.split}: give all "
                    "images of a group the same split, or another group"
                )
    for row, group in enumerate(table.groups):
        if group in first and splits[row] == _NONE:
            splits[row] = splits[first[group]]
    return splits


def _train_on_each_class(codes: npt.NDArray[np.uint8], places: npt.NDArray[np.float64], units: _Units) -> None:
    """Move the unit with the greatest place to training, for each class that has none there."""
    of_unit, labels = units.pairs.T
    trained = np.unique(labels[codes[of_unit] == _TRAIN])
    for label in np.setdiff1d(np.arange(len(units.names)), trained).tolist():
        if (codes[(own := of_unit[labels == label])] != _TRAIN).all() and len(own):
            codes[max(own.tolist(), key=lambda unit: (places[unit], units.keys[unit]))] = _TRAIN


def _fill_empty_splits(
    codes: npt.NDArray[np.uint8], places: npt.NDArray[np.float64], units: _Units, wanted: list[str]
) -> None:
    """Move a training unit to each split that has none, if possible one whose classes have others."""
    of_unit, labels = units.pairs.T
    for code in map(code_of, wanted):
        own = np.flatnonzero(codes == _TRAIN)
        if len(own) < 2 or (codes == code).any():
            continue
        counts = np.bincount(labels[codes[of_unit] == _TRAIN], minlength=len(units.names))
        alone = np.zeros(len(codes), dtype=bool)
        alone[of_unit[counts[labels] < 2]] = True
        unit = min(own.tolist(), key=lambda unit: (bool(alone[unit]), places[unit], units.keys[unit]))
        codes[unit] = code


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
    table = listing.table
    rows = np.flatnonzero(table.splits != _TEST)
    together = table.take(rows)
    units = len({_key(sample) for sample in together})
    if units < count:
        groups = f" in {units} groups" if units < len(together) else ""
        raise InputError(f"data.folds is {count}, and there are only {len(together)} images{groups} to divide")
    splits = table.splits.copy()
    splits[rows] = np.where(folds(together, count, seed, start) == fold, _VAL, _TRAIN)
    return SampleIndex(table.with_splits(splits), listing.class_names)
