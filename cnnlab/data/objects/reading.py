"""What a reader of annotations finds, whatever their format: the raw objects, before they are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.findings import Findings
from cnnlab.data.objects.shapes import Floats, Ints, Shape, Shapes
from cnnlab.data.samples import Sample


class RawObjects(NamedTuple):
    """N objects as files give them, in the order of their images."""

    images: Ints
    """(N,) the row of each object's image."""
    labels: Ints
    """(N,) the number of its class in the data's own names; any number may stand in a file."""
    boxes: Floats
    """(N, 4) x1, y1, x2, y2; any number may stand in a file."""
    crowd: npt.NDArray[np.bool_]
    """(N,)"""
    areas: Floats | None
    """(N,) see ObjectTable."""
    shapes: Shapes | None
    sources: Ints
    """(N,) a line's number or an annotation's id: see Reading.place."""

    @classmethod
    def join(cls, parts: Sequence[RawObjects]) -> RawObjects:
        """The objects of several, which have no areas."""
        columns = [np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)]
        sources = np.concatenate([part.sources for part in parts])
        with_shapes = [part.shapes for part in parts if part.shapes is not None]
        shapes = Shapes.join(with_shapes) if len(with_shapes) == len(parts) else None
        return cls(columns[0], columns[1], columns[2], columns[3], None, shapes, sources)

    def take(self, objects: Ints) -> RawObjects:
        """Some of the objects, in this order."""
        images, labels, boxes, crowd, areas, shapes, sources = self
        return RawObjects(
            images[objects],
            labels[objects],
            boxes[objects],
            crowd[objects],
            None if areas is None else areas[objects],
            None if shapes is None else shapes.take(objects),
            sources[objects],
        )


@dataclass
class ObjectList:
    """Collects objects one by one, for formats that are read so."""

    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def pack(self) -> RawObjects:
        """The objects, in the order of their images."""
        order = np.argsort(np.array(self.images, np.int64), kind="stable")
        return RawObjects(
            np.array(self.images, np.int64),
            np.array(self.labels, np.int64),
            np.array(self.boxes, np.float64).reshape(-1, 4),
            np.array(self.crowd, np.bool_) if self.crowd else np.zeros(len(self.images), np.bool_),
            np.array(self.areas, np.float64) if self.areas else None,
            Shapes.pack(self.shapes) if any(shape is not None for shape in self.shapes) else None,
            np.array(self.sources, np.int64),
        ).take(order)


@dataclass
class Reading:
    """The images and raw objects of a set."""

    samples: list[Sample]
    """The images; a sample's place here is its row."""
    names: list[str]
    """The classes, in the data's own order."""
    layout: str
    """The format, and how the files lie."""
    objects: RawObjects
    place: Callable[[int, int], str]
    """Where an object stands, from its image's row and its source: "labels/a.txt, line 3"."""
    names_are_listed: bool = True
    """Whether the data list their classes; otherwise the names are those that occur, in alphabetical order."""
    relative: bool = False
    """See ObjectTable."""
    as_sizes: bool = False
    """Whether files give a box as its upper left corner and its size."""
    sizes: npt.NDArray[np.int32] | None = None
    """(I, 2) see ObjectTable; None if the format does not say."""
    image_ids: tuple[int | str, ...] | None = None
    category_ids: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    """What the reader itself has found."""
    unusable: set[int] = field(default_factory=set)
    """The rows of images that are missing, or whose annotations cannot be read."""
