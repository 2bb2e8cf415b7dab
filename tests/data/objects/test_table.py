"""The packed table: size in memory, selections; and what a survey says of it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from cnnlab.data.objects import ObjectTable, list_objects, survey_objects
from cnnlab.data.objects.shapes import Shapes
from cnnlab.data.splits import folds
from tests.data.objects.files import data_yaml, write, yolo


def table(counts: list[int], labels: list[int], boxes: list[list[float]]) -> ObjectTable:
    """A table of relative boxes."""
    n = len(labels)
    return ObjectTable(
        np.concatenate([[0], np.cumsum(counts)]),
        np.array(labels, np.int32),
        np.array(boxes, np.float64).reshape(-1, 4),
        True,
        np.zeros(n, np.bool_),
        None,
        np.zeros((len(counts), 2), np.int32),
        None,
    )


def test_a_million_boxes_take_tens_of_bytes_each(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.2 0.2\n"
    texts = "".join(line.replace("0.5", f"0.{5000 + n}", 1) for n in range(2000))
    listing = list_objects(data_yaml(yolo(tmp_path, {"a": texts, "b": texts})))
    assert len(listing.table.labels) == 4000
    assert len(pickle.dumps(listing.table)) < 50 * 4000
    assert listing.table.shapes is None


def test_subsets_keep_images_and_objects_together() -> None:
    full = table([2, 0, 3], [0, 1, 2, 1, 0], [[n / 10, 0, 1, 1] for n in range(5)])
    part = full.subset([2, 1, 0, 2])
    assert part.counts.tolist() == [3, 0, 2, 3]
    assert part.labels.tolist() == [2, 1, 0, 0, 1, 2, 1, 0]
    assert part.of(3, (10, 20)).boxes[:, 0].tolist() == [4, 6, 8]
    assert full.take(np.array([1, 4])).counts.tolist() == [1, 0, 1]
    assert len(full.subset([])) == 0


def test_shapes_are_packed_and_taken() -> None:
    triangle = np.array([[0, 0], [1, 0], [1, 1]], np.float32)
    packed = Shapes.pack([[triangle, triangle * 2], None, b"abc", [triangle * 3]])
    taken = packed.take(np.array([3, 2, 0]))
    first, second, third = (taken.of(n) for n in range(3))
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert first[0].tolist() == (triangle * 3).tolist()
    assert second == b"abc"
    assert [ring.tolist() for ring in third] == [triangle.tolist(), (triangle * 2).tolist()]
    assert packed.kinds == (2, 1)
    assert packed.owners().tolist() == [0] * 6 + [3] * 3
    assert Shapes.join([packed, taken]).of(4) is not None


def test_folds_share_the_rare_class(tmp_path: Path) -> None:
    common, rare = "0 0.5 0.5 0.2 0.2\n", "1 0.2 0.2 0.1 0.1\n"
    texts: dict[str, str | None] = {f"{n:02}": common + (rare if n < 6 else "") for n in range(30)}
    samples = list_objects(data_yaml(yolo(tmp_path, texts))).samples
    assert [sample.stratum for sample in samples] == ["dust"] * 6 + ["cell"] * 24
    assert np.bincount(folds(samples, 3, seed=0)[:6], minlength=3).min() >= 1


def test_a_survey_counts_sizes_borders_negatives_and_likely_repetitions() -> None:
    boxes = [
        [0.1, 0.1, 0.2, 0.2],  # 40 x 40 pixels of 400 x 400: medium
        [0.1, 0.1, 0.2, 0.2005],
        [0.5, 0.5, 0.505, 0.6],  # 2 x 40: small, and 1 pixel wide in the input
        [0.0, 0.0, 0.6, 0.6],  # 240 x 240: large, at the border
    ]
    lines = survey_objects(table([3, 0, 1], [0, 0, 1, 2], boxes), "abc", [(400, 400)] * 3, (200, 200), names="xyz")
    text = "\n".join(lines)
    assert "4 objects in 3 images: a 2, b 1, c 1" in text
    assert "objects in an image: 0 to 3, median 1" in text
    assert "1 images have no objects (y)" in text
    assert "own resolution: 25% small, 50% medium, 25% large" in text
    assert "sizes at 200 x 200: 75% small, 0% medium, 25% large" in text
    assert "1 of 4 objects are narrower than 4 pixels there (b 1)" in text
    assert "1 of 4 boxes touch" in text
    assert "1 pairs of one class overlap by more than 0.9 (IoU), perhaps the same object twice, in 1 images (x)" in text
    assert survey_objects(table([0], [], []), "a", [(9, 9)]) == ["no objects in 1 images"]


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_pairs_are_those_of_all_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    corner, size = generator.integers(0, 3, (300, 2)) / 40, 0.5 + generator.integers(0, 3, (300, 2)) / 40
    boxes, labels = np.hstack([corner, corner + size]), generator.integers(0, 2, 300)
    counts = [100, 150, 50]
    images = np.repeat([0, 1, 2], counts)
    expected = 0
    for a in range(300):
        for b in range(a):
            low, high = np.maximum(boxes[a, :2], boxes[b, :2]), np.minimum(boxes[a, 2:], boxes[b, 2:])
            both = (high - low).clip(0).prod()
            either = (boxes[a, 2:] - boxes[a, :2]).prod() + (boxes[b, 2:] - boxes[b, :2]).prod() - both
            expected += images[a] == images[b] and labels[a] == labels[b] and both > 0.9 * either
    text = "\n".join(survey_objects(table(counts, labels.tolist(), boxes.tolist()), "ab", [(1000, 1000)] * 3))
    assert f"{expected:,} pairs of one class" in text
    assert expected > 50


def test_folders_without_annotations(tmp_path: Path) -> None:
    from tests.data.objects.files import image, refused

    refused(tmp_path / "none", "there is no folder", "--data.root")
    image(tmp_path / "images/a.png")
    refused(tmp_path, "has no annotations that are known", "data.yaml", "train.json")
    write(tmp_path / "labels/a.txt", "")
    refused(tmp_path, "classes", "--data.class_names")
    refused(tmp_path, "no objects in any of its 1 images", class_names=["a"])
