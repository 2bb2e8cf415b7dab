"""InstanceFolder: images with the boxes and masks of their objects."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cnnlab.data.box_folder import BoxFolder
from cnnlab.errors import InputError

_SIDE = 56
"""Twice the side of a predicted mask, so that regions beside the true box are served too."""


class InstanceFolder(BoxFolder):
    """Images and the boxes and masks of their objects; see BoxFolder.

    Masks are polygons or run lengths in COCO's JSON, or polygons in YOLO's text files.
    """

    kind: ClassVar[str | None] = "instances"
    MASK_SIDE: ClassVar[int] = _SIDE

    def inspect_training(self) -> None:
        """Check that the objects have masks.

        Raises:
            InputError: If an object that is no crowd has none.
        """
        super().inspect_training()
        table = self.table.subset([sample.objects for sample in self.listing.samples])
        lacking = np.ones(len(table.labels), dtype=bool)
        if table.shapes is not None:
            lacking = (np.diff(table.shapes.object_rings) == 0) & (np.diff(table.shapes.object_text) == 0)
        lacking &= ~table.crowd
        if lacking.any():
            first = self.listing.samples[int(table.images()[lacking][0])]
            raise InputError(
                f"{int(lacking.sum()):,} of {len(lacking):,} objects have no mask, the first in {first.name}: add "
                "polygons, or learn boxes only (--model Detection --data BoxFolder)"
            )
