"""Mask files: which belongs to which image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cnnlab import tree
from cnnlab.data.listing import read_samples, split_folders
from cnnlab.data.samples import Sample, SampleIndex
from cnnlab.errors import InputError
from cnnlab.image_files import LeftOut, check_name, list_images, listed, subfolders, without_ending

_ENDINGS = ("", "_mask", "_gt", "_label", "_labels")
"""What may follow the image's name in the mask's name."""
_IMAGE_FOLDERS = ("images", "image")
_MASK_FOLDERS = ("masks", "mask", "labels", "label")


class _Place(NamedTuple):
    """Where the images and the masks of a split are; the same folder if masks lie beside their images."""

    split: str
    images: Path
    masks: Path


def list_pairs(root: Path, skip: bool = False) -> SampleIndex:
    """List images and their masks.

    They are in ROOT/images/SPLIT/** and ROOT/masks/SPLIT/**, in ROOT/SPLIT/images/** and ROOT/SPLIT/masks/** (masks may
    be called labels), or beside each other in ROOT/SPLIT/**, as NAME and NAME_mask; or the same without splits. A mask
    has its image's name, optionally followed by "_mask" or the like, and any image file extension.

    Args:
        root: The folder.
        skip: Whether an image without a mask is listed without one, and a mask without an image is only noted.

    Raises:
        InputError: If there are no such folders, if an image has several masks, if no image has one, or, without
            ``skip``, if an image has no mask or a mask has no image.
    """
    places, notes, layout = _places(root)
    samples: list[Sample] = []
    lacking: list[str] = []
    unused: list[str] = []
    left_out = LeftOut()
    for place in places:
        images, masks = _files(place, left_out)
        for path in images:
            stem = without_ending(path).relative_to(place.images)
            candidates = [mask for ending in _ENDINGS for mask in masks.pop(stem.with_name(stem.name + ending), ())]
            if len(candidates) > 1:
                raise InputError(f"{path} has several masks, {', '.join(candidates)}: keep one")
            if not candidates:
                own = "_mask" if place.images == place.masks else ""
                lacking.append(f"{path} (expected as {place.masks / stem}{own}.png)")
            samples.append(Sample(str(path), split=place.split, mask="".join(candidates)))
        unused += [mask for paths in masks.values() for mask in paths]
    notes += [f"{root}: {left_out}"] if left_out else []
    if not samples:
        raise InputError(f"{places[0].images} has no images" + (f" ({left_out})" if left_out else ""))
    trouble = [f"{len(lacking)} of {len(samples)} images have no mask: {listed(lacking)}"] if lacking else []
    trouble += [f"{len(unused)} masks have no image: {listed(unused)}"] if unused else []
    if len(lacking) == len(samples):
        raise InputError("; ".join(trouble) + ": call each mask like its image")
    if trouble and not skip:
        raise InputError("; ".join(trouble) + ": add what is missing, or leave them out with --data.on_error skip")
    return SampleIndex(samples, notes=[*notes, *trouble], layout=layout)


def has_masks(root: Path) -> bool:
    """Whether there are masks in a layout of list_pairs."""
    try:
        return bool(_places(root))
    except InputError:
        return False


def _places(root: Path) -> tuple[list[_Place], list[str], str]:
    """The places of images and masks; notes about other folders; and the layout, unless it is the first one."""
    if not tree.is_dir(root):
        raise InputError(f"there is no folder {root}: name the one that holds images and masks with --data.root")
    if (pair := _two_folders(root)) is not None:
        images, masks = pair
        found, notes = split_folders(images)
        of_masks, _ = split_folders(masks) if found else ({}, [])
        default = masks if not of_masks else None
        places = [
            _Place(split, folder, of_masks.get(split, default or masks / folder.name))
            for split, folder in found.items()
        ]
        return places or [_Place("", images, masks)], notes, ""
    found, notes = split_folders(root)
    inside = {split: _two_folders(folder) for split, folder in found.items()}
    if any(inside.values()):
        if lacking := [found[split] for split, pair in inside.items() if pair is None]:
            raise InputError(f"{lacking[0]} must have the folders images and masks, as the other splits")
        places = [_Place(split, *pair) for split, pair in inside.items() if pair is not None]
        return places, notes, f"{root}: each split has {places[0].images.name} and {places[0].masks.name}"
    places = [_Place(split, folder, folder) for split, folder in found.items()] or [_Place("", root, root)]
    if not any(_files(place, LeftOut())[1] for place in places):
        raise InputError(
            f"data.root {root} must have the folders images and masks, each with the folders train, val and test or "
            "all files together (or train/images and train/masks, NAME.png and NAME_mask.png, COCO files such as "
            "train.json; or give a table of images and masks: data.csv)"
        )
    return places, notes, f"{root}: masks are beside their images, as NAME_mask"


def _two_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks in a folder, in upper or lower case; None unless there are both."""
    found = []
    for names in (_IMAGE_FOLDERS, _MASK_FOLDERS):
        there = [root / name for name in subfolders(root) if name.lower() in names]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1]}: it is not clear which one counts; rename the other")
        found += there
    return (found[0], found[1]) if len(found) == 2 else None


def _files(place: _Place, left_out: LeftOut) -> tuple[list[Path], dict[Path, list[str]]]:
    """The images of a place, and its masks by their relative paths without ending."""
    images = list_images(place.images, left_out)
    if place.images != place.masks:
        masks = list_images(place.masks, left_out) if tree.is_dir(place.masks) else []
    else:
        masks = [path for path in images if without_ending(path).name.endswith(_ENDINGS[1:])]
        images = [path for path in images if not without_ending(path).name.endswith(_ENDINGS[1:])]
    by_stem: dict[Path, list[str]] = {}
    for path in masks:
        by_stem.setdefault(without_ending(path).relative_to(place.masks), []).append(str(path))
    return images, by_stem


def list_pair_table(table: Path, root: Path, skip: bool = False) -> SampleIndex:
    """List the images of a CSV file with the columns path and mask (relative to root), and optionally split and group.

    Args:
        table: The file.
        root: The folder that its paths start from.
        skip: Whether an image without a mask is listed without one.

    Raises:
        InputError: If the file or a column is missing, if a row has no mask (without ``skip``), or if its split is
            unknown.
    """
    samples = []
    for place, row, sample in read_samples(table, root, ("path", "mask")):
        if not row["mask"] and not skip:
            raise InputError(f"{place}: {row['path']} has no mask")
        check_name(row["mask"])
        samples.append(replace(sample, mask=str(root / row["mask"]) if row["mask"] else ""))
    return SampleIndex(samples)
