"""InstanceFolder: images with the boxes and masks of their objects."""

from __future__ import annotations

from typing import ClassVar

from cnnlab.data.box_folder import BoxFolder
from cnnlab.data.objects.listing import ObjectListing
from cnnlab.data.objects.outlines import require_outlines

_SIDE = 56
"""Twice the side of a predicted mask, so that regions beside the true box are served too."""


class InstanceFolder(BoxFolder):
    """Images and the boxes and masks of their objects; see BoxFolder.

    Masks are polygons or run lengths in COCO's JSON, or polygons in YOLO's text files. An object that has only a box,
    and is no crowd, is an error; with ``on_error`` skip, its image is left out.
    """

    kind: ClassVar[str | None] = "instances"
    MASK_SIDE: ClassVar[int] = _SIDE

    def usable(self, found: ObjectListing) -> ObjectListing:
        """The images whose objects have masks.

        Raises:
            InputError: If an object that is no crowd has none, see require_outlines.
        """
        return require_outlines(found, self.root, self.hparams["on_error"])
