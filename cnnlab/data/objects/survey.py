"""What there is to know of the objects of a set before training: counts, sizes, and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.shapes import Floats, Ints
from cnnlab.data.objects.table import ObjectTable
from cnnlab.image_files import listed

_SMALL, _LARGE = 32**2, 96**2
"""COCO's limits of small and large areas, in square pixels."""
_SAME = 0.9
_MANY = 100
"""COCO's metric counts so many detections of an image."""


def survey_objects(
    table: ObjectTable,
    class_names: Sequence[str],
    sizes: npt.ArrayLike,
    input_size: tuple[int, int] | None = None,
    least_side: float = 4.0,
    names: Sequence[str] = (),
) -> list[str]:
    """Lines about the objects of a set, for ``cnnlab data check``.

    Args:
        table: The objects of I images.
        class_names: (K,)
        sizes: (I, 2) the height and width of each upright image; where they are 0, its objects are not measured.
        input_size: Height and width into which images are fitted for the network, keeping their aspect ratio.
        least_side: Objects whose shorter side is below so many pixels in the network's input are counted.
        names: (I,) what the images are called, to name a few.
    """
    own = np.asarray(sizes, np.float64).reshape(-1, 2)
    boxes, known = _in_pixels(table, own)
    if not len(table.labels):
        return [f"no objects in {len(table):,} images"]
    lines = [_describe_classes(table, class_names), *_describe_counts(table, names)]
    areas = _areas(table, boxes)
    lines.append(f"sizes at the images' own resolution: {_describe_sizes(areas[known])}")
    if input_size is not None:
        scales = _scales(own, input_size)[table.images()]
        lines.append(f"sizes at {input_size[1]} x {input_size[0]}: {_describe_sizes((areas * scales**2)[known])}")
        short = ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) * scales < least_side) & known
        if short.any():
            of = _by_class(table.labels[short], class_names)
            lines.append(
                f"warning: {short.sum():,} of {known.sum():,} objects are narrower than {least_side:g} pixels there "
                f"({of}): enlarge data.size, or train on parts of the images"
            )
    lines += _describe_border(table, boxes, own)
    if len(pairs := _overlapping(table, boxes)):
        images = np.unique(table.images()[pairs[:, 0]])
        lines.append(
            f"warning: {len(pairs):,} pairs of one class overlap by more than {_SAME:g} (IoU), perhaps the same object "
            f"twice, in {len(images):,} images{_named(images, names)}"
        )
    return lines


def _describe_classes(table: ObjectTable, class_names: Sequence[str]) -> str:
    crowd = f", {table.crowd.sum():,} of them crowds or ignored" if table.crowd.any() else ""
    return (
        f"{len(table.labels):,} objects in {len(table):,} images{crowd}: {_by_class(table.labels, class_names, True)}"
    )


def _by_class(labels: npt.NDArray[np.int32], class_names: Sequence[str], with_none: bool = False) -> str:
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    shown = [f"{name} {n:,}" for name, n in zip(class_names, counts, strict=True) if n or with_none]
    return listed(shown, most=20)


def _describe_counts(table: ObjectTable, names: Sequence[str]) -> list[str]:
    counts = table.counts
    empty = np.flatnonzero(counts == 0)
    lines = [f"objects in an image: {counts.min()} to {counts.max():,}, median {np.median(counts):g}"]
    if len(empty):
        lines.append(f"{len(empty):,} images have no objects{_named(empty, names)}")
    if len(many := np.flatnonzero(counts > _MANY)):
        lines.append(
            f"{len(many):,} images have more than {_MANY} objects{_named(many, names)}: COCO's metric counts {_MANY} "
            "detections of an image"
        )
    return lines


def _named(images: Ints, names: Sequence[str]) -> str:
    return f" ({listed((names[row] for row in images[:3].tolist()), len(images), 3)})" if names else ""


def _in_pixels(table: ObjectTable, sizes: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(N, 4) boxes in pixels, and (N,) whether their image's size is known."""
    sides = sizes[table.images()]
    known: npt.NDArray[np.bool_] = np.all(sides > 0, axis=1)
    return (table.boxes * np.tile(sides[:, ::-1], 2) if table.relative else table.boxes), known


def _areas(table: ObjectTable, boxes: Floats) -> Floats:
    if table.areas is not None:
        return table.areas
    areas: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _scales(sizes: Floats, input_size: tuple[int, int]) -> Floats:
    scales: Floats = (np.array(input_size) / np.maximum(sizes, 1)).min(axis=1)
    return scales


def _describe_sizes(areas: Floats) -> str:
    small, large = (areas < _SMALL).sum(), (areas >= _LARGE).sum()
    shares = {"small": small, "medium": len(areas) - small - large, "large": large}
    typical = f"; median {np.sqrt(np.median(areas)):.0f} pixels (root of the area)" if len(areas) else ""
    return ", ".join(f"{count / max(len(areas), 1):.0%} {name}" for name, count in shares.items()) + typical


def _describe_border(table: ObjectTable, boxes: Floats, sizes: Floats) -> list[str]:
    sides = sizes[table.images(), ::-1]
    known = (sides > 0).all(axis=1)
    cut = known & ((boxes[:, :2] < 0.5) | (boxes[:, 2:] > sides - 0.5)).any(axis=1)
    return [f"{cut.sum():,} of {known.sum():,} boxes touch their image's border, and may be cut"] if cut.any() else []


def _overlapping(table: ObjectTable, boxes: Floats) -> Ints:
    """(P, 2) the pairs of objects of one image and class whose IoU is high.

    Boxes are sorted by class and left side: a pair of such an IoU begins at nearly the same column.
    """
    wide = boxes[:, 2] - boxes[:, 0]
    area = wide * (boxes[:, 3] - boxes[:, 1])
    units = table.images() * (int(table.labels.max(initial=0)) + 1) + table.labels
    order = np.lexsort((boxes[:, 0], units))
    pairs = []
    active, step = np.arange(len(order)), 1
    while len(active := active[active + step < len(order)]):
        a, b = order[active], order[active + step]
        # Later ones begin further right: beyond a tenth of the width, no IoU is that high.
        near = (units[a] == units[b]) & (boxes[b, 0] - boxes[a, 0] <= (1 - _SAME) * wide[a])
        active, a, b = active[near], a[near], b[near]
        overlap = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
        both = overlap.clip(0).prod(axis=1)
        pairs.append(np.stack([a, b], axis=1)[both > _SAME * (area[a] + area[b] - both)])
        step += 1
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
