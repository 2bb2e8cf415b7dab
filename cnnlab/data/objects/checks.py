"""The one place where objects are checked, whatever format they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.findings import Findings
from cnnlab.data.objects.reading import RawObjects, Reading
from cnnlab.data.objects.shapes import Floats, Ints, starts
from cnnlab.data.objects.table import ObjectTable

OVERHANG = 1e-3
"""A box may reach so far beyond its image, as a share of the side, and is clipped: rounding does this."""
_NO_SIZE = 1e-6
"""A box has no size if one side is at most this share of the image's."""
_Mask = npt.NDArray[np.bool_]


class _Checker:
    """The objects that are still good, and what was wrong with the others."""

    def __init__(self, reading: Reading) -> None:
        self.raw = reading.objects
        self.good: _Mask = np.ones(len(self.raw.images), np.bool_)
        self._place = reading.place

    def refuse(
        self, bad: _Mask, into: Findings, kind: str, remedy: str, describe: Callable[[int], str] = lambda _: ""
    ) -> None:
        """Leave out objects, and say why.

        Args:
            bad: (N,) which; those that have been left out before do not count.
            into: Where to say it.
            kind: What they are, in the plural.
            remedy: What to do.
            describe: What is said of an object, from its place.
        """
        bad = bad & self.good
        self.good &= ~bad
        images, sources = self.raw.images, self.raw.sources
        texts = (f"{self._place(int(images[n]), int(sources[n]))}: {describe(n)}" for n in np.flatnonzero(bad).tolist())
        into.add(kind, remedy, texts, int(bad.sum()))


def build_table(reading: Reading, removed: Findings) -> ObjectTable:
    """Check the objects of a set, clip them to their images, and pack them.

    Args:
        reading: What was read; its ``findings`` get the objects that are wrong, which the table leaves out.
        removed: Gets the objects that are left out without an error: boxes of zero size, and exact repetitions.
    """
    check = _Checker(reading)
    raw, found = check.raw, reading.findings
    _check_labels(check, reading)
    bad: _Mask = ~np.isfinite(raw.boxes).all(axis=1) | _has_point(raw, lambda points, _: ~np.isfinite(points))
    fix = "write finite numbers"
    check.refuse(bad, found, "objects with numbers that are not finite", fix, lambda n: _shown(raw.boxes[n]))
    _check_rings(check, found)
    with np.errstate(invalid="ignore"):
        widths, heights = raw.boxes[:, 2] - raw.boxes[:, 0], raw.boxes[:, 3] - raw.boxes[:, 1]
    order = "write a positive size" if reading.as_sizes or reading.relative else "write the upper left corner first"
    check.refuse(
        (widths < 0) | (heights < 0),
        found,
        "objects with a negative size",
        order,
        lambda n: f"its box has a width of {widths[n]:g} and a height of {heights[n]:g}",
    )
    sides = _sides(reading)
    _check_inside(check, reading, sides)
    raw = _clipped(raw, sides)
    left = (raw.boxes[:, 2:] - raw.boxes[:, :2]) / np.where(np.isfinite(sides), sides, 1)
    check.refuse(np.any(left <= _NO_SIZE, axis=1), removed, "boxes of zero size", "", lambda n: _shown(raw.boxes[n]))
    again = _repeated(raw, check.good)
    check.refuse(again, removed, "exact repetitions of an object", "", lambda n: _shown(raw.boxes[n]))
    return _pack(reading, raw.take(np.flatnonzero(check.good)))


def _pack(reading: Reading, raw: RawObjects) -> ObjectTable:
    count = len(reading.samples)
    sizes = np.zeros((count, 2), np.int32) if reading.sizes is None else reading.sizes
    return ObjectTable(
        starts(np.bincount(raw.images, minlength=count)),
        raw.labels.astype(np.int32),
        raw.boxes,
        reading.relative,
        raw.crowd,
        raw.areas,
        sizes,
        raw.shapes if raw.shapes is not None and any(raw.shapes.kinds) else None,
        reading.image_ids,
        reading.category_ids,
    )


def _check_labels(check: _Checker, reading: Reading) -> None:
    labels, count = check.raw.labels, len(reading.names)
    check.refuse(
        (labels < 0) | (labels >= count),
        reading.findings,
        "objects of a class without a name",
        "correct the class (the first is 0, and there is none for the background), or add its name",
        lambda n: f"its class is {labels[n]}, but there are {count} names, for 0 to {count - 1}",
    )


