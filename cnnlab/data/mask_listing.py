"""Which image has which mask: from two folders of the same layout, or from a table."""

from __future__ import annotations

from pathlib import Path

from cnnlab.data.listing import Sample, read_table, sample_of, split_folders
from cnnlab.errors import InputError
from cnnlab.imaging import list_images

_ENDINGS = ("", "_mask", "_gt", "_label", "_labels")
"""What a mask's name may have after its image's."""


def list_pairs(root: Path) -> tuple[list[Sample], dict[str, str]]:
    """List ROOT/images/SPLIT/**/NAME and ROOT/masks/SPLIT/**/NAME, or the same without splits.

    A mask has its image's name, perhaps with "_mask" or the like behind it, and any ending of an image.

    Args:
        root: The folder.

    Returns:
        The images, each with its split, "" where none has been decided; the mask of each image, by the image's path.

    Raises:
        InputError: If a folder is absent, or if an image has no mask, or several.
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
    found: dict[str, str] = {}
    lacking: list[str] = []
    for split, folder in (split_folders(images, ()) or {"": images}).items():
        for path in list_images(folder):
            stem = path.relative_to(images).with_suffix("")
            candidates = [mask for ending in _ENDINGS for mask in stems.get(stem.with_name(stem.name + ending), ())]
            if len(candidates) > 1:
                raise InputError(f"{path} has several masks, {', '.join(candidates)}: keep one")
            lacking += [] if candidates else [f"{path} (expected as {masks / stem}.png)"]
            found |= {str(path): mask for mask in candidates}
            samples.append(Sample(str(path), (), split))
    if lacking:
        raise InputError(f"{len(lacking)} of {len(samples)} images have no mask: " + ", ".join(lacking[:5]))
    if not samples:
        raise InputError(f"{images} has no images")
    return samples, found


def list_pair_table(table: Path, root: Path) -> tuple[list[Sample], dict[str, str]]:
    """List the images of a CSV file with the columns path and mask, and perhaps split and group.

    Args:
        table: The file.
        root: What relative paths start from.

    Returns:
        As list_pairs does.

    Raises:
        InputError: If the file or a column is absent, or if a row has no mask, or a strange split.
    """
    samples = []
    found = {}
    for line, row in enumerate(read_table(table, ("path", "mask")), start=2):
        place = f"{table}, line {line}"
        if not row["mask"]:
            raise InputError(f"{place}: {row['path']} has no mask")
        sample = sample_of(row, (), root, place)
        samples.append(sample)
        found[sample.path] = str(root / row["mask"])
    return samples, found
