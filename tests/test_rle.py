"""Masks as runs are what pycocotools makes of them, in every pixel and every byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as oracle
from scipy import ndimage

from cnnlab import rle
from cnnlab.errors import InputError

SIZE = (30, 40)


def coco_text(bitmap: np.ndarray) -> bytes:
    return bytes(oracle.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"])


def bitmaps(count: int, seed: int = 0) -> list[np.ndarray]:
    """Bitmaps of up to 60 pixels a side: noise, full, empty, lines, blocks."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        height, width = generator.integers(1, 60, 2)
        bitmap = generator.random((height, width)) < generator.choice([0, 0.02, 0.5, 0.98, 1])
        if i % 3 == 0:
            bitmap = np.zeros((height, width), dtype=bool)
            top, left = generator.integers(0, [height, width])
            bitmap[top : top + generator.integers(1, 60), left : left + generator.integers(1, 60)] = True
        found.append(bitmap)
    return found


@pytest.mark.parametrize("bitmap", bitmaps(120))
def test_bitmaps_and_text_and_sizes_are_those_of_pycocotools(bitmap: np.ndarray) -> None:
    mask = rle.encode(bitmap)
    text = rle.to_text(mask)
    assert text == coco_text(bitmap)
    again = rle.from_text(text, bitmap.shape)
    np.testing.assert_array_equal(again.counts, mask.counts)
    np.testing.assert_array_equal(rle.decode(again), bitmap)
    coco = {"size": list(bitmap.shape), "counts": text}
    assert rle.areas([mask]).tolist() == [oracle.area(coco)]
    assert rle.bounding_boxes([mask])[0].tolist() == oracle.toBbox(coco).tolist()
    crop = rle.crop_of(mask)
    np.testing.assert_array_equal(rle.encode_crop(crop, bitmap.shape).counts, mask.counts)
    left, top, width, height = rle.bounding_boxes([mask])[0]
    assert crop.bitmap.shape == (height, width)
    np.testing.assert_array_equal(crop.bitmap, bitmap[top : top + height, left : left + width])


def test_many_masks_at_once_are_the_same_as_each() -> None:
    some = bitmaps(60, seed=1)
    masks = [rle.encode(bitmap) for bitmap in some]
    texts = rle.to_texts(masks)
    assert texts == [rle.to_text(mask) for mask in masks]
    for mask, again in zip(masks, rle.from_texts(texts, [mask.size for mask in masks]), strict=True):
        np.testing.assert_array_equal(mask.counts, again.counts)
        assert mask.size == again.size
    assert rle.areas(masks).tolist() == [int(bitmap.sum()) for bitmap in some]
    assert not rle.to_texts([])
    assert not rle.from_texts([], [])


