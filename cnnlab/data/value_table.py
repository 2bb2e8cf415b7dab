"""ValueTable: images with one or more values each, from a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch

from cnnlab.data.base import VisionDataModule
from cnnlab.data.center_crop import CenterCropDataModule
from cnnlab.data.files import FixedTargets
from cnnlab.data.listing import read_samples, read_table
from cnnlab.data.samples import Sample, SampleTable
from cnnlab.errors import InputError, nearest

_OTHER_COLUMNS = ("path", "split", "group", "bytes", "sha256", "error")
"""Columns of a table or of a manifest that are not values."""
_FIGURES = ("value_mean", "value_std", "value_levels")
_BINS = 10
"""The number of ranges of the first value; each fold has samples of each range, if there are enough."""
_MOST_LEVELS = 100
_LARGEST = 3.4e38
"""The largest absolute value, about that of float32."""


class ValueTable(CenterCropDataModule):
    """Images and their values: a table with the columns path and those of the values, optionally split and group.

    Without a column split, a fixed split is made; each fold has small and large ones of the first value. Targets are
    (B, V) float32 in the table's own units, NaN if unknown. A checkpoint keeps mean, std and levels, so that a later
    run on other images uses those of the training.

    Args:
        root: The folder that paths in the table start from.
        csv: The table.
        values: The columns of the values: a list, or names separated by commas.
        value_mean: The mean of each value; that of the training images if None.
        value_std: The (population) standard deviation of each value; that of the training images if None.
        value_levels: For each value its possible numbers, ascending, or None. Determined from the data if None: a
            value has levels if all its numbers are integers, with at most 100 distinct ones.
        **kwargs: See CenterCropDataModule.

    Raises:
        InputError: If a column is missing, if a value is missing or not a finite number, if it is the same for
            all training images, or if an argument is out of range.
    """

    kind: ClassVar[str | None] = "values"
    PROVIDES: ClassVar[tuple[str, ...]] = (*VisionDataModule.PROVIDES, "value_names", *_FIGURES)
    RESOLVED: ClassVar[tuple[str, ...]] = ("values", *_FIGURES, *CenterCropDataModule.RESOLVED)

    def __init__(
        self,
        root: str,
        csv: str,
        values: Sequence[str] | str | None = None,
        value_mean: Sequence[float] | None = None,
        value_std: Sequence[float] | None = None,
        value_levels: Sequence[Sequence[int] | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, csv=csv, **kwargs)
        self.table = csv
        self.value_names = self._names(values)
        given = {"value_mean": value_mean, "value_std": value_std, "value_levels": value_levels}
        for name, numbers in given.items():
            if numbers is not None and len(numbers) != len(self.value_names):
                raise InputError(f"data.{name} has {len(numbers)} items, but data.values are {self.value_names}")
        if value_mean is None or value_std is None:
            mean, std = self._training_mean_and_std()
            value_mean, value_std = value_mean or mean, value_std or std
        self.value_mean, self.value_std = list(value_mean), list(value_std)
        if value_levels is None:
            value_levels = [_levels(column) for column in zip(*(sample.values for sample in self.samples), strict=True)]
        self.value_levels = [None if levels is None else list(levels) for levels in value_levels]
        self.hparams["values"] = self.value_names
        self.hparams.update({name: getattr(self, name) for name in given})

    def _names(self, values: Sequence[str] | str | None) -> list[str]:
        names = [name.strip() for name in values.split(",")] if isinstance(values, str) else list(values or ())
        if not names:
            assert self.csv is not None
            found = _value_columns(read_table(self.csv, ("path",))[0])
            raise InputError(
                f"data.values is missing: say which columns of {self.table} are to be learned, such as --data.values "
                f"{found[0] if found else 'NAME'} (it has {', '.join(map(repr, found)) or 'none besides path'})"
            )
        for name in names:
            if name in _OTHER_COLUMNS:
                raise InputError(f"data.values names {name!r}, which is no value: name other columns of {self.table}")
            if names.count(name) > 1:
                raise InputError(f"data.values names {name!r} twice: name each column once")
        return names

    def _training_mean_and_std(self) -> tuple[list[float], list[float]]:
        numbers = self._divided.of["train"].values
        if numbers is None or not len(numbers):
            raise InputError(f"{self.table} has no images for train: {self.split_remedy('train')}")
        for name, column in zip(self.value_names, numbers.T, strict=True):
            if column.min() == column.max():
                raise InputError(
                    f"{self.table}: {name} is {column[0]:g} for all {len(column)} training images, so there is nothing "
                    "to learn: name another column with data.values, or add images with other values"
                )
        return numbers.mean(axis=0).tolist(), numbers.std(axis=0).tolist()

    def list_samples(self) -> list[Sample]:
        """All images, each with its values.

        Raises:
            InputError: If a column is missing, or if a value is missing or not a finite number.
        """
        assert self.csv is not None
        samples = []
        for place, row, sample in read_samples(self.csv, self.root, ("path",)):
            for name in self.value_names:
                if name not in row:
                    near = nearest(name, _value_columns(row))
                    raise InputError(f"{self.table} has no column {name!r} (data.values): {near}")
            values = tuple(_number(row[name], f"{place}: {name} of {row['path']}") for name in self.value_names)
            samples.append(replace(sample, values=values))
        strata = _strata(samples)
        return [replace(sample, stratum=stratum) for sample, stratum in zip(samples, strata, strict=True)]

    def read_annotations(self, samples: SampleTable) -> FixedTargets:
        """The values, (N, V) float32, NaN if unknown."""
        if samples.values is None:
            return FixedTargets(torch.full((len(samples), len(self.value_names)), math.nan))
        return FixedTargets(torch.from_numpy(samples.values).float())

    def level_gap(self) -> str | None:
        """A message about a gap in the levels of a value; None if there is no gap.

        Tasks for ordered levels need levels without gaps.
        """
        for column, (name, levels) in enumerate(zip(self.value_names, self.value_levels, strict=True)):
            for low, high in pairwise(levels or ()):
                if high - low > 1:
                    rows = enumerate((sample.values[column] for sample in self.samples), start=2)
                    line = next((f", line {line}" for line, value in rows if value == high), "")
                    return f"{self.table}{line}: {name} is {high}, but no image has {low + 1}"
        return None

    def split_remedy(self, split: str) -> str:
        """A column of the table, or a share."""
        return f"give {self.table} a column split that names {split}, or none and a share (data.{split}_size)"

    def describe_targets(self) -> str:
        """The names of the values."""
        return f"values: {', '.join(self.value_names)}"

    def describe_training(self) -> str:
        """Range, mean and standard deviation of each value of the training images."""
        columns = zip(*(sample.values for sample in self.listing.of["train"]), strict=True)
        return "training values: " + "; ".join(
            f"{name} {min(numbers):g} to {max(numbers):g}, mean {np.mean(numbers):.4g}, std {np.std(numbers):.4g}"
            for name, numbers in zip(self.value_names, columns, strict=True)
        )

    def target_columns(self, samples: SampleTable) -> dict[str, Iterable[str]]:
        """The values."""
        assert samples.values is not None
        columns = zip(self.value_names, samples.values.T.tolist(), strict=True)
        return {name: [repr(value).removesuffix(".0") for value in column] for name, column in columns}


def _value_columns(row: Mapping[str, str]) -> list[str]:
    return [column for column in row if column and column not in _OTHER_COLUMNS]


def _number(text: str | None, place: str) -> float:
    """Convert a table's text to a number.

    Raises:
        InputError: If it is empty or not a finite number.
    """
    if not (text or "").strip():
        raise InputError(f"{place} is missing: fill it in, or remove the row")
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < _LARGEST:
        raise InputError(f"{place} is {text!r}, expected a finite number: correct it, or remove the row")
    return number


def _levels(numbers: Sequence[float]) -> list[int] | None:
    """The distinct numbers, ascending, if all are integers and they are few; otherwise None."""
    distinct = sorted(set(numbers))
    whole = len(distinct) <= _MOST_LEVELS and all(number.is_integer() for number in distinct)
    return [int(number) for number in distinct] if whole else None


def _strata(samples: Sequence[Sample]) -> list[str]:
    """For each sample, the name of the range of its first value, or of its group's mean.

    The ranges have about the same number of samples.
    """
    of_group: dict[str, list[float]] = {}
    for sample in samples:
        of_group.setdefault(sample.group, []).append(sample.values[0])
    mean = {group: float(np.mean(numbers)) for group, numbers in of_group.items()}
    numbers = np.array([mean[sample.group] if sample.group else sample.values[0] for sample in samples])
    distinct = np.unique(numbers)
    edges = distinct[1:] if len(distinct) <= _BINS else np.unique(np.quantile(numbers, np.arange(1, _BINS) / _BINS))
    return [f"{place:02}" for place in np.searchsorted(edges, numbers, side="right")]
