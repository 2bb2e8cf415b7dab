"""Columns of large tables: Strings are many texts in one buffer, Codes are values of which many are equal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

_Value = TypeVar("_Value", bound=Hashable)
Rows = npt.NDArray[np.integer[Any]]
_AT_ONCE = 65_536
"""Texts that are packed or unpacked together."""
_CODING = "utf-8", "surrogateescape"


class Strings(Sequence[str]):
    """Texts in one buffer. Others of the same texts, in any order, share the buffer.

    Args:
        buffer: The bytes of all texts, UTF-8, (S,) uint8.
        ends: Where each text ends, (M,) int64; it begins at the end of the one before.
        rows: Which of the texts these are, (N,) int32; all of them if None.
    """

    def __init__(
        self,
        buffer: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.buffer = buffer
        self.ends = ends
        self._rows = rows

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Pack texts."""
        buffer, lengths, reader = bytearray(), [np.zeros(0, np.int64)], iter(texts)
        while some := [text.encode(*_CODING) for text in islice(reader, _AT_ONCE)]:
            buffer += b"".join(some)
            lengths.append(np.fromiter(map(len, some), np.int64, len(some)))
        return cls(np.frombuffer(buffer, np.uint8), np.cumsum(np.concatenate(lengths)))

    @classmethod
    def joined(cls, parts: Sequence[Strings]) -> Strings:
        """The texts of several lists that were packed with of()."""
        starts = np.cumsum([0, *(len(part.buffer) for part in parts)]).tolist()
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.buffer for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends if self._rows is None else self._rows)

    def filled(self) -> npt.NDArray[np.bool_]:
        """Whether each text has any characters, (N,)."""
        found = np.diff(self.ends, prepend=0) > 0
        return found if self._rows is None else found[self._rows]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Strings: ...
    def __getitem__(self, place: int | slice) -> str | Strings:
        if isinstance(place, slice):
            return self.take(np.arange(*place.indices(len(self))))
        row = range(len(self))[place] if self._rows is None else int(self._rows[place])
        start = int(self.ends[row - 1]) if row else 0
        return str(self.buffer[start : self.ends[row]].tobytes(), *_CODING)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            rows = np.arange(len(self))[some] if self._rows is None else self._rows[some]
            stops = self.ends[rows]
            starts = np.where(rows > 0, self.ends[rows - 1], 0)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield str(self.buffer[start:stop].data, *_CODING)

    def take(self, places: Rows) -> Strings:
        """The texts at these places (N,), of the same buffer."""
        rows = places if self._rows is None else self._rows[places]
        return Strings(self.buffer, self.ends, rows.astype(np.int32))

    def mapped(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Strings:
        """The same texts, whose arrays have gone through a function that returns equal ones."""
        rows = None if self._rows is None else function(self._rows)
        return Strings(function(self.buffer), function(self.ends), rows)


def places_in(texts: Strings, wanted: Iterable[str]) -> npt.NDArray[np.int64]:
    """The place of each wanted text among the texts, (N,), the last one if there are several; -1 if there is none."""
    known = np.fromiter(map(hash, texts), np.int64, len(texts))
    order = np.argsort(known, kind="stable")
    known, found, reader = known[order], [np.zeros(0, np.int64)], iter(wanted)
    while some := list(islice(reader, _AT_ONCE)):
        last = np.searchsorted(known, np.fromiter(map(hash, some), np.int64, len(some)), side="right") - 1
        places = order[last] if len(known) else last
        there = texts.take(np.maximum(places, 0)) if len(known) else repeat("\0")
        same = np.fromiter((own == other for own, other in zip(some, there, strict=False)), bool, len(some))
        found.append(np.where(same, places, -1))
    return np.concatenate(found)


class Codes(Generic[_Value]):
    """A column of which many values are equal: each value once, and its number for each row.

    Args:
        values: The values.
        numbers: The place of each row's value among them, (N,) int32.
    """

    def __init__(self, values: Sequence[_Value], numbers: npt.NDArray[np.int32]) -> None:
        self.values = values
        self.numbers = numbers

    @classmethod
    def of(cls, rows: Iterable[_Value]) -> Codes[_Value]:
        """Pack the values of rows."""
        known: dict[_Value, int] = {}
        numbers = np.fromiter((known.setdefault(value, len(known)) for value in rows), np.int32)
        return cls(list(known), numbers)

    @classmethod
    def joined(cls, parts: Iterable[Codes[_Value]]) -> Codes[_Value]:
        """The rows of several columns, one after another."""
        known: dict[_Value, int] = {}
        numbers = [np.zeros(0, np.int32)]
        for part in parts:
            places = [known.setdefault(value, len(known)) for value in part.values]
            numbers.append(np.array(places, np.int32)[part.numbers])
        return cls(list(known), np.concatenate(numbers))

    def __getitem__(self, row: int) -> _Value:
        return self.values[int(self.numbers[row])]

    def __iter__(self) -> Iterator[_Value]:
        return map(self.values.__getitem__, self.numbers.tolist())

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Rows) -> Codes[_Value]:
        """The values of these rows."""
        return Codes(self.values, self.numbers[rows])
