"""How far average precision may be off, because it was measured on these images and not on others."""

from __future__ import annotations

import numpy as np

from cnnlab.tasks.coco import AREAS, RECALLS, THRESHOLDS, Evaluation, Matches, by_class
from cnnlab.tasks.overlaps import Flags, Floats, Integers

_SHARE = 0.95


def map_intervals(evaluation: Evaluation, images: int, repeats: int, seed: int = 0) -> Floats:
    """Intervals of mAP, and of mAP at an IoU of 0.5, by the bootstrap over images (Efron 1979).

    The images are drawn anew, with repetition, as many times as ``repeats`` says; the intervals hold the middle 95 % of
    the scores.

    Args:
        evaluation: The matched detections.
        images: The number of images.
        repeats: How many times, 1 or more.
        seed: Decides on the draws.

    Returns:
        (2, 2): low and high end of mAP, then those of mAP at an IoU of 0.5; NaN without true objects.
    """
    truths, (low, high) = evaluation.truths, AREAS[""]
    counted = ~truths.crowd & (truths.areas >= low) & (truths.areas <= high)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), repeats)
    found = np.full((repeats, len(THRESHOLDS), evaluation.num_classes), np.nan)
    for label, order in by_class(evaluation):
        matches = Matches(*(column[order] for column in evaluation.matches))
        of_class = truths.images[(truths.labels == label) & counted]
        objects = np.bincount(of_class, minlength=images)
        places = evaluation.detections.images[order]
        lanes = [matches.lane(0, threshold) for threshold in range(len(THRESHOLDS))]
        for number, draw in enumerate(draws):
            if positives := int(draw @ objects):
                weights = draw[places]
                found[number, :, label] = [_average(hits, ~left, weights, positives) for hits, left in lanes]
    known = ~np.isnan(found).all(axis=(1, 2))
    if not known.any():
        return np.full((2, 2), np.nan)
    scores = np.stack([np.nanmean(found[known], axis=(1, 2)), np.nanmean(found[known, 0], axis=1)])
    ends: Floats = np.quantile(scores, [(1 - _SHARE) / 2, (1 + _SHARE) / 2], axis=1).T
    return ends


def _average(hits: Flags, counted: Flags, weights: Integers, positives: int) -> float:
    """The average precision of detections (D,) in falling order of their scores, each counted so many times."""
    own = weights * counted
    true, every = np.cumsum(own * hits), np.cumsum(own)
    places = np.flatnonzero(own * hits)
    precision = true[places] / every[places]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(true[places] / positives, RECALLS)].mean())
