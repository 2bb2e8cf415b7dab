"""pycocotools' scores of the same detections, and random images with all that it treats specially."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnlab import rle
from cnnlab.tasks.coco import Detections, Truth

SIZES = ("small", "medium", "large")
SIDE = (40, 56)
Images = tuple[list[Detections], list[Truth]]


def images(seed: int, classes: int, masks: bool) -> Images:
    """Up to four images: crowds, given areas, ties, IoUs on a threshold, many or no objects, absent classes."""
    generator = np.random.default_rng(seed)
    found, true = [], []
    kind = int(generator.integers(0, 4))
    for _ in range(generator.integers(1, 5)):
        count, objects = generator.choice([0, 1, 5, 30]), generator.choice([0, 1, 4, 20])
        there = _masks(objects, generator) if masks else _boxes(objects, kind, generator)
        shapes = _masks(count, generator) if masks else _boxes(count, kind, generator)
        if count and objects and generator.random() < 0.7:
            chosen = generator.integers(0, objects, count)
            shapes = [_spoilt(there[i], kind, generator) for i in chosen]
            shapes = shapes if masks else np.array(shapes)
        scores = generator.integers(0, 6, count) / 5 if seed % 2 else generator.random(count)
        predicted = max(1, classes - 1) if generator.random() < 0.3 else classes
        found.append(Detections(shapes, scores, generator.integers(0, predicted, count)))
        crowd = generator.random(objects) < generator.choice([0, 0.4, 1])
        areas = generator.choice([5.0, 1024, 5000, 9216, 1e5], objects) if generator.random() < 0.4 else None
        true.append(Truth(there, generator.integers(0, classes, objects), crowd, areas))
    return found, true


def _boxes(count: int, kind: int, generator: np.random.Generator) -> np.ndarray:
    start: np.ndarray
    sides: np.ndarray
    if kind == 0:  # Small whole numbers: many IoUs are exactly a threshold.
        start, sides = generator.integers(0, 8, (count, 2)), generator.integers(1, 8, (count, 2))
    elif kind == 1:
        start = generator.uniform(0, 200, (count, 2))
        sides = generator.choice([0.01, 5, 40, 150], (count, 1)) * generator.uniform(0.5, 1.5, (count, 2))
    elif kind == 2:  # Huge, tiny and of no size.
        start, sides = generator.uniform(0, 10, (count, 2)), generator.choice([1e5, 1e6, 1e-9, 0], (count, 2))
    else:  # Areas exactly at the limits of small, medium and large.
        start, sides = generator.integers(0, 3, (count, 2)) * 10, generator.choice([10, 20, 32, 96], (count, 2))
    return np.concatenate([start, start + sides], axis=1).astype(np.float64)


def _masks(count: int, generator: np.random.Generator) -> list[rle.Rle]:
    found = []
    for _ in range(count):
        top, left = generator.integers(0, SIDE)
        bitmap = np.zeros(SIDE, dtype=bool)
        place = bitmap[top : top + generator.integers(0, 40), left : left + generator.integers(1, 40)]
        place[:] = generator.random(place.shape) < generator.choice([0.5, 1])
        found.append(rle.encode(bitmap))
    return found


def _spoilt(shape: Any, kind: int, generator: np.random.Generator) -> Any:
    if isinstance(shape, rle.Rle):
        flips = generator.random(SIDE) < generator.choice([0, 0.02])
        return rle.encode(rle.decode(shape) ^ flips)
    noise = (
        generator.integers(-1, 2, 4) if kind in (0, 3) else generator.normal(0, 1, 4) * generator.choice([0, 0.1, 3])
    )
    moved = shape + noise
    return np.concatenate([moved[:2], np.maximum(moved[:2], moved[2:])])


def coco_files(found: Sequence[Detections], true: Sequence[Truth], classes: int) -> tuple[dict[str, Any], list[Any]]:
    """The images as COCO's annotations and results."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detections, truth) in enumerate(zip(found, true, strict=True)):
        labels, scores = np.asarray(detections.labels), np.asarray(detections.scores)
        for shape, label, score in zip(detections.shapes, labels, scores, strict=True):
            result = {"image_id": image, "category_id": int(label), "score": float(score)}
            results.append(result | _coco_shape(shape))
        count = len(truth.shapes)
        crowd = np.zeros(count) if truth.crowd is None else np.asarray(truth.crowd)
        for i, (shape, label) in enumerate(zip(truth.shapes, np.asarray(truth.labels), strict=True)):
            own = _coco_shape(shape)
            area = rle.areas([shape])[0] if isinstance(shape, rle.Rle) else own["bbox"][2] * own["bbox"][3]
            area = area if truth.areas is None else np.asarray(truth.areas)[i]
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(label),
                "bbox": [0, 0, 0, 0],
            }
            annotations.append(entry | own | {"area": float(area), "iscrowd": int(crowd[i])})
    listed = [{"id": i, "height": SIDE[0], "width": SIDE[1]} for i in range(len(true))]
    categories = [{"id": i, "name": str(i)} for i in range(classes)]
    return {"images": listed, "annotations": annotations, "categories": categories}, results


