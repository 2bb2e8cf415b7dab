"""Geometry of boxes, (N, 4) as x1, y1, x2, y2 in pixels; NumPy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError

_SEAM = 2.0
"""How far a side that a tile's border has cut may lie from it, in pixels."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def checked(boxes: Any, name: str = "boxes") -> Floats:
    """Boxes (N, 4) as float64.

    Args:
        boxes: N boxes; an empty list is none.
        name: What they are called in a message.

    Raises:
        InputError: They have another shape, or a coordinate is NaN or infinite.
    """
    found = np.asarray(boxes, dtype=np.float64)
    found = found.reshape(0, 4) if found.size == 0 else found
    if found.ndim != 2 or found.shape[1] != 4:
        raise InputError(f"{name} must be N x 4 (x1, y1, x2, y2), not {' x '.join(map(str, found.shape))}")
    for i in np.flatnonzero(~np.isfinite(found).all(axis=1))[:1]:
        raise InputError(f"{name}: number {i} is {found[i].tolist()}; coordinates must be finite")
    return found


def area(boxes: Floats) -> Floats:
    """The area of boxes (N, 4), (N,) square pixels.

    >>> area(np.array([[0.0, 0.0, 2.0, 3.0]])).tolist()
    [6.0]
    """
    found: Floats = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return found


def clip(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Boxes (N, 4) within an image of a size (height, width); those outside have no area then."""
    height, width = size
    return boxes.clip(0, [width, height, width, height])


def pair_iou(first: Floats, second: Floats, crowd: npt.NDArray[np.bool_] | None = None) -> Floats:
    """The intersection over union of pairs of boxes, with the digits of pycocotools.

    Args:
        first: (..., 4) boxes, for example detections.
        second: (..., 4) boxes, for example true ones.
        crowd: (...) Which of the second ones are crowds: there it is the share of the first box that is covered.

    Returns:
        (...) in 0..1; 0 where one of them is empty or inverted.
    """
    # COCO stores sides; start plus side may differ from the end by a rounding.
    sides, others = first[..., 2:] - first[..., :2], second[..., 2:] - second[..., :2]
    ends = np.minimum(first[..., :2] + sides, second[..., :2] + others)
    overlap = (ends - np.maximum(first[..., :2], second[..., :2])).clip(min=0)
    common = overlap[..., 0] * overlap[..., 1]
    own, other = sides[..., 0] * sides[..., 1], others[..., 0] * others[..., 1]
    union = own + other - common
    if crowd is not None:
        union = np.where(crowd, own, union)
    found: Floats = np.divide(common, union, out=np.zeros_like(common), where=common > 0)
    return found


def seam_groups(boxes: Floats, labels: Integers, windows: Floats, iou: float = 0.5) -> list[Integers]:
    """Boxes that are parts of one object, which the border of a tile has cut.

    Two boxes of one class belong together if a side of one lies at the side of its tile, beyond which the other's tile
    goes on, and if they agree where both tiles lie.

    Args:
        boxes: (N, 4).
        labels: (N,).
        windows: (N, 4), the tile of each box.
        iou: The least IoU of the two boxes' parts that lie in both tiles.

    Returns:
        The numbers of each object's boxes, in order; the objects in the order of their first box.
    """
    group = np.arange(len(boxes))
    low, high = np.maximum(windows[:, None], windows)[..., :2], np.minimum(windows[:, None], windows)[..., 2:]
    zones = np.concatenate([low, high], axis=-1)
    near = np.abs(boxes - windows) < _SEAM
    goes_on = np.concatenate(
        [windows[None, :, :2] < windows[:, None, :2], windows[None, :, 2:] > windows[:, None, 2:]], 2
    )
    cut = (near[:, None] & goes_on).any(axis=-1)
    parts = [
        np.concatenate([np.maximum(each[..., :2], low), np.minimum(each[..., 2:], high)], axis=-1)
        for each in (boxes[:, None], boxes[None])
    ]
    whole = ((zones[..., 2:] > zones[..., :2]) & (parts[0][..., 2:] > parts[0][..., :2])).all(axis=-1)
    together = (cut | cut.T) & whole & (labels[:, None] == labels) & (pair_iou(*parts) >= iou)
    for first, second in np.argwhere(together):
        group[group == group[second]] = group[first]
    members: dict[int, list[int]] = {}
    for number, own in enumerate(group.tolist()):
        members.setdefault(own, []).append(number)
    return [np.array(numbers, dtype=np.int64) for numbers in members.values()]


def iou(first: Floats, second: Floats, crowd: npt.NDArray[np.bool_] | None = None) -> Floats:
    """The intersection over union of all pairs of boxes; see pair_iou.

    Args:
        first: (N, 4) boxes.
        second: (M, 4) boxes.
        crowd: (M,) Which of the second ones are crowds.

    Returns:
        (N, M) in 0..1.

    >>> iou(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 9.0, 9.0]])).round(3).tolist()
    [[0.333, 0.049]]
    """
    return pair_iou(first[:, None], second[None], None if crowd is None else crowd[None])


def one_to_one(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of some pairs, best first, that share no member with a better one.

    >>> one_to_one([(0, 5), (1, 5), (1, 6)])
    [(0, 5), (1, 6)]
    """
    kept: dict[int, int] = {}
    taken: set[int] = set()
    for first, second in pairs:
        if first not in kept and second not in taken:
            kept[first] = second
            taken.add(second)
    return list(kept.items())


def matched(
    first: Floats, second: Floats, minimum: float = 0.5, labels: tuple[Integers, Integers] | None = None
) -> Integers:
    """Match two sets of detections of the same image, one to one.

    In falling order of their scores, each of the first ones takes the free one of the second with the largest IoU.

    Args:
        first: (N, 4) boxes in falling order of their scores.
        second: (M, 4) boxes; of equal IoU the earlier one is taken.
        minimum: The smallest IoU of a match, 0..1.
        labels: The classes (N,) and (M,), if only boxes of the same class match.

    Returns:
        (P, 2) int64: an index into the first ones, and one into the second ones.

    >>> same = np.array([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 9.0, 9.0]])
    >>> matched(same, same[::-1]).tolist()
    [[0, 1], [1, 0]]
    """
    values = iou(first, second)
    fits = (values >= minimum) & (values > 0)
    if labels is not None:
        fits &= labels[0][:, None] == labels[1][None]
    i, j = np.nonzero(fits)
    order = np.lexsort((-values[i, j], i))
    kept = one_to_one(zip(i[order].tolist(), j[order].tolist(), strict=True))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def suppress(boxes: Floats, scores: Floats, labels: Integers | None = None, maximum: float = 0.5) -> Integers:
    """Non-maximum suppression: drop each box that overlaps one with a higher score.

    Args:
        boxes: (N, 4).
        scores: (N,); of equal ones the earlier box is kept.
        labels: (N,) classes, if only boxes of the same class suppress each other.
        maximum: Boxes with a larger IoU than this are dropped, as torchvision's nms does.

    Returns:
        (M,) int64, the indices of those that are kept, in falling order of their scores.

    >>> suppress(np.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0]]), np.array([0.5, 0.9])).tolist()
    [1]
    """
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        near = pair_iou(boxes[best], boxes[left]) > maximum
        if labels is not None:
            near &= labels[left] == labels[best]
        left = left[~near]
    return np.array(kept, dtype=np.int64)
