"""COCO's files as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlab import rle
from cnnlab.data.objects import list_objects
from cnnlab.errors import InputError
from tests.data.objects.files import (
    HEIGHT,
    WIDTH,
    bitmap_runs,
    boxes,
    coco,
    coco_image,
    data_yaml,
    image,
    labels,
    noted,
    refused,
    write,
    yolo,
)

BITMAP = np.zeros((HEIGHT, WIDTH), np.bool_)
BITMAP[10:30, 5:9] = BITMAP[0:3, 8:20] = True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "ab":
        image(tmp_path / "train" / f"{name}.png")
    coco(
        tmp_path / "train.json",
        [
            {"bbox": [10, 5, 20, 30], "area": 321.5},
            {"bbox": [0, 0, 80, 40], "category_id": 4, "iscrowd": 1, "area": 5},
        ],
    )
    return tmp_path


def test_boxes_areas_crowds_and_both_maps_of_ids(root: Path) -> None:
    """rf-detr#961, mmdet#2047: ids have gaps, and none of them is a place in the list of classes."""
    listing = list_objects(root)
    assert listing.class_names == ["a", "b"]
    assert boxes(listing, "a") == [[10, 5, 30, 35], [0, 0, 80, 40]]
    found = listing.table.of(0, (HEIGHT, WIDTH))
    assert found.labels.tolist() == [0, 1]
    assert found.crowd.tolist() == [False, True]
    assert found.areas is not None
    assert found.areas.tolist() == [321.5, 5]
    assert listing.table.image_ids == (7, 9)
    assert listing.table.category_ids == (1, 4)
    assert listing.table.sizes.tolist() == [[HEIGHT, WIDTH]] * 2
    assert listing.layout == f"COCO, {root / 'train.json'}"


