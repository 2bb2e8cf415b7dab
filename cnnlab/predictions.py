"""predictions.csv: its columns, whoever predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

CLASSES = ("index", "path", "target", "label", "name")
"""The columns of classified images; each class's probability comes after them, under its name."""
MASKS = ("index", "path", "mask")
"""The columns of segmented images; the share of the image that each class takes comes after them, under its name."""


def class_row(
    index: int, path: str, target: str, labels: Sequence[int], names: Sequence[str], probabilities: Sequence[float]
) -> list[object]:
    """A classified image.

    Args:
        index: Its place among the images.
        path: Its file, "" where it is none.
        target: The number of its true class (several separated by ";"), "" where it is not known.
        labels: The numbers of the predicted classes.
        names: Their names.
        probabilities: Of each class.
    """
    numbers = ";".join(map(str, labels))
    return [index, path, target, numbers, ";".join(names), *(f"{value:.6g}" for value in probabilities)]


def mask_row(index: int, path: str, mask: Path, classes: npt.NDArray[np.uint8], count: int) -> list[object]:
    """A segmented image: classes (H, W) in 0..count-1, which are written in the file mask."""
    shares = np.bincount(classes.flatten(), minlength=count) / classes.size
    return [index, path, mask, *(f"{share:.6g}" for share in shares)]
