"""The shapes of many objects, packed: polygons and run-length masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Ring = npt.NDArray[np.float32]
Shape = list[Ring] | bytes | None
"""Rings (P, 2) of x and y, COCO's compressed text of a run-length mask, or nothing."""


def starts(counts: npt.ArrayLike) -> Ints:
    """(N + 1,) where each of N packed pieces begins, and the end, from their lengths."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def places(offsets: Ints, indices: Ints) -> Ints:
    """The places of the items of some packed pieces, one piece after the other.

    Args:
        offsets: (N + 1,) where each piece begins.
        indices: (M,) which pieces.

    >>> places(np.array([0, 2, 2, 5]), np.array([2, 0])).tolist()
    [2, 3, 4, 0, 1]
    """
    counts = np.diff(offsets)[indices]
    own = starts(counts)
    return np.arange(own[-1]) + np.repeat(offsets[:-1][indices] - own[:-1], counts)


def as_ring(numbers: Floats) -> Ring:
    """Points (P, 2) of numbers x, y, x, y, ...; a number beyond the range of float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return numbers.reshape(-1, 2).astype(np.float32)


@dataclass(frozen=True)
class Shapes:
    """The shapes of N objects: each has rings, or a run-length mask, or neither."""

    points: npt.NDArray[np.float32]
    """(P, 2) x and y of the points of all rings, in the unit of the boxes."""
    ring_points: Ints
    """(R + 1,) where the points of each ring begin."""
    object_rings: Ints
    """(N + 1,) where the rings of each object begin."""
    text: npt.NDArray[np.uint8]
    """COCO's compressed text of all run-length masks."""
    object_text: Ints
    """(N + 1,) where the text of each object begins."""

    @classmethod
    def pack(cls, shapes: Sequence[Shape]) -> Shapes:
        """Pack the shapes of objects."""
        rings = [ring for shape in shapes if isinstance(shape, list) for ring in shape]
        texts = [shape if isinstance(shape, bytes) else b"" for shape in shapes]
        return cls(
            np.concatenate(rings, dtype=np.float32) if rings else np.zeros((0, 2), np.float32),
            starts([len(ring) for ring in rings]),
            starts([len(shape) if isinstance(shape, list) else 0 for shape in shapes]),
            np.frombuffer(b"".join(texts), np.uint8),
            starts([len(text) for text in texts]),
        )

    @classmethod
    def of_rings(cls, points: Floats, counts: Ints) -> Shapes:
        """Objects with one ring each, or with none.

        Args:
            points: (P, 2) the points of all rings.
            counts: (N,) the points of each object.
        """
        own = counts > 0
        none = np.zeros(len(counts) + 1, np.int64)
        return cls(as_ring(points), starts(counts[own]), starts(own), np.zeros(0, np.uint8), none)

    @classmethod
    def join(cls, parts: Sequence[Shapes]) -> Shapes:
        """The objects of several."""
        return cls(
            np.concatenate([part.points for part in parts]),
            starts(np.concatenate([np.diff(part.ring_points) for part in parts])),
            starts(np.concatenate([np.diff(part.object_rings) for part in parts])),
            np.concatenate([part.text for part in parts]),
            starts(np.concatenate([np.diff(part.object_text) for part in parts])),
        )

    def __len__(self) -> int:
        return len(self.object_rings) - 1

    def of(self, index: int) -> Shape:
        """The shape of an object."""
        first, last = self.object_rings[index : index + 2].tolist()
        if last > first:
            ends = self.ring_points[first : last + 1].tolist()
            return [self.points[a:b] for a, b in pairwise(ends)]
        first, last = self.object_text[index : index + 2].tolist()
        return self.text[first:last].tobytes() if last > first else None

    def take(self, indices: Ints) -> Shapes:
        """The shapes of some objects, in this order."""
        rings = places(self.object_rings, indices)
        return Shapes(
            self.points[places(self.ring_points, rings)],
            starts(np.diff(self.ring_points)[rings]),
            starts(np.diff(self.object_rings)[indices]),
            self.text[places(self.object_text, indices)],
            starts(np.diff(self.object_text)[indices]),
        )

    @property
    def kinds(self) -> tuple[int, int]:
        """How many objects have polygons, and how many run-length masks."""
        return int((np.diff(self.object_rings) > 0).sum()), int((np.diff(self.object_text) > 0).sum())

    def owners(self) -> Ints:
        """(P,) the object of each point."""
        per_object = np.diff(self.ring_points[self.object_rings])
        return np.repeat(np.arange(len(self)), per_object)