def test_the_order_of_categories_is_that_of_the_list(root: Path) -> None:
    """roboflow-python#88, yolov5#7749: names were sorted by id or by alphabet."""
    categories = [{"id": 9, "name": "zebra"}, {"id": 2, "name": "ant"}, {"id": 5, "name": "mole"}]
    coco(root / "train.json", [{"bbox": [0, 0, 9, 9], "category_id": 2}], categories=categories)
    listing = list_objects(root)
    assert listing.class_names == ["zebra", "ant", "mole"]
    assert listing.table.category_ids == (9, 2, 5)
    assert labels(listing, "a") == ["ant"]
    listing = list_objects(root, class_names=["ant", "zebra"])
    assert listing.table.category_ids == (2, 9)
    assert listing.table.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("json_path", "images"),
    [
        ("{split}.json", "{split}"),
        ("annotations/instances_{split}2017.json", "{split}2017"),
        ("annotations/instances_{split}.json", "images/{split}"),
        ("{split}/_annotations.coco.json", "{split}"),
        ("annotations/{split}.json", "images"),
    ],
)
def test_where_files_lie(tmp_path: Path, json_path: str, images: str) -> None:
    for split in ("train", "valid"):
        for name in "ab":
            image(tmp_path / images.format(split=split) / f"{split}_{name}.png")
        entries = [
            {"id": n, "file_name": f"{split}_{name}.png", "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate("ab")
        ]
        coco(tmp_path / json_path.format(split=split), [{"bbox": [1, 2, 3, 4], "image_id": 1}], images=entries)
    if "instances" in json_path:
        write(tmp_path / "annotations/person_keypoints_train2017.json", '{"images": [], "categories": []}')
    listing = list_objects(tmp_path)
    assert [(Path(s.path).name, s.split) for s in listing.samples] == [
        (f"{split}_{name}.png", known) for split, known in (("train", "train"), ("valid", "val")) for name in "ab"
    ]
    assert boxes(listing, "valid_b") == [[1, 2, 4, 6]]
    assert not noted(listing, "not listed")


def test_one_file_without_splits(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"images/{name}.png")
    coco(tmp_path / "result.json", [{"bbox": [1, 2, 3, 4]}])
    content = json.loads((tmp_path / "result.json").read_text())
    for entry in content["images"]:
        entry["file_name"] = f"..\\upload\\{entry['file_name']}"
    write(tmp_path / "result.json", json.dumps(content))
    listing = list_objects(tmp_path)
    assert {s.split for s in listing.samples} == {""}
    assert Path(listing.samples[0].path) == tmp_path / "images/a.png"
    assert noted(listing, "1 images are not listed", "c.png")


def test_polygons_and_both_kinds_of_run_length_masks(root: Path) -> None:
    runs = bitmap_runs(BITMAP)
    text = rle.to_text(rle.from_counts(runs, (HEIGHT, WIDTH)))
    size = [HEIGHT, WIDTH]
    rings = [[1, 2, 11, 2, 11.5, 12.25], [20, 20, 30, 20, 30, 30, 20, 30]]
    coco(
        root / "train.json",
        [
            {"bbox": [1, 2, 29, 28], "segmentation": rings},
            {"bbox": [5, 0, 15, 30], "segmentation": {"size": size, "counts": runs}},
            {"bbox": [5, 0, 15, 29], "segmentation": {"size": size, "counts": text.decode()}},
            {"bbox": [5, 0, 14, 29], "segmentation": []},
            {"segmentation": rings, "category_id": 4},
            {"segmentation": {"size": size, "counts": runs}, "category_id": 4},
        ],
    )
    listing = list_objects(root)
    shapes = listing.table.of(0, (HEIGHT, WIDTH)).shapes
    assert isinstance(shapes[0], list)
    assert [ring.ravel().tolist() for ring in shapes[0]] == rings
    assert shapes[1] == shapes[2] == text
    assert shapes[3] is None
    assert boxes(listing, "a")[4:] == [[1, 2, 30, 30], [5, 0, 20, 30]]
    turned = listing.table.subset([1, 0])
    assert turned.counts.tolist() == [0, 6]
    assert turned.of(1, (HEIGHT, WIDTH)).shapes[1] == text


def test_the_same_box_with_another_shape_is_another_object(root: Path) -> None:
    one, other = [[1, 2, 9, 2, 9, 9, 1, 9]], [[1, 2, 9, 2, 1, 9, 9, 9]]
    coco(root / "train.json", [{"bbox": [1, 2, 8, 7], "segmentation": rings} for rings in (one, other, one)])
    listing = list_objects(root)
    assert listing.table.counts.tolist() == [2, 0]
    assert noted(listing, "1 exact repetitions", "annotation 10")


@pytest.mark.parametrize(
    ("annotation", "parts"),
    [
        ({"bbox": [10, 5, 20, 30], "image_id": 8}, ["its image_id is 8", "add the image"]),
        ({"bbox": [10, 5, 20, 30], "category_id": 2}, ["its category_id is 2", "the ids are 1, 4"]),
        ({"bbox": [10, 5, 20, 30], "image_id": [7]}, ["its image_id is [7]"]),
        ({"bbox": [10, 5, 20, 30], "category_id": None}, ["its category_id is None"]),
        ({"bbox": [10, 5, 20, 30], "category_id": [1]}, ["its category_id is [1]"]),
        ({"bbox": [10, 5, 20, 10**400]}, ["its bbox is"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 10**400, 5]]}, ["no numbers"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [40, 80], "counts": [[3200]]}}, ["cannot be read"]),
        ({"bbox": [10, 5, 20]}, ["its bbox is [10, 5, 20]", "x, y, width, height"]),
        ({"bbox": None}, ["neither bbox nor segmentation"]),
        ({"bbox": [10, 5, float("nan"), 30]}, ["finite numbers"]),
        ({"bbox": [10, 5, -3, 30]}, ["a width of -3"]),
        ({"bbox": [10, 5, 71, 30]}, ["beyond the image of 80 x 40: x 10 to 81, y 5 to 35"]),
        ({"bbox": [60, 5, 75, 30]}, ["is it written as x1, y1, x2, y2?"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4]]}, ["fewer than 3 points"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5]]}, ["5 coordinates"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, "x", 5]]}, ["no numbers"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, float("inf"), 5]]}, ["finite numbers"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 99, 5]]}, ["beyond the image"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [40, 80], "counts": [5, 6]}}, ["sum to 11"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [40, 80], "counts": [-1, 3201]}}, ["a negative count: -1"]),
        (
            {"bbox": [1, 2, 3, 4], "segmentation": {"size": [80, 40], "counts": [3200]}},
            ["[80, 40], its image [40, 80]"],
        ),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [40, 80], "counts": "P"}}, ["no compressed mask"]),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"counts": "P"}}, ["its mask cannot be read"]),
    ],
)
def test_a_bad_annotation_is_named_and_can_be_left_out(
    root: Path, annotation: dict[str, Any], parts: list[str]
) -> None:
    """One polygon of NaN ended the process in pycocotools."""
    path = root / "train.json"
    coco(path, [{"bbox": [10, 5, 20, 30]}, annotation])
    refused(root, f"{path}, annotation 101: ", *parts)
    listing = list_objects(root, on_error="skip")
    assert boxes(listing, "a") == [[10, 5, 30, 35]]
    assert noted(listing, "1 ", "left out", "annotation 101")


