"""Pairs of images and masks, from two folders of the same layout or from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cnnlab.data.listing import Sample, read_samples, split_folders
from cnnlab.errors import InputError
from cnnlab.imaging import list_images

_ENDINGS = ("", "_mask", "_gt", "_label", "_labels")
"""What may follow the image's name in the mask's name."""


def list_pairs(root: Path) -> list[Sample]:
    """List ROOT/images/SPLIT/**/NAME and ROOT/masks/SPLIT/**/NAME, or the same without splits.

    A mask has its image's name, optionally followed by "_mask" or the like, and any image file extension. The split is
    "" if none has been decided.

    Raises:
        InputError: If a folder is missing, if an image has no mask or several, or if there are no images.
    """
    images, masks = root / "images", root / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}: data.root {root} must have the folders images and masks, each with the "
                "folders train, val and test or all files together (or give a table of images and masks: data.csv)"
            )
    stems: dict[Path, list[str]] = {}
    for path in list_images(masks):
        stems.setdefault(path.relative_to(masks).with_suffix(""), []).append(str(path))
    samples: list[Sample] = []
    lacking: list[str] = []
    for split, folder in (split_folders(images, ()) or {"": images}).items():
        for path in list_images(folder):
            stem = path.relative_to(images).with_suffix("")
            candidates = [mask for ending in _ENDINGS for mask in stems.get(stem.with_name(stem.name + ending), ())]
            if len(candidates) > 1:
                raise InputError(f"{path} has several masks, {', '.join(candidates)}: keep one")
            lacking += [] if candidates else [f"{path} (expected as {masks / stem}.png)"]
            samples.append(Sample(str(path), split=split, mask="".join(candidates)))
    if lacking:
        raise InputError(f"{len(lacking)} of {len(samples)} images have no mask: " + ", ".join(lacking[:5]))
    if not samples:
        raise InputError(f"{images} has no images")
    return samples


def list_pair_table(table: Path, root: Path) -> list[Sample]:
    """List the images of a CSV file with the columns path and mask (relative to root), and optionally split and group.

    Raises:
        InputError: If the file or a column is missing, if a row has no mask, or if its split is unknown.
    """
    samples = []
    for place, row, sample in read_samples(table, root, ("path", "mask")):
        if not row["mask"]:
            raise InputError(f"{place}: {row['path']} has no mask")
        samples.append(replace(sample, mask=str(root / row["mask"])))
    return samples
