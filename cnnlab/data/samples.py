"""Sample and SampleTable: image files with their targets, splits and groups, packed, so that a million take little."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from cnnlab.data.packed import Codes, Rows, Strings

SPLITS = ("train", "val", "test")
_CODES = ("", *SPLITS)
_ELSEWHERE = "\0"
"""Begins the text of a file that is not below the root, which then is its whole path."""


@dataclass(frozen=True)
class Sample:
    """An image file and its targets, split and group."""

    path: str
    labels: tuple[str, ...] = ()
    """The names of its classes: one, or any number with multi-label data."""
    split: str = ""
    """train, val or test; "" if it has not been decided."""
    group: str = ""
    """Samples of a group (a patient, a scene) stay in one split."""
    mask: str = ""
    """The file of its mask, if it has one."""
    values: tuple[float, ...] = ()
    """Its values, if it has any."""
    stratum: str = ""
    """Each fold has samples of each stratum and of each class, if there are enough."""
    name: str = ""
    """Its path below the root, with "/": a run knows it by this name, wherever the root lies."""
    objects: int = -1
    """Its row in the table of its objects, if it has one: see objects.ObjectTable."""


class Paths(Sequence[str]):
    """The paths of files below a root.

    Args:
        root: The folder.
        files: What follows it in each path; or the whole path of a file elsewhere, after a zero byte.
    """

    def __init__(self, root: str, files: Strings) -> None:
        self.root = root
        self.start = "" if root == os.curdir else os.path.join(root, "")  # noqa: PTH118
        self.files = files

    @classmethod
    def of(cls, root: str, paths: Iterable[str]) -> Paths:
        """Pack paths."""
        own = cls(root, Strings.of(()))
        start = own.start
        own.files = Strings.of(
            path[len(start) :] if path.startswith(start) else f"{_ELSEWHERE}{path}" for path in paths
        )
        return own

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        """The paths of several lists, all below one root."""
        return cls(parts[0].root, Strings.joined([part.files for part in parts]))

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Paths: ...
    def __getitem__(self, place: int | slice) -> str | Paths:
        if isinstance(place, slice):
            return Paths(self.root, self.files[place])
        return self._whole(self.files[place])

    def __iter__(self) -> Iterator[str]:
        return map(self._whole, self.files)

    def _whole(self, file: str) -> str:
        return file[1:] if file.startswith(_ELSEWHERE) else f"{self.start}{file}"

    def names(self) -> Iterator[str]:
        """Each file's path below the root, with "/"."""
        return map(self._name, self.files)

    def name(self, place: int) -> str:
        """A file's path below the root, with "/".

        >>> Paths.of("photos", ["photos/cat/1.jpg", "other/2.jpg"]).name(1)
        '../other/2.jpg'
        """
        return self._name(self.files[place])

    def _name(self, file: str) -> str:
        if file.startswith((_ELSEWHERE, os.sep)):
            file = os.path.relpath(file.removeprefix(_ELSEWHERE), self.root)
        return file.replace(os.sep, "/")

    def mapped(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Paths:
        """The same paths: see Strings.mapped."""
        return Paths(self.root, self.files.mapped(function))

    def take(self, rows: Rows) -> Paths:
        """The paths of these rows."""
        return Paths(self.root, self.files.take(rows))


_Column = TypeVar("_Column")
_Value = TypeVar("_Value", bound=Hashable)


@dataclass(eq=False)
class SampleTable(Sequence[Sample]):
    """Samples, a column for each of their fields: some ten bytes each beside their paths.

    It is a sequence of Sample, which are made when they are asked for; whatever goes over all of them uses the columns.
    """

    paths: Paths
    splits: npt.NDArray[np.uint8]
    """(N,), the place of each split in ("", "train", "val", "test")."""
    labels: Codes[tuple[str, ...]] | None = None
    groups: Codes[str] | None = None
    strata: Codes[str] | None = None
    masks: Strings | None = None
    values: npt.NDArray[np.float64] | None = None
    """(N, V)."""
    objects: npt.NDArray[np.int64] | None = None
    """(N,)."""

    @classmethod
    def of(cls, samples: Sequence[Sample], root: str | os.PathLike[str] = os.curdir) -> SampleTable:
        """Pack samples, all of which have the same number of values.

        Args:
            samples: The samples; their names are made of their paths.
            root: The folder that names are relative to.
        """
        if isinstance(samples, SampleTable):
            return samples

        def column(used: bool, make: Callable[[], _Column]) -> _Column | None:
            return make() if used else None

        def some(name: str) -> bool:
            return any(getattr(sample, name) for sample in samples)

        return cls(
            Paths.of(os.fspath(root), (sample.path for sample in samples)),
            np.array([_CODES.index(sample.split) for sample in samples], np.uint8),
            column(some("labels"), lambda: Codes.of(sample.labels for sample in samples)),
            column(some("group"), lambda: Codes.of(sample.group for sample in samples)),
            column(some("stratum"), lambda: Codes.of(sample.stratum for sample in samples)),
            column(some("mask"), lambda: Strings.of(sample.mask for sample in samples)),
            column(some("values"), lambda: np.array([sample.values for sample in samples], np.float64)),
            column(
                any(sample.objects >= 0 for sample in samples),
                lambda: np.array([sample.objects for sample in samples], np.int64),
            ),
        )

    def __len__(self) -> int:
        return len(self.splits)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> SampleTable: ...
    def __getitem__(self, place: int | slice) -> Sample | SampleTable:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        row = place % len(self)
        return self._sample(row, self.paths[row], self.paths.name(row), "" if self.masks is None else self.masks[row])

    def __iter__(self) -> Iterator[Sample]:
        masks = [""] * len(self) if self.masks is None else self.masks
        for row, own in enumerate(zip(self.paths, self.paths.names(), masks, strict=True)):
            yield self._sample(row, *own)

    def _sample(self, row: int, path: str, name: str, mask: str) -> Sample:
        return Sample(
            path,
            () if self.labels is None else self.labels[row],
            _CODES[self.splits[row]],
            "" if self.groups is None else self.groups[row],
            mask,
            () if self.values is None else tuple(self.values[row].tolist()),
            "" if self.strata is None else self.strata[row],
            name,
            -1 if self.objects is None else int(self.objects[row]),
        )

    def take(self, rows: Rows) -> SampleTable:
        """The samples of these rows (N,)."""
        rows = np.asarray(rows, dtype=np.int64)

        def of(column: Codes[_Value] | None) -> Codes[_Value] | None:
            return None if column is None else column.take(rows)

        return SampleTable(
            self.paths.take(rows),
            self.splits[rows],
            of(self.labels),
            of(self.groups),
            of(self.strata),
            None if self.masks is None else self.masks.take(rows),
            None if self.values is None else self.values[rows],
            None if self.objects is None else self.objects[rows],
        )

    def mapped(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> SampleTable:
        """The same samples; the arrays of their paths have gone through a function that returns equal ones."""
        return replace(self, paths=self.paths.mapped(function))

    def with_splits(self, splits: npt.NDArray[np.uint8]) -> SampleTable:
        """The same samples with other splits (N,): see SampleTable.splits."""
        return replace(self, splits=splits)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of a split."""
        return np.flatnonzero(self.splits == code_of(split))

    def pairs(self) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The names of all labels, sorted; and the row and the label's place of each sample's labels, (L,) each."""
        if self.labels is None:
            return [], np.zeros(0, np.int64), np.zeros(0, np.int64)
        names = sorted(set(chain.from_iterable(self.labels.values)))
        place = {name: i for i, name in enumerate(names)}
        counts = np.array([len(labels) for labels in self.labels.values], np.int64)
        every = np.array([place[name] for labels in self.labels.values for name in labels], np.int64)
        starts = np.cumsum(counts) - counts
        own = counts[self.labels.numbers]
        rows = np.repeat(np.arange(len(self)), own)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(own) - own, own)
        return names, rows, every[np.repeat(starts[self.labels.numbers], own) + within]


def split_of(code: int) -> str:
    """The split of a number in SampleTable.splits."""
    return _CODES[code]


def code_of(split: str) -> int:
    """The number of a split in SampleTable.splits."""
    return _CODES.index(split)


@dataclass
class SampleIndex:
    """Samples, and the names of the classes in order."""

    samples: Sequence[Sample]
    class_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the user should know of it, such as the files that were left out."""
    layout: str = ""
    """How the files lie, where several ways are possible."""

    @cached_property
    def table(self) -> SampleTable:
        """The samples, packed."""
        return SampleTable.of(self.samples)

    @cached_property
    def of(self) -> dict[str, SampleTable]:
        """The samples by split."""
        return {split: self.table.take(self.table.rows_of(split)) for split in SPLITS}
