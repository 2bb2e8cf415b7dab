"""Shapes: generated images of circles, squares and triangles with their masks, to try segmentation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cnnlab.data.mask_folder import MaskFolder
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage, palette

CLASSES = ("background", "circle", "square", "triangle")


class Shapes(MaskFolder):
    """Images of one to four shapes on noise; the files in ROOT have the layout of MaskFolder.

    Args:
        root: The folder of the files; they are generated if it is missing.
        images: The number of images for training; a quarter of it for validation and for testing each.
        side: Height and width of the images.
        class_names: The names of background, circle, square and triangle.
        **kwargs: See MaskFolder.

    Raises:
        InputError: If a number is too small, if the folder has other files, or if an argument is out of range.
    """

    def __init__(
        self,
        root: str = "data/shapes",
        images: int = 200,
        side: int = 64,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if images < 4 or side < 16:
            raise InputError(f"data.images is {images} and data.side {side}, expected 4 and 16 or more")
        write_shapes(Path(root), images, side)
        super().__init__(root=root, class_names=class_names or CLASSES, **kwargs)


def write_shapes(root: Path, images: int, side: int) -> None:
    """Write ROOT/images and ROOT/masks, unless they exist; the files are always the same. See Shapes."""
    if root.is_dir():
        found = sorted((root / "images" / "train").glob("*"))
        sides = set(LazyImage(found[0]).size) if found else set()
        if len(found) != images or sides != {side}:
            pixels = f" of {' x '.join(map(str, sorted(sides)))} pixels" if sides else ""
            raise InputError(
                f"{root} has {len(found)} training images{pixels}, not the {images} of {side} that data.images and "
                "data.side ask for: choose another data.root, or remove the folder"
            )
        return
    aside = root.with_name(f".{root.name}.{os.getpid()}")
    for number, (split, count) in enumerate({"train": images, "val": images // 4, "test": images // 4}.items()):
        for folder in ("images", "masks"):
            (aside / folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = draw(np.random.default_rng((number, i)), side)
            Image.fromarray(image).save(aside / "images" / split / f"{i:04}.jpg", quality=95)
            picture = Image.fromarray(mask)
            picture.putpalette(palette(len(CLASSES)).flatten().tolist())
            picture.save(aside / "masks" / split / f"{i:04}.png")
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.rename(root)
    except OSError:
        # Another process has written the same files already.
        shutil.rmtree(aside)
        if not root.is_dir():
            raise


def write_photos(root: Path, images: int, side: int = 64) -> None:
    """Write images of one shape each, in the layout of ImageFolder: ROOT/SPLIT/CLASS/NUMBER.jpg.

    Args:
        root: The folder, which must not exist.
        images: The number of images of each class for training; half of it for validation and for testing each.
        side: Height and width.

    Raises:
        InputError: If the folder exists, or if a number is too small.
    """
    if images < 2 or side < 16:
        raise InputError(f"images is {images} and side {side}, expected 2 and 16 or more")
    if root.exists():
        raise InputError(f"{root} is there already: choose another folder, or remove it")
    for number, (split, count) in enumerate({"train": images, "val": images // 2, "test": images // 2}.items()):
        for kind, name in enumerate(CLASSES[1:], start=1):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image, _ = draw(np.random.default_rng((number, kind, i)), side, [kind])
                Image.fromarray(image).save(folder / f"{i:04}.jpg", quality=95)


def draw(
    generator: np.random.Generator, side: int, kinds: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (side, side, 3) uint8 and its mask (side, side) uint8, with background 0.

    Args:
        generator: Decides on kinds, places, sizes and colors.
        side: Height and width.
        kinds: The classes of the shapes; one to four of any kind if None.
    """
    picture = Image.fromarray(generator.integers(0, 90, (side, side, 3), dtype=np.uint8))
    mask = Image.new("L", (side, side))
    drawn = range(int(generator.integers(1, 5))) if kinds is None else kinds
    for asked in drawn:
        kind = int(generator.integers(1, len(CLASSES))) if kinds is None else asked
        radius = generator.uniform(0.1, 0.25) * side
        x, y = generator.uniform(radius, side - radius, 2)
        color = tuple(int(level) for level in generator.integers(90, 256, 3))
        for image, fill in ((picture, color), (mask, kind)):
            pen = ImageDraw.Draw(image)
            box = (x - radius, y - radius, x + radius, y + radius)
            if kind == 1:
                pen.ellipse(box, fill=fill)
            elif kind == 2:
                pen.rectangle(box, fill=fill)
            else:
                pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    noise = generator.normal(0, 12, (side, side, 3))
    return (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8), np.asarray(mask)
