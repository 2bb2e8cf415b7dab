"""Columns of large tables: Strings are many texts in one buffer, Codes are values of which many are equal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
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

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Strings: ...
    def __getitem__(self, place: int | slice) -> str | Strings:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
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

    def __getitem__(self, row: int) -> _Value:
        return self.values[int(self.numbers[row])]

    def __iter__(self) -> Iterator[_Value]:
        return map(self.values.__getitem__, self.numbers.tolist())

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Rows) -> Codes[_Value]:
        """The values of these rows."""
        return Codes(self.values, self.numbers[rows])
