"""A class for each pixel: masks at the image's size, shares, and what is ignored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, InMemoryImage, Place, overlay_mask
from cnnlab.outputs import AnswerWriter, MaskPrediction, Masks

NAMES = ["ground", "tree", "car"]
OUTPUT = Masks(NAMES, ignore_index=255)
CLASSES = np.array([[0, 0, 1, 1], [0, 0, 1, 2]])
TRUTH = np.array([[0, 0, 1, 255], [0, 1, 1, 1]])
"""Of the 7 pixels that count, 5 are right."""


def arrays() -> dict[str, np.ndarray]:
    return {"probabilities": np.eye(3, dtype=np.float32)[CLASSES].transpose(2, 0, 1)[None]}


def answer(size: tuple[int, int] | None = None) -> MaskPrediction:
    (found,) = OUTPUT.answers(arrays(), ["a.jpg"], [None if size is None else Place(size, size)])
    assert isinstance(found, MaskPrediction)
    return found


def test_masks_come_at_the_size_of_the_image() -> None:
    assert (answer().classes == CLASSES).all()
    large = answer((4, 8)).classes
    assert (large == CLASSES.repeat(2, axis=0).repeat(2, axis=1)).all()
    assert large.dtype == np.uint8


def test_classes_alone_are_enough_for_pictures() -> None:
    (found,) = OUTPUT.answers({"classes": CLASSES[None]}, [""], [None])
    assert (found.classes == CLASSES).all()
    assert found.probabilities is None


def test_more_classes_than_a_png_holds_are_refused() -> None:
    with pytest.raises(InputError, match="room for 256 classes, the network has 257"):
        Masks([str(i) for i in range(257)]).answers(arrays(), [""], [None])


def test_rows_have_the_share_of_each_class() -> None:
    assert OUTPUT.columns == ["mask", *NAMES]
    assert OUTPUT.rows(answer(), TRUTH, {"masks": "masks/a.jpg.png"}) == [["masks/a.jpg.png", "0.5", "0.375", "0.125"]]
    assert OUTPUT.rows(answer(), None, {})[0][0] == ""


def test_ignored_pixels_are_neither_right_nor_wrong() -> None:
    assert OUTPUT.describe(answer(), TRUTH) == {"wrong pixels": round(2 / 7, 6)}
    assert OUTPUT.describe(answer(), None) == {}
    assert OUTPUT.caption(answer(), TRUTH) == "71% right"
    assert OUTPUT.caption(answer(), None) == "ground 50%\ntree 38%\ncar 12%"
    assert OUTPUT.is_right(answer(), TRUTH) is None
    assert set(OUTPUT.shares) <= set(OUTPUT.describe(answer(), TRUTH))


def test_a_mask_without_a_pixel_that_counts_is_not_known() -> None:
    assert OUTPUT.known(np.full((2, 4), 255)) is None
    assert OUTPUT.known(TRUTH) is TRUTH
    assert OUTPUT.label(np.full((2, 4), 255)) == "-"


def test_the_commonest_class_is_explained_only_where_it_is_alone() -> None:
    background, tree = np.zeros((2, 4), dtype=int), np.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    assert OUTPUT.to_explain([background, tree, None, np.full((2, 4), 255)]) == [0, 1, None, 0]
    assert OUTPUT.to_explain([None]) == [None]
    assert OUTPUT.group(tree) is None
    assert OUTPUT.certainty(arrays(), 1) == "38% of pixels"


def test_pictures_show_image_truth_and_answer_side_by_side() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3)).astype(np.uint8)
    expected = [pixels, overlay_mask(pixels, TRUTH, 3), overlay_mask(pixels, CLASSES, 3)]
    np.testing.assert_array_equal(OUTPUT.picture(pixels, answer(), TRUTH), np.concatenate(expected, axis=1))
    np.testing.assert_array_equal(OUTPUT.picture(pixels, answer(), None), np.concatenate(expected[::2], axis=1))
    np.testing.assert_array_equal(OUTPUT.drawn(pixels, TRUTH), expected[1])


def test_files_are_the_mask_an_overlay_and_the_probabilities() -> None:
    pixels = np.full((2, 4, 3), 100, dtype=np.uint8)
    files = {
        folder: (ending, content)
        for folder, ending, content in OUTPUT.files(answer(), InMemoryImage(pixels), True, True)
    }
    assert {folder: ending for folder, (ending, _) in files.items()} == {
        "masks": ".png",
        "overlays": ".png",
        "probabilities": ".npz",
    }
    with Image.open(io.BytesIO(files["masks"][1])) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), CLASSES)
    with Image.open(io.BytesIO(files["overlays"][1])) as overlay:
        assert overlay.size == (8, 2)
    kept = np.load(io.BytesIO(files["probabilities"][1]))["probabilities"]
    np.testing.assert_array_equal(kept, arrays()["probabilities"][0])
    assert [folder for folder, *_ in OUTPUT.files(answer(), InMemoryImage(pixels), False, False)] == ["masks"]


def test_files_are_named_from_the_folder_that_all_images_share(tmp_path: Path) -> None:
    """Images of one name in two folders overwrote each other's masks."""
    paths = [str(tmp_path / "images" / name) for name in ("a/1.png", "b/1.png", "b/1.jpg")]
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 4, 3), dtype=np.uint8)).save(path)
    writer = AnswerWriter(OUTPUT, tmp_path / "R", paths, overlays=False, transform=EvalTransform(3))
    assert writer.header == ["index", "path", "mask", *NAMES]
    assert writer.places(paths[:1]) == [Place((2, 4), (2, 4))]
    for index, path in enumerate(paths):
        (row,) = writer.rows(index, answer()._replace(path=path))
        assert row[:3] == [index, path, f"masks/{path.removeprefix(str(tmp_path / 'images'))[1:]}.png"]
        assert (tmp_path / "R" / str(row[2])).is_file()


def test_images_without_paths_have_rows_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the images have no paths, by which the files of masks are named"):
        AnswerWriter(OUTPUT, tmp_path, [])
    writer = AnswerWriter(OUTPUT, tmp_path, [], files=False)
    assert writer.places(["", ""]) == [None, None]
    assert writer.rows(0, answer()) == [[0, "a.jpg", "", "0.5", "0.375", "0.125"]]
    assert not list(tmp_path.iterdir())