def polygon(kind: str, generator: np.random.Generator) -> list[np.ndarray]:
    height, width = SIZE
    rings = []
    for _ in range(generator.integers(1, 4)):
        count = generator.integers(3, 30)
        if kind == "inside":
            points = generator.uniform(0, [width, height], (count, 2))
        elif kind == "outside":
            points = generator.uniform(-2, 3, (count, 2)) * [width, height]
        elif kind == "whole":
            points = generator.integers(-10, 80, (count, 2)).astype(float)
        elif kind == "tenths":  # Where pycocotools rounds.
            points = generator.integers(-100, 800, (count, 2)) / 10
        elif kind == "repeated":
            points = np.repeat(generator.integers(-3, 20, (count // 3 + 1, 2)), 3, axis=0) / 2
        else:
            angles = np.sort(generator.uniform(0, 2 * np.pi, count))
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            points = circle * generator.uniform(0.2, 20) + generator.uniform(0, [width, height])
        rings.append(points)
    return rings


@pytest.mark.parametrize("kind", ["inside", "outside", "whole", "tenths", "repeated", "round"])
def test_polygons_have_the_pixels_of_pycocotools(kind: str) -> None:
    generator = np.random.default_rng(2)
    for _ in range(100):
        rings = polygon(kind, generator)
        flat = [ring.ravel().tolist() for ring in rings]
        wanted = oracle.merge(oracle.frPyObjects(flat, *SIZE))
        assert rle.to_text(rle.from_polygons(rings, SIZE)) == wanted["counts"]
        assert rle.to_text(rle.from_polygons(flat, SIZE)) == wanted["counts"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11, NumPy 2.
@pytest.mark.parametrize("counts", [[9], [0, 9], [0, 0, 0, 9], [2, 0, 0, 3, 4], [4, 5]])
def test_plain_counts_are_kept_as_they_are(counts: list[int]) -> None:
    mask = rle.from_counts(counts, (3, 3))
    coco = oracle.frPyObjects({"counts": counts, "size": [3, 3]}, 3, 3)
    assert rle.to_text(mask) == coco["counts"]
    assert rle.areas([mask]).tolist() == [oracle.area(coco)]
    assert rle.bounding_boxes([mask])[0].tolist() == oracle.toBbox(coco).tolist()
    np.testing.assert_array_equal(rle.decode(mask), oracle.decode(coco))
    crop = rle.crop_of(mask)
    np.testing.assert_array_equal(rle.decode(rle.encode_crop(crop, (3, 3))), rle.decode(mask))


def test_an_empty_mask_with_runs_of_nothing_has_no_box() -> None:
    # pycocotools returns one of four billion pixels.
    assert rle.bounding_boxes([rle.from_counts([5, 0, 4], (3, 3))]).tolist() == [[0, 0, 0, 0]]


def test_large_counts_survive_as_text() -> None:
    size = (30000, 40000)
    mask = rle.from_counts([7, 30000 * 40000 - 7], size)
    text = rle.to_text(mask)
    assert text == oracle.frPyObjects({"counts": [7, 30000 * 40000 - 7], "size": list(size)}, *size)["counts"]
    assert rle.from_text(text, size).counts.tolist() == mask.counts.tolist()


def test_intersections_are_those_of_bitmaps() -> None:
    generator = np.random.default_rng(3)
    some = [generator.random(SIZE) < share for share in generator.uniform(0, 1, 30)]
    masks = [rle.encode(bitmap) for bitmap in some]
    pairs = generator.integers(0, 15, (80, 2)) + np.array([0, 15])
    found = rle.intersections(masks, masks, pairs)
    assert found.tolist() == [int((some[i] & some[j]).sum()) for i, j in pairs]
    assert rle.intersections(masks, masks, pairs[:0]).tolist() == []
    other = [rle.encode(np.ones((3, 3)))]
    with pytest.raises(InputError, match="different sizes"):
        rle.intersections(masks, other, np.array([[0, 0]]))


def test_large_and_far_polygons_have_the_pixels_of_pycocotools() -> None:
    generator = np.random.default_rng(3)
    for i in range(40):
        height, width = (int(side) for side in generator.integers(50, 1500, 2))
        low, high = (-9, 10) if i % 2 else (-0.5, 1.5)
        ring = generator.uniform(low, high, (generator.integers(3, 20), 2)) * [width, height]
        ring = ring.round() if i % 4 < 2 else ring
        wanted = oracle.merge(oracle.frPyObjects([ring.ravel().tolist()], height, width))
        assert rle.to_text(rle.from_polygons([ring], (height, width))) == wanted["counts"]


TRIANGLE = [0, 0, 9, 0, 0, 9]


@pytest.mark.parametrize(
    ("rings", "reason"),
    [
        ([[*TRIANGLE[:-1], float("nan")]], "NaN or infinite"),
        ([[*TRIANGLE[:-1], float("inf")]], "NaN or infinite"),
        ([[*TRIANGLE[:-1], 1e9]], "1e\\+09 pixels from the origin, in an image of 30 x 40"),
        ([[*TRIANGLE[:-1], -1e9]], "1e\\+09 pixels from the origin"),
        ([TRIANGLE, [1, 1, 2, 2]], "at least 3 points, and this one has 2"),
        ([[]], "at least 3 points, and this one has 0"),
        ([[*TRIANGLE, 4]], "not of 7 numbers"),
        ([np.zeros((4, 3))], "not of 12 numbers"),
        ([["a", "b"]], "must be numbers"),
        ([], "no polygon"),
    ],
)
def test_polygons_that_end_pycocotools_process_are_refused(rings: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rle.from_polygons(rings, SIZE)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([4, 4], "sum to 8, not to 3 x 3 = 9"),
        ([10, -1], "negative count: -1"),
        ([4.5, 4.5], "whole numbers"),
        ([float("nan")], "whole numbers"),
        (["x"], "whole numbers"),
        ([], "sum to 0"),
    ],
)
def test_counts_that_are_no_mask_are_refused(counts: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rle.from_counts(counts, (3, 3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "b'' is no compressed mask"),
        (b"4\x01", "a character is wrong"),
        (b"4\xff", "a character is wrong"),
        ("4é", "a character is wrong"),
        (b"45R", "the end is missing"),
        (b"44", "sum to 8, not to 3 x 3"),
        (b"4O", "negative count: -1"),
        (b"P" * 300 + b"1", "more than 32 bits"),
    ],
)
def test_text_that_is_no_mask_is_refused(text: bytes | str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rle.from_text(text, (3, 3))


def test_a_broken_text_among_others_is_named() -> None:
    with pytest.raises(InputError, match="b'4R'"):
        rle.from_texts([b"45", b"4R", b"45"], [(3, 3)] * 3)


@pytest.mark.parametrize("size", [(0, 3), (3, -1), (1 << 16, 1 << 16)])
def test_sizes_that_no_image_has_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cannot have"):
        rle.from_counts([9], size)


def test_other_shapes_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="two dimensions"):
        rle.encode(np.zeros((2, 3, 4)))
    with pytest.raises(InputError, match="does not lie in"):
        rle.encode_crop(rle.Crop(2, 2, np.ones((3, 3), dtype=bool)), (4, 9))


def slow_paste(grid: np.ndarray, box: tuple[float, ...], size: tuple[int, int], threshold: float) -> np.ndarray:
    """The pixels, one by one; beyond its cells the grid is 0."""
    x1, y1, x2, y2 = box
    framed = np.pad(grid, 1)
    image = np.zeros(size, dtype=bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            if not (x1 <= x < x2 and y1 <= y < y2):
                continue
            u = (x - x1) / (x2 - x1) * grid.shape[1] + 0.5
            v = (y - y1) / (y2 - y1) * grid.shape[0] + 0.5
            i, j = int(v), int(u)
            upper = framed[i, j] + (u - j) * (framed[i, j + 1] - framed[i, j])
            lower = framed[i + 1, j] + (u - j) * (framed[i + 1, j + 1] - framed[i + 1, j])
            image[row, column] = upper + (v - i) * (lower - upper) >= threshold
    return image


@pytest.mark.parametrize(
    "box", [(3.3, 4.4, 21.7, 17.1), (-8.2, -5.5, 12.1, 9.9), (30.2, 20.1, 70.5, 55.5), (-50.0, -50.0, 90.0, 90.0)]
)
def test_a_small_mask_is_resampled_bilinearly_within_its_box(box: tuple[float, ...]) -> None:
    grid = np.random.default_rng(4).random((7, 5))
    crop = rle.paste(grid, box, SIZE)
    wanted = slow_paste(grid, box, SIZE, 0.5)
    np.testing.assert_array_equal(rle.decode(rle.encode_crop(crop, SIZE)), wanted)
    assert wanted.any()
    bytes_ = (grid * 255).round().astype(np.uint8)
    crop = rle.paste(bytes_, box, SIZE, threshold=0.4)
    wanted = slow_paste(bytes_.astype(float), box, SIZE, 0.4 * 255)
    np.testing.assert_array_equal(rle.decode(rle.encode_crop(crop, SIZE)), wanted)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (5.1, 5.1, 5.2, 5.2), (-9, 0, -1, 9), (50, 0, 60, 9), (9, 9, 2, 2), (1e9, 0, 2e9, 9)]
)
def test_boxes_of_no_size_or_outside_paste_nothing(box: tuple[float, ...]) -> None:
    crop = rle.paste(np.ones((28, 28)), box, SIZE)
    assert rle.areas([rle.encode_crop(crop, SIZE)]).tolist() == [0]


def test_an_outline_has_exactly_the_pixels_of_the_largest_part() -> None:
    """A polygon through the border pixels' centers loses half a pixel on each side."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        bitmap = np.zeros(SIZE, dtype=bool)
        for _ in range(4):
            top, left = generator.integers(5, 20, 2)
            bitmap[top : top + generator.integers(1, 9), left : left + generator.integers(1, 9)] = True
        apart = bitmap.copy()
        apart[-2:, -2:] = True
        parts, count = ndimage.label(bitmap)
        largest = max(range(1, count + 1), key=lambda part: ndimage.binary_fill_holes(parts == part).sum())
        ring = rle.outline(rle.crop_of(rle.encode(apart)))
        again = rle.decode(rle.from_polygons([ring], SIZE))
        np.testing.assert_array_equal(again, ndimage.binary_fill_holes(parts == largest))
    assert len(rle.outline(rle.Crop(0, 0, np.zeros((0, 0), dtype=bool)))) == 0


def test_boxes_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="must be finite"):
        rle.paste(np.ones((28, 28)), (0, 0, float("nan"), 9), SIZE)
