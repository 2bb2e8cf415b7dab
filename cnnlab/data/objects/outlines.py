"""Objects that have only a box, where masks are to be learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.listing import ObjectListing
from cnnlab.data.objects.table import ObjectTable
from cnnlab.errors import InputError
from cnnlab.image_files import listed

_BOXES = "or find boxes only, with --config detection"


def require_outlines(found: ObjectListing, root: Path, on_error: Literal["raise", "skip"]) -> ObjectListing:
    """The images whose objects all have an outline; crowds need none.

    An image is left out as a whole: of an object that is left out alone, a network would learn that it is none.

    Args:
        found: The images with their objects.
        root: Their folder, for messages.
        on_error: What to do with images of objects that have only a box: raise, or skip. With skip, they are left out,
            and the notes count them.

    Raises:
        InputError: If some objects have only a box and ``on_error`` is raise, or if no image with objects is left.
    """
    table = found.table
    lacking = np.bincount(table.images()[_lacking(table)], minlength=len(table))
    if not lacking.any():
        return found
    bad = [sample for sample in found.samples if lacking[sample.objects]]
    kept = [sample for sample in found.samples if not lacking[sample.objects]]
    what = f"{lacking.sum():,} of {len(table.labels):,} objects in {len(bad):,} of {len(found.samples):,} images"
    if not any(table.counts[sample.objects] for sample in kept):
        raise InputError(
            f"{root}: {what} have only a box and no outline, so no image with objects is left: add polygons (COCO or "
            f"YOLO), {_BOXES}"
        )
    if on_error == "raise":
        first = lacking[bad[0].objects]
        raise InputError(
            f"{bad[0].path}: {first:,} of its {table.counts[bad[0].objects]:,} objects have only a box and no outline "
            f"(in all, {what}): add polygons, leave such images out with --data.on_error skip, {_BOXES}"
        )
    names = listed([sample.path for sample in bad], most=3)
    note = f"{len(bad):,} images left out, in which {lacking.sum():,} objects have only a box and no outline: {names}"
    ids = found.image_ids
    return replace(
        found,
        samples=[replace(sample, objects=row) for row, sample in enumerate(kept)],
        table=table.subset([sample.objects for sample in kept]),
        notes=[*found.notes, note],
        image_ids=None if ids is None else {sample.path: ids[sample.path] for sample in kept},
    )


def _lacking(table: ObjectTable) -> npt.NDArray[np.bool_]:
    """(N,) which objects have neither a polygon nor run lengths, and are no crowd."""
    if table.shapes is None:
        return ~table.crowd
    none: npt.NDArray[np.bool_] = (np.diff(table.shapes.object_rings) == 0) & (np.diff(table.shapes.object_text) == 0)
    return none & ~table.crowd
