"""How long average precision takes: cnnlab's, pycocotools' and faster-coco-eval's, of the same detections.

500 images with 100 boxes and 20 objects each, and 60 images with 250 masks and 50 objects each, as in nuclei. All three
begin with the objects in memory, in their own form, and end with the scores. It also prints what the whole metric takes
(ObjectScores: thresholds, confusions and kinds of errors too), and the scores, which must be the same.

    python benchmarks/average_precision.py
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnlab import rle
from cnnlab.tasks.coco import Detections, Truth, average_precision, evaluate
from cnnlab.tasks.object_metrics import ObjectScores

SIZE = (256, 320)
Images = tuple[list[Detections], list[Truth]]


def boxes(classes: int = 5) -> Images:
    """Boxes of random places and sizes; half of the detections are near an object."""
    generator = np.random.default_rng(0)
    found, true = [], []
    for _ in range(500):
        start = generator.uniform(0, 500, (20, 2))
        there = np.concatenate([start, start + generator.uniform(10, 150, (20, 2))], axis=1)
        labels, chosen = generator.integers(0, classes, 20), generator.integers(0, 20, 100)
        moved = there[chosen] + generator.normal(0, 1, (100, 4)) * np.repeat([6, 40], 50)[:, None]
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        found.append(Detections(moved, generator.random(100), labels[chosen]))
        true.append(Truth(there, labels))
    return found, true


def ellipse(row: float, column: float, high: float, wide: float, angle: float) -> rle.Rle:
    """The mask of an ellipse."""
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = wide * np.cos(turns), high * np.sin(turns)
    points = np.stack([column + x * np.cos(angle) - y * np.sin(angle), row + x * np.sin(angle) + y * np.cos(angle)])
    return rle.from_polygons([points.T], SIZE)


def masks() -> Images:
    """Ellipses, and detections that are moved and stretched a little."""
    generator = np.random.default_rng(0)
    found, true = [], []
    for _ in range(60):
        low, high = [10, 10, 6, 6, 0], [246, 310, 16, 16, 3]
        shapes = generator.uniform(low, high, (50, 5))
        moved = shapes[generator.integers(0, 50, 250)] + generator.normal(0, 1, (250, 5)) * [2, 2, 1, 1, 0.2]
        found.append(Detections([ellipse(*one) for one in moved], generator.random(250), np.zeros(250, dtype=int)))
        true.append(Truth([ellipse(*one) for one in shapes], np.zeros(50, dtype=int)))
    return found, true


def entry(shape: Any) -> dict[str, Any]:
    """An object in COCO's form."""
    if isinstance(shape, rle.Rle):
        x, y, width, height = rle.bounding_boxes([shape])[0].tolist()
        text = {"size": list(SIZE), "counts": rle.to_text(shape).decode()}
        return {"segmentation": text, "bbox": [x, y, width, height], "area": int(rle.areas([shape])[0])}
    x1, y1, x2, y2 = shape.tolist()
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def coco_score(images: Images, coco: Any, evaluation: Any, limits: tuple[int, ...]) -> tuple[float, float]:
    """The seconds and the mean average precision of a package in pycocotools' form."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, (found, true) in enumerate(zip(*images, strict=True)):
        for shape, label in zip(true.shapes, np.asarray(true.labels).tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": label, "iscrowd": 0} | entry(shape)
            )
        for shape, score, label in zip(found.shapes, *(np.asarray(c).tolist() for c in found[1:]), strict=True):
            results.append({"image_id": i, "category_id": label, "score": score} | entry(shape))
    classes = sorted({one["category_id"] for one in annotations})
    listed = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images[0]))]
    kind = "segm" if "segmentation" in annotations[0] else "bbox"
    if kind == "segm":
        for one in results:
            del one["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = {"images": listed, "annotations": annotations, "categories": [{"id": i} for i in classes]}
        truth.createIndex()
        measured = evaluation(truth, truth.loadRes(results), kind)
        measured.params.maxDets = list(limits)
        start = time.process_time()
        measured.evaluate()
        measured.accumulate()
        seconds = time.process_time() - start
    precision = measured.eval["precision"][..., 0, -1]
    return seconds, float(precision[precision > -1].mean())


def own_score(images: Images, classes: int, limits: tuple[int, ...]) -> tuple[float, float]:
    """The seconds of cnnlab, and its mean average precision."""
    start = time.process_time()
    score = average_precision(evaluate(*images, classes, limits)).summary["map"]
    return time.process_time() - start, score


def metric_seconds(images: Images, classes: int, limits: tuple[int, ...]) -> float:
    """The seconds of the metric's compute(), with all tables."""
    found, true = images
    with_masks = isinstance(found[0].shapes, list)
    metric = ObjectScores(classes, limits, masks=with_masks)

    def arrays(one: Detections | Truth) -> dict[str, Any]:
        if not with_masks:
            return {"boxes": one.shapes}
        corners = rle.bounding_boxes(one.shapes)  # type: ignore[arg-type]
        corners[:, 2:] += corners[:, :2]
        return {"boxes": corners, "masks": rle.to_texts(one.shapes), "size": SIZE}  # type: ignore[arg-type]

    for i, (detections, truth) in enumerate(zip(found, true, strict=True)):
        scores = {"scores": detections.scores, "labels": detections.labels}
        metric.update([arrays(detections) | scores], [arrays(truth) | {"labels": truth.labels}], [i])
    start = time.process_time()
    metric.compute()
    return time.process_time() - start


def main() -> None:
    """Print CPU seconds, ratios and scores."""
    faster = (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
    cases: dict[str, tuple[Callable[[], Images], int, tuple[int, ...]]] = {
        "500 images x 100 boxes": (boxes, 5, (1, 10, 100)),
        "60 images x 250 masks": (masks, 1, (1, 10, 300)),
    }
    for name, (make, classes, limits) in cases.items():
        images = make()
        own = min(own_score(images, classes, limits) for _ in range(3))
        print(f"{name}: cnnlab {own[0]:.2f} CPU s, mAP {own[1]:.6f}")
        for package, oracle in {"pycocotools": (COCO, COCOeval), "faster-coco-eval": faster}.items():
            seconds, score = coco_score(images, *oracle, limits)
            print(f"  {package} {seconds:.2f} CPU s, x{seconds / own[0]:.1f}, mAP {score:.6f}")
        seconds = metric_seconds(images, classes, limits)
        print(f"  with thresholds, confusions and kinds of errors: cnnlab {seconds:.2f} CPU s")


if __name__ == "__main__":
    main()