def test_images_that_do_not_exist_or_are_listed_twice(root: Path) -> None:
    entries = [coco_image(n, name) for n, name in enumerate(("a.png", "z.png", "a.png"))]
    coco(root / "train.json", [{"bbox": [1, 2, 3, 4], "image_id": n} for n in (0, 1, 2)], images=entries)
    refused(root, "z.png (looked for in", "a.png is twice")
    listing = list_objects(root, on_error="skip")
    assert [Path(sample.path).name for sample in listing.samples] == ["a.png"]
    assert boxes(listing, "a") == [[1, 2, 4, 6]]
    assert listing.table.image_ids == (0,)
    assert noted(listing, "1 images that do not exist, left out")
    assert noted(listing, "1 images that are listed twice, left out")


def test_splits_match_categories_by_name(root: Path) -> None:
    image(root / "val/v.png")
    entries = [coco_image(1, "v.png")]
    annotations = [{"bbox": [1, 2, 3, 4], "image_id": 1, "category_id": 1}]
    coco(root / "val.json", annotations, names=("b", "a"), images=entries)
    listing = list_objects(root)
    assert labels(listing, "v") == ["b"]
    assert listing.table.category_ids == (1, 4)
    assert noted(listing, "val.json numbers its categories otherwise")
    coco(root / "val.json", annotations, names=("cells", "b"), images=entries)
    refused(root, "val.json has the category 'cells'", "choose from 'a', 'b'")


def test_an_image_in_two_splits(root: Path) -> None:
    coco(root / "val.json", [{"bbox": [1, 2, 3, 4]}])
    content = json.loads((root / "val.json").read_text())
    for entry in content["images"]:
        entry["file_name"] = f"../train/{entry['file_name']}"
    image(root / "val/c.png")
    write(root / "val.json", json.dumps(content))
    for entry in content["images"]:
        entry["file_name"] = f"train/{Path(entry['file_name']).name}"
    write(root / "val.json", json.dumps(content))
    refused(root, "train/a.png is in train and in val")


