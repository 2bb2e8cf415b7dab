"""Compare lists of objects where rounding decides between objects, because their scores or overlaps nearly tie.

Of two overlapping boxes the one with the higher score stays. If the scores are equal but for rounding, a file may keep
the other box than its network, and both are right. So the network answers several times, each time with numbers that
are changed as much as rounding changes them. An answer that depends on rounding then differs from time to time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.boxes import iou
from cnnlab.outputs.base import Arrays

_SAME = 1e-3
"""The largest distance of two objects that are the same but for rounding: see object_distances."""


def nearest_objects(answers: Sequence[Arrays], found: Arrays, nms: float) -> dict[str, npt.NDArray[Any]]:
    """Of several answers that are equally right, for each object the one that is nearest to another answer's.

    Each object of ``found`` is replaced by the nearest one of any answer, if that is the same but for rounding; but not
    if it overlaps a better one more than objects of an answer may. Objects that all answers have, and ``found`` lacks,
    are added. So the result equals ``found`` if and only if rounding explains all that is in it, and all that is not.

    Args:
        answers: Decoded batches with boxes (B, N, 4), scores (B, N) and labels (B, N); a score of 0 stands for no
            object.
        found: The batch that they are to be compared with.
        nms: The largest IoU of two boxes of one class.

    Returns:
        A batch of such arrays, whose N may differ.
    """
    chosen = [_choose(answers, found, nms, i) for i in range(len(found["scores"]))]
    most = max(map(len, chosen), default=0)
    arrays = {}
    for name, first in answers[0].items():
        arrays[name] = np.zeros((len(chosen), most, *first.shape[2:]), first.dtype)
        for i, own in enumerate(chosen):
            for place, (answer, number) in enumerate(own):
                arrays[name][i, place] = answers[answer][name][i, number]
    return arrays


def object_distances(first: Arrays, second: Arrays) -> npt.NDArray[np.float64]:
    """How far the objects of one image are from those of another, (N, M); infinite between different classes.

    It is the difference of the scores, or of a side of the boxes in shares of the first box, whichever is larger.

    Args:
        first: boxes (N, 4), x1, y1, x2, y2; scores (N,); labels (N,).
        second: The same of M objects.
    """
    boxes = first["boxes"].astype(np.float64)
    sides = np.tile(np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0), 2)
    apart = (np.abs(boxes[:, None] - second["boxes"]) / sides[:, None]).max(axis=2)
    scores = np.abs(first["scores"][:, None].astype(np.float64) - second["scores"])
    same = first["labels"][:, None] == second["labels"]
    return np.where(same, np.maximum(apart, scores), np.inf)


def _choose(answers: Sequence[Arrays], found: Arrays, nms: float, i: int) -> list[tuple[int, int]]:
    """The objects of image i, each as the number of its answer and its place there."""
    own, given = _of_image(found, i), [_of_image(answer, i) for answer in answers]
    most = max([nms, *(_overlaps(one).max(initial=0.0) for one in given)])
    doubled = (_overlaps(own) > most + _SAME).any(axis=0)
    distances = [object_distances(own, one) for one in given]
    places = [(k, place) for k, one in enumerate(given) for place in range(len(one["scores"]))]
    every = np.concatenate(distances, axis=1)
    chosen = [
        places[row.argmin()] for row, twice in zip(every, doubled, strict=True) if not twice and _least(row) <= _SAME
    ]
    always = np.all([_least(object_distances(given[0], one)) <= _SAME for one in given], axis=0)
    missing = always & ~(_least(distances[0].T) <= _SAME)
    return [*chosen, *((0, place) for place in np.flatnonzero(missing).tolist())]


def _least(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The distance of the nearest object; infinite if there are none."""
    found: npt.NDArray[np.float64] = distances.min(axis=-1, initial=np.inf)
    return found


def _overlaps(own: Arrays) -> npt.NDArray[np.float64]:
    """The IoU of each object with later ones of its class, (N, N); 0 for others."""
    boxes = own["boxes"].astype(np.float64)
    return np.triu(iou(boxes, boxes) * (own["labels"][:, None] == own["labels"]), 1)


def _of_image(arrays: Arrays, i: int) -> dict[str, npt.NDArray[Any]]:
    """The objects of image i, whose places do not change, because those with a score of 0 come last."""
    there = arrays["scores"][i] != 0
    return {name: arrays[name][i][there] for name in ("boxes", "scores", "labels")}