def _check_rings(check: _Checker, found: Findings) -> None:
    shapes = check.raw.shapes
    if shapes is None:
        return
    owners = np.repeat(np.arange(len(shapes)), np.diff(shapes.object_rings))
    short = np.zeros(len(shapes), np.bool_)
    short[owners[np.diff(shapes.ring_points) < 3]] = True
    kind = "objects with a polygon of fewer than three points"
    check.refuse(short, found, kind, "give three points or more", lambda _: "a polygon of it has fewer than 3 points")


def _sides(reading: Reading) -> Floats:
    """(N, 2) width and height of each object's image in the unit of its box, infinite where they are not known."""
    if reading.relative:
        return np.ones((len(reading.objects.images), 2))
    if reading.sizes is None:
        return np.full((len(reading.objects.images), 2), np.inf)
    sides = reading.sizes[reading.objects.images, ::-1].astype(np.float64)
    sides[sides == 0] = np.inf
    return sides


def _check_inside(check: _Checker, reading: Reading, sides: Floats) -> None:
    boxes = check.raw.boxes
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - sides) > OVERHANG * sides
    outside = beyond.any(axis=1) | _has_point(
        check.raw, lambda points, own: np.maximum(-points, points - sides[own]) > OVERHANG * sides[own]
    )

    def describe(n: int) -> str:
        (x1, y1, x2, y2), (width, height) = boxes[n].tolist(), sides[n].tolist()
        limits = "0 to 1" if reading.relative else f"the image of {width:g} x {height:g}"
        hint = ""
        if reading.relative and max(x2, y2) > 2:
            hint = " (pixels?)"
        elif reading.as_sizes and x1 < x2 - x1 <= width and y1 < y2 - y1 <= height:
            hint = " (is it written as x1, y1, x2, y2?)"
        return f"its box or polygon goes beyond {limits}: {_shown(boxes[n])}{hint}"

    remedy = "give shares of the image's width and height" if reading.relative else "keep it inside the image"
    check.refuse(outside, reading.findings, "objects that reach out of their image", remedy, describe)


def _has_point(raw: RawObjects, is_bad: Callable[[Floats, Ints], _Mask]) -> _Mask:
    """(N,) whether an object has a bad point.

    Args:
        raw: The objects.
        is_bad: From points (P, 2) and their objects (P,) to (P, 2).
    """
    found = np.zeros(len(raw.images), np.bool_)
    if raw.shapes is not None and len(raw.shapes.points):
        owners = raw.shapes.owners()
        found[owners[is_bad(raw.shapes.points.astype(np.float64), owners).any(axis=1)]] = True
    return found


def _clipped(raw: RawObjects, sides: Floats) -> RawObjects:
    boxes = np.clip(raw.boxes, 0, np.tile(sides, 2))
    shapes = raw.shapes
    if shapes is not None and len(shapes.points):
        points = np.clip(shapes.points, 0, sides[shapes.owners()]).astype(np.float32)
        shapes = type(shapes)(points, shapes.ring_points, shapes.object_rings, shapes.text, shapes.object_text)
    return raw._replace(boxes=boxes, shapes=shapes)


def _repeated(raw: RawObjects, good: _Mask) -> _Mask:
    """(N,) whether an object of the good ones is an earlier one again: image, class, box, crowd and shape."""
    repeated = np.zeros(len(good), np.bool_)
    own = np.flatnonzero(good)
    columns = [raw.images[own], raw.labels[own] * 2 + raw.crowd[own], *(raw.boxes[own] + 0.0).T.view(np.int64)]
    with np.errstate(over="ignore"):
        mixed = np.zeros(len(own), np.uint64)
        for column in columns:
            mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    first, second = order[:-1], order[1:]
    equal = np.ones(len(first), np.bool_)
    for column in columns:
        equal &= column[first] == column[second]
    seen, last = set(), -1
    for a, b in zip(own[first[equal]].tolist(), own[second[equal]].tolist(), strict=True):
        if a != last:  # Another box.
            seen = {_shape_key(raw, a)}
        repeated[b], last = _shape_key(raw, b) in seen, b
        seen.add(_shape_key(raw, b))
    return repeated


def _shown(box: Floats) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"x {x1:.6g} to {x2:.6g}, y {y1:.6g} to {y2:.6g}"


def _shape_key(raw: RawObjects, n: int) -> object:
    """What is equal for equal shapes."""
    shape = None if raw.shapes is None else raw.shapes.of(n)
    return tuple(ring.tobytes() for ring in shape) if isinstance(shape, list) else shape