def test_background_and_the_category_above_all_are_no_classes(root: Path) -> None:
    """rf-detr#85, #913: Roboflow writes a category 0 that no object has; others write a background."""
    categories = [
        {"id": 0, "name": "blood", "supercategory": "none"},
        {"id": 1, "name": "red", "supercategory": "blood"},
        {"id": 2, "name": "white", "supercategory": "blood"},
        {"id": 3, "name": "background"},
    ]
    coco(root / "train.json", [{"bbox": [1, 2, 3, 4], "category_id": 2}], categories=categories)
    listing = list_objects(root)
    assert listing.class_names == ["red", "white"]
    assert listing.table.category_ids == (1, 2)
    assert noted(listing, "'blood' is no class of objects")
    coco(root / "train.json", [{"bbox": [1, 2, 3, 4], "category_id": own} for own in range(4)], categories=categories)
    assert list_objects(root).class_names == ["blood", "red", "white", "background"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"images": {}}, ["images must be a list"]),
        ({"images": [{"id": 1}]}, ["the file_name of number 0 of images is missing"]),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, ["categories has the id 1 twice"]),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, ["two categories called 'a'"]),
        ({"categories": []}, ["has no categories"]),
        ({"annotations": []}, ["has no annotations of its 2 images"]),
        ({"annotations": [[1]]}, ["annotations must be a list of objects"]),
    ],
)
def test_a_file_of_another_form_is_refused(root: Path, change: dict[str, Any], parts: list[str]) -> None:
    annotations = change.pop("annotations", [])
    coco(root / "train.json", [], **change)
    content = json.loads((root / "train.json").read_text())
    write(root / "train.json", json.dumps(content | {"annotations": annotations}))
    refused(root, "train.json", *parts)


def test_a_set_may_have_only_a_test_split(root: Path) -> None:
    (root / "train.json").rename(root / "test.json")
    (root / "train").rename(root / "test")
    assert {sample.split for sample in list_objects(root).samples} == {"test"}


def test_a_broken_file_is_refused(root: Path) -> None:
    text = (root / "train.json").read_text()
    write(root / "train.json", text[:-20])
    refused(root, "train.json is no JSON")


def test_sizes_that_fit_the_upright_image_or_the_file(root: Path) -> None:
    """yolov5#405, ultralytics#19222: boxes of a file before its Exif tag turns it."""
    table = list_objects(root).table
    table.of(0, (HEIGHT, WIDTH))
    with pytest.raises(InputError, match=r"x\.png: .*declare 80 x 40 .* Exif tag turns it; upright .* 40 x 80"):
        table.of(0, (WIDTH, HEIGHT), "x.png")
    with pytest.raises(InputError, match=r"declare 80 x 40 .*, but it has 81 x 40"):
        table.of(0, (HEIGHT, 81))


def test_missing_sizes_and_areas_come_from_image_and_box(root: Path) -> None:
    image(root / "train/b.png", orientation=6)
    entries = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate("ab")]
    annotations: list[dict[str, Any]] = [
        {"bbox": [1, 2, 3, 4], "image_id": 0, "area": 7},
        {"bbox": [1, 2, 30, 70], "image_id": 1},
    ]
    coco(root / "train.json", annotations, images=entries)
    listing = list_objects(root)
    assert listing.table.sizes.tolist() == [[HEIGHT, WIDTH], [WIDTH, HEIGHT]]
    assert listing.table.areas is not None
    assert listing.table.areas.tolist() == [7, 2100]
    assert noted(listing, "1 annotations have no area")


def test_two_formats_in_a_folder_need_the_option(root: Path) -> None:
    data_yaml(yolo(root, {"a": "0 0.5 0.5 1 1"}))
    refused(root, "yolo: data.yaml", "coco: ", "--data.format yolo or coco")
    assert list_objects(root, format="coco").class_names == ["a", "b"]
    assert list_objects(root, format="yolo").class_names == ["cell", "dust", "hair"]


def test_nuclei(real_data: Path) -> None:
    listing = list_objects(real_data / "nuclei")
    assert listing.class_names == ["fluorescent nucleus", "stained nucleus"]
    assert listing.table.category_ids == (1, 3)
    assert len(listing.samples) == 295
    assert len(listing.table.labels) == 9443
    assert listing.table.shapes is not None
    assert listing.table.shapes.kinds == (7287, 2156)
    assert listing.notes == []