def _coco_shape(shape: Any) -> dict[str, Any]:
    if isinstance(shape, rle.Rle):
        return {"segmentation": {"size": list(shape.size), "counts": rle.to_text(shape).decode()}}
    x1, y1, x2, y2 = shape.tolist()
    return {"bbox": [x1, y1, x2 - x1, y2 - y1]}


def coco_scores(
    found: Sequence[Detections], true: Sequence[Truth], classes: int, max_dets: Sequence[int], masks: bool
) -> tuple[dict[str, float], np.ndarray]:
    """The summary of pycocotools, NaN where it has -1, and the precision (K, 101) at an IoU of 0.5."""
    truth, results = coco_files(found, true, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        ground, detected = COCO(), COCO()
        ground.dataset = truth
        ground.createIndex()
        detected.dataset = truth | {"annotations": []}
        detected.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(results) if results else detected, "segm" if masks else "bbox")
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    parts = {"map": precision[..., 0, -1], "map50": precision[0, ..., 0, -1], "map75": precision[5, ..., 0, -1]}
    parts |= {f"map_{name}": precision[..., i, -1] for i, name in enumerate(SIZES, 1)}
    parts |= {f"ar{limit}": recall[..., 0, i] for i, limit in enumerate(max_dets)}
    parts |= {f"ar_{name}": recall[..., i, -1] for i, name in enumerate(SIZES, 1)}
    summary = {name: float(part[part > -1].mean()) if (part > -1).any() else np.nan for name, part in parts.items()}
    curve = precision[0, :, :, 0, -1].T
    return summary, np.where(curve < 0, np.nan, curve)


def summarize(truths: Path, rows: Sequence[Mapping[str, str]], masks: bool = False) -> dict[str, float]:
    """Score a table of predictions with pycocotools: map and map50; images are known by their names."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truths))
        category = {one["name"]: one["id"] for one in coco.dataset["categories"]}
        images = {one["file_name"]: one for one in coco.dataset["images"]}
        found = []
        for row in rows:
            image, kind = images[Path(row["path"]).name], category[row["name"]]
            one = {"image_id": image["id"], "category_id": kind, "score": float(row["score"])}
            if masks:
                one["segmentation"] = {"size": [image["height"], image["width"]], "counts": row["mask"]}
            else:
                left, top, right, bottom = (float(row[side]) for side in ("x1", "y1", "x2", "y2"))
                one["bbox"] = [left, top, right - left, bottom - top]
            found.append(one)
    return summarize_results(truths, found, masks)


def summarize_results(truths: Path, results: list[dict[str, Any]], masks: bool = False) -> dict[str, float]:
    """Score COCO's results with pycocotools: map and map50."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truths))
        evaluation = COCOeval(coco, coco.loadRes(results), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map": float(evaluation.stats[0]), "map50": float(evaluation.stats[1])}
