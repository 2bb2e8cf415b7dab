"""Compare lists of objects where rounding decides between objects, because their scores or overlaps nearly tie.

Of two overlapping boxes the one with the higher score stays. If the scores are equal but for rounding, a file may keep
the other box than its network, and both are right. So the network answers several times, each time with numbers that
are changed as much as rounding changes them. An answer that depends on rounding then differs from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.outputs.base import Arrays

Pairs = Callable[[Arrays, Arrays, int], npt.NDArray[np.int64]]
"""(first, second, i): the objects (P, 2) of image i that are the same in two batches."""


def nearest_objects(answers: Sequence[Arrays], found: Arrays, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:
    """Of several answers that are equally right, for each object the one that is nearest to another answer's.

    An object of the first answer is replaced by the same object of another one, if that is nearer. It is left out if
    ``found`` and one of the answers have none. An object that only another answer has is added if ``found`` has it.

    Args:
        answers: Decoded batches with boxes (B, N, 4) and scores (B, N); a score of 0 stands for no object.
        found: The batch that they are to be compared with.
        pairs: Which objects of two batches are the same.

    Returns:
        A batch of such arrays, whose N may differ.
    """
    chosen = [_choose(answers, found, pairs, i) for i in range(len(found["scores"]))]
    most = max(map(len, chosen), default=0)
    arrays = {}
    for name, first in answers[0].items():
        arrays[name] = np.zeros((len(chosen), most, *first.shape[2:]), first.dtype)
        for i, own in enumerate(chosen):
            for place, (answer, number) in enumerate(own):
                arrays[name][i, place] = answers[answer][name][i, number]
    return arrays


def object_distance(boxes: Sequence[npt.NDArray[Any]], scores: Sequence[float]) -> float:
    """The difference of two scores, or of a side of two boxes in shares of the first box, whichever is larger.

    Args:
        boxes: Two boxes (4,), x1, y1, x2, y2.
        scores: Their scores.
    """
    sides = np.maximum(boxes[0][2:] - boxes[0][:2], 1.0)
    apart = np.abs(boxes[0] - boxes[1]) / np.tile(sides, 2)
    return max(float(apart.max()), abs(float(scores[0]) - float(scores[1])))


def _choose(answers: Sequence[Arrays], found: Arrays, pairs: Pairs, i: int) -> list[tuple[int, int]]:
    """The objects of image i, each as the number of its answer and its place there."""
    first, others = answers[0], list(enumerate(answers))[1:]
    wanted = dict(pairs(first, found, i).tolist())
    same = [(k, dict(pairs(first, other, i).tolist())) for k, other in others]

    def nearest(options: Sequence[tuple[int, int]], place: int) -> tuple[int, int]:
        return min(options, key=lambda own: _distance(answers[own[0]], own[1], found, place, i))

    chosen = []
    for place in np.flatnonzero(first["scores"][i]).tolist():
        options = [(0, place), *((k, twins[place]) for k, twins in same if place in twins)]
        if place in wanted:
            chosen.append(nearest(options, wanted[place]))
        elif len(options) == len(answers):
            chosen.append((0, place))
    extra: dict[int, list[tuple[int, int]]] = {}
    for k, twins in same:
        for place, twin in pairs(answers[k], found, i).tolist():
            if place not in twins.values() and twin not in wanted.values():
                extra.setdefault(twin, []).append((k, place))
    return [*chosen, *(nearest(options, twin) for twin, options in extra.items())]


def _distance(first: Arrays, a: int, second: Arrays, b: int, i: int) -> float:
    both = ((first, a), (second, b))
    return object_distance([each["boxes"][i][n] for each, n in both], [each["scores"][i][n] for each, n in both])
