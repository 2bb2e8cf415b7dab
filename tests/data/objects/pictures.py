"""Generated images of squares and disks, with their boxes in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("square", "disk")
SIZE = (48, 64)
"""Height and width."""


def write_objects(root: Path, counts: dict[str, int], size: tuple[int, int] = SIZE, crowd: bool = False) -> Path:
    """Write SPLIT/*.png and SPLIT.json, with zero to three objects an image; the ids of the classes are 1 and 3.

    With crowd, the first image of a split has a crowd in its corner.
    """
    for number, (split, count) in enumerate(counts.items()):
        generator = np.random.default_rng(number)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i in range(count):
            pixels = generator.integers(0, 60, (*size, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels)
            pen = ImageDraw.Draw(picture)
            for _ in range(i % 4):
                side = int(generator.integers(8, 24))
                left, top = (int(generator.integers(0, length - side)) for length in (size[1], size[0]))
                kind = int(generator.integers(2))
                draw = pen.ellipse if kind else pen.rectangle
                draw((left, top, left + side - 1, top + side - 1), fill=(230, 200, 60) if kind else (60, 120, 240))
                one = _annotation(len(objects) + 1, i, 1 + 2 * kind, [left, top, side, side], 0)
                objects.append({**one, "segmentation": [_outline(kind, left, top, side)]})
            if crowd and i == 0:
                runs = {"size": list(size), "counts": [0, 30, *[size[0] - 30, 30] * 29, size[0] * (size[1] - 29) - 30]}
                crowded = _annotation(len(objects) + 1, i, 1, [0, 0, 30, 30], 1)
                objects.append({**crowded, "segmentation": runs})
            (root / split).mkdir(parents=True, exist_ok=True)
            picture.save(root / split / f"{i:02}.png")
            images.append({"id": i, "file_name": f"{i:02}.png", "height": size[0], "width": size[1]})
        categories = [{"id": 1 + 2 * kind, "name": name} for kind, name in enumerate(NAMES)]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def _outline(kind: int, left: int, top: int, side: int) -> list[float]:
    """The polygon of a square or a disk."""
    if not kind:
        return [left, top, left + side, top, left + side, top + side, left, top + side]
    angles = np.arange(32) * np.pi / 16
    x, y = (start + side / 2 * (1 + wave(angles)) for start, wave in ((left, np.cos), (top, np.sin)))
    return [float(value) for value in np.stack([x, y], axis=1).ravel()]


def _annotation(number: int, image: int, category: int, box: list[int], crowd: int) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
