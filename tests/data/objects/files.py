"""Small sets of images with objects, in the forms in which users have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnlab.data.objects import ObjectListing, list_objects
from cnnlab.errors import InputError

WIDTH, HEIGHT = 80, 40


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int | None = None) -> Path:
    """A gray image of a width and a height, perhaps turned by its Exif tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("L", size, 128).save(path, exif=exif)
    return path


def yolo(root: Path, labels: dict[str, str | None], folder: str = "train") -> Path:
    """images/FOLDER and labels/FOLDER, a label file for each name; None for an absent one."""
    for name, text in labels.items():
        image(root / "images" / folder / f"{name}.png")
        if text is not None:
            write(root / "labels" / folder / f"{name}.txt", text)
    return root


def data_yaml(root: Path, text: str = "train: images/train\nnames: [cell, dust, hair]\n") -> Path:
    """A data.yaml."""
    write(root / "data.yaml", text)
    return root


def coco_image(own: int, name: str) -> dict[str, Any]:
    """An entry of a COCO file's images."""
    return {"id": own, "file_name": name, "width": WIDTH, "height": HEIGHT}


def coco(path: Path, annotations: Sequence[dict[str, Any]], names: Sequence[str] = ("a", "b"), **kwargs: Any) -> None:
    """A COCO file of the images a.png (id 7) and b.png (id 9), and categories 1, 4, 7, ... of these names."""
    content = {
        "images": [
            {"id": own, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for own, n in ((7, "a"), (9, "b"))
        ],
        "categories": [{"id": 1 + 3 * number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"id": 100 + n, "image_id": 7, "category_id": 1, **one} for n, one in enumerate(annotations)],
        **kwargs,
    }
    write(path, json.dumps(content))


def refused(root: Path, *parts: str, **kwargs: Any) -> str:
    """The message of an error, which has these parts, and at most three lines."""
    with pytest.raises(InputError) as error:
        list_objects(root, **kwargs)
    text = str(error.value)
    for part in parts:
        assert part in text, text
    assert text.count("\n") < 3
    return text


def boxes(listing: ObjectListing, name: str) -> list[list[float]]:
    """The boxes of an image in pixels, to four digits."""
    row = next(sample.objects for sample in listing.samples if Path(sample.path).stem == name)
    return [[round(value, 4) for value in box] for box in listing.table.of(row, (HEIGHT, WIDTH)).boxes.tolist()]


def labels(listing: ObjectListing, name: str) -> list[str]:
    """The classes of an image's objects."""
    row = next(sample.objects for sample in listing.samples if Path(sample.path).stem == name)
    return [listing.class_names[label] for label in listing.table.of(row, (HEIGHT, WIDTH)).labels]


def noted(listing: ObjectListing, *parts: str) -> bool:
    """Whether one note has all parts."""
    return any(all(part in note for part in parts) for note in listing.notes)


def bitmap_runs(bitmap: np.ndarray) -> list[int]:
    """The plain runs of a bitmap (H, W), column by column, of pixels outside first."""
    flat = bitmap.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs
