"""YOLO's label files as users have them: what is read, what is refused, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnlab.data.objects import list_objects
from tests.data.objects.files import boxes, data_yaml, image, labels, noted, refused, write, yolo

BOX = "1 0.5 0.5 0.25 0.5\n"
"""In pixels: 30, 10, 50, 30."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return data_yaml(yolo(tmp_path, {"a": BOX, "b": "0 0.25 0.5 0.5 1\n2 0.5 0.5 0.1 0.1\n"}))


def test_boxes_classes_splits_and_strata(root: Path) -> None:
    listing = list_objects(root)
    assert listing.class_names == ["cell", "dust", "hair"]
    assert listing.layout == f"YOLO, data.yaml in {root}"
    assert boxes(listing, "a") == [[30, 10, 50, 30]]
    assert boxes(listing, "b") == [[0, 0, 40, 40], [36, 18, 44, 22]]
    assert labels(listing, "b") == ["cell", "hair"]
    assert [(sample.split, sample.objects, sample.stratum) for sample in listing.samples] == [
        ("train", 0, "dust"),
        ("train", 1, "cell"),
    ]
    assert listing.notes == []
    assert listing.table.boxes.dtype == "float64"
    assert listing.table.labels.dtype == "int32"


def test_empty_and_absent_label_files_and_blank_lines_are_negatives(root: Path) -> None:
    """yolov5#1689, mmdet#2153: images without objects were dropped, or broke training."""
    yolo(root, {"c": "", "d": None, "e": f"\n\n{BOX}\n  \n", "f": "\n \n"})
    listing = list_objects(root)
    assert listing.table.counts.tolist() == [1, 2, 0, 0, 1, 0]
    assert noted(listing, "3 of 6 images", "2 with an empty label file (c, f)", "1 without a label file (d)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0,0.5,0.5,0.2,0.2\n", ["'0,0.5,0.5,0.2,0.2' has a comma", "spaces"]),
        ("0 0,5 0,5 0,2 0,2\n", ["'0,5' has a comma", "point"]),
        ("cell 0.5 0.5 0.2 0.2\n", ["'cell' is no number"]),
        ("0 0.5 0.5 0.2\n", ["it has 4 numbers", "expected a class and 4 numbers"]),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3\n", ["its polygon has 7 coordinates"]),
        ("0.5 0.5 0.5 0.2 0.2\n", ["its class is 0.5"]),
        ("3 0.5 0.5 0.2 0.2\n", ["its class is 3", "3 names, for 0 to 2"]),
        ("-1 0.5 0.5 0.2 0.2\n", ["its class is -1"]),
        ("0 nan 0.5 0.2 0.2\n", ["not finite", "x nan"]),
        ("0 0.5 0.5 inf 0.2\n", ["finite numbers"]),
        ("0 0.5 0.5 -0.2 0.2\n", ["a width of -0.2"]),
        ("0 0.95 0.5 0.2 0.2\n", ["beyond 0 to 1: x 0.85 to 1.05"]),
        ("0 40 20 16 8\n", ["beyond 0 to 1", "(pixels?)"]),
        ("0 0.1 0.1 1.2 0.1 0.2 0.9\n", ["beyond 0 to 1: x 0.1 to 1.2"]),
        ("nan 0.1 0.1 0.2 0.1\n", ["its class is nan"]),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(root: Path, text: str, parts: list[str]) -> None:
    """yolov5#10632, #3656: an image with one bad line was dropped silently."""
    path = write(root / "labels/train/a.txt", f"{BOX}\n{text}{BOX.replace('0.25', '0.3')}")
    parts = [part for part in parts if part != "not finite"]
    refused(root, f"{path}, line 3: ", *parts, "--data.on_error skip")
    listing = list_objects(root, on_error="skip")
    assert boxes(listing, "a") == [[30, 10, 50, 30], [28, 10, 52, 30]]
    assert noted(listing, "1 ", "left out", f"{path}, line 3")


def test_many_findings_fit_three_lines(root: Path) -> None:
    write(root / "labels/train/a.txt", "0,1\n0 1\n0 0.5 0.5 -1 1\n7 0.5 0.5 0.1 0.1\n" + "0 3 0.5 0.1 0.1\n" * 5)
    text = refused(root, "line 1: ", "line 2: ", "(and 6 more)")
    assert len(text.splitlines()) == 3
    assert noted(list_objects(root, on_error="skip"), "5 objects that reach out of their image", "and 2 more")


def test_zero_size_and_repeated_lines_are_left_out_with_a_note(root: Path) -> None:
    """vision#2240: boxes without an area made the loss NaN."""
    write(root / "labels/train/a.txt", f"{BOX}{BOX}0 0.5 0.5 0 0.2\n1 1.0 0.5 0.001 0.1\n{BOX}2 0.5 0.5 0.25 0.5\n")
    listing = list_objects(root)
    assert labels(listing, "a") == ["dust", "dust", "hair"]
    assert boxes(listing, "a")[1] == [79.96, 18, 80, 22]
    assert noted(listing, "1 boxes of zero size", "a.txt, line 3")
    assert noted(listing, "2 exact repetitions", "a.txt, line 2", "a.txt, line 5")


def test_a_small_overhang_is_clipped_silently(root: Path) -> None:
    write(root / "labels/train/a.txt", "0 0.5 0.5 1.001 1.0005\n")
    listing = list_objects(root)
    assert boxes(listing, "a") == [[0, 0, 80, 40]]
    assert listing.notes == []


def test_six_columns_are_a_box_and_a_score_that_is_not_used(root: Path) -> None:
    write(root / "labels/train/a.txt", "1 0.5 0.5 0.25 0.5 0.93\n")
    listing = list_objects(root)
    assert boxes(listing, "a") == [[30, 10, 50, 30]]
    assert noted(listing, "1 lines have a sixth number, a score")


def test_polygons_stay_and_give_the_box(root: Path) -> None:
    """label-studio#5481: polygons stood among boxes."""
    write(root / "labels/train/a.txt", f"{BOX}0 0.1 0.1 0.5 0.2 0.3 0.75\n")
    listing = list_objects(root)
    assert boxes(listing, "a") == [[30, 10, 50, 30], [8, 4, 40, 30]]
    nothing, rings = listing.table.of(0, (40, 80)).shapes
    assert nothing is None
    assert isinstance(rings, list)
    assert [ring.round(4).tolist() for ring in rings] == [[[8, 4], [40, 8], [24, 30]]]
    assert listing.table.of(1, (40, 80)).shapes == [None, None]


def test_line_ends_of_windows_and_old_macs_and_a_byte_order_mark(root: Path) -> None:
    write(root / "labels/train/a.txt", f"\ufeff{BOX}0 0.5 0.5 0.2 0.2".replace("\n", "\r\n"))
    write(root / "labels/train/b.txt", f"{BOX}0 0.5 0.5 0.2 0.2\n".replace("\n", "\r"))
    listing = list_objects(root)
    assert labels(listing, "a") == labels(listing, "b") == ["dust", "cell"]


@pytest.mark.parametrize(
    "names",
    ["[zebra, ant, no]", "\n- zebra\n- ant\n- no", "{0: zebra, 1: ant, 2: no}", "{2: no, 0: zebra, 1: ant}"],
)
def test_names_are_a_list_or_a_mapping_and_never_sorted(root: Path, names: str) -> None:
    """roboflow-python#100: names were sorted anew. In YAML, no is not a text."""
    data_yaml(root, f"path: .\nnc: 3\ntrain: images/train\nnames: {names}\n")
    assert list_objects(root).class_names == ["zebra", "ant", "no"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("names: [a, b]\nnc: 3", ["nc is 3", "2 names"]),
        ("names: {0: a, 2: b}", ["none for 1"]),
        ("names: [a, a, b]", ["two classes are called 'a'"]),
        ("names: {x: a}", ["the key 'x'"]),
        ("names: [a, b", ["cannot be read as YAML"]),
        ("names: a", ["names must be a list"]),
        ("names: [a, b, c]\nval: images/none", ["val is images/none"]),
        ("names: [a, b, c]\nval: images/train", ["is in train and in val"]),
    ],
)
def test_a_wrong_data_yaml_is_refused(root: Path, text: str, parts: list[str]) -> None:
    data_yaml(root, f"train: images/train\n{text}\n")
    refused(root, "data.yaml" if "called" not in parts[0] else str(root), *parts)


def test_the_layout_of_roboflow(tmp_path: Path) -> None:
    """Its data.yaml says ../train/images beside the folder train, and calls validation valid."""
    for split in ("train", "valid", "test"):
        image(tmp_path / "d" / split / "images" / f"{split}.png")
        write(tmp_path / "d" / split / "labels" / f"{split}.txt", BOX)
    write(tmp_path / "d/README.dataset.txt", "about")
    root = data_yaml(
        tmp_path / "d",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['b', 'a']\n",
    )
    listing = list_objects(root)
    assert [(Path(s.path).stem, s.split) for s in listing.samples] == [
        ("train", "train"),
        ("valid", "val"),
        ("test", "test"),
    ]
    assert labels(listing, "valid") == ["a"]
    assert noted(listing, "../train/images is taken as")
    image(tmp_path / "train/images/other.png")
    refused(root, "../train/images may be", "write it as one path")


def test_paths_of_another_machine(root: Path) -> None:
    yolo(root, {"v": BOX}, "val")
    data_yaml(
        root,
        "path: ../sets/mine\ntrain: /home/me/mine/images/train\nval: images/val\ntest: images/test\nnames: [a, b, c]",
    )
    listing = list_objects(root)
    assert [sample.split for sample in listing.samples] == ["train", "train", "val"]
    assert noted(listing, "there is no path ../sets/mine")
    assert noted(listing, "/home/me/mine/images/train is taken as")
    assert noted(listing, "images/test", "no test split")


def test_lists_of_folders_and_of_paths(root: Path) -> None:
    yolo(root, {"c": BOX}, "more")
    yolo(root, {"d": BOX, "e": BOX}, "rest")
    write(root / "val.txt", "./images/rest/d.png\n\nimages/rest/e.png\n")
    data_yaml(root, "train: [images/train, images/more]\nval: val.txt\nnames: [a, b, c]")
    listing = list_objects(root)
    assert [(Path(s.path).stem, s.split) for s in listing.samples] == [
        *((name, "train") for name in "abc"),
        *((name, "val") for name in "de"),
    ]
    data_yaml(root, "train: [images, images/train, images/more]\nnames: [a, b, c]")
    assert noted(list_objects(root), "3 images are listed twice")
    data_yaml(root, "train: [images/train, images/more]\nval: val.txt\nnames: [a, b, c]")
    write(root / "val.txt", "/x/y/images/rest/d.png\n/x/y/images/rest/gone.png\n")
    refused(root, "images/rest/gone.png: there is no such file")
    listing = list_objects(root, on_error="skip")
    assert [Path(s.path).stem for s in listing.samples] == ["a", "b", "c", "d"]
    assert [s.objects for s in listing.samples] == [0, 1, 2, 3]
    assert noted(listing, "1 images that do not exist, left out")
    assert noted(listing, "paths are taken as in /x/y/images/rest/d.png")


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/images", "{split}", "images", ""])
def test_folders_without_a_data_yaml(tmp_path: Path, layout: str) -> None:
    for split in ("train", "valid") if "{split}" in layout else ("train",):
        folder = tmp_path / layout.format(split=split)
        image(folder / f"{split}.png")
        parallel = tmp_path / layout.format(split=split).replace("images", "labels")
        write(parallel / f"{split}.txt", BOX)
    write(tmp_path / "classes.txt", "cell\ndust\n")
    listing = list_objects(tmp_path)
    assert listing.class_names == ["cell", "dust"]
    found = {(Path(s.path).stem, s.split) for s in listing.samples}
    assert found == ({("train", "train"), ("valid", "val")} if "{split}" in layout else {("train", "")})
    assert labels(listing, "train") == ["dust"]
    assert listing.layout.startswith("YOLO, labels ")
    (tmp_path / "classes.txt").unlink()
    refused(tmp_path, "nothing names the classes 0 to 1", "--data.class_names")
    assert labels(list_objects(tmp_path, class_names=["x", "y"]), "train") == ["y"]


def test_labels_beside_images_with_a_data_yaml(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"images/train/{name}.png")
        write(tmp_path / f"images/train/{name}.txt", BOX)
    write(tmp_path / "images/train/classes.txt", "x\n")
    data_yaml(tmp_path)
    listing = list_objects(tmp_path)
    assert labels(listing, "b") == ["dust"]
    assert listing.notes == []
    write(tmp_path / "labels/train/a.txt", BOX)
    refused(tmp_path, "has label files beside its images", "labels/train has others")


def test_labels_that_lie_elsewhere_are_no_negatives(tmp_path: Path) -> None:
    """yolov3#788, darknet#4671: mAP 0, because no label file was found."""
    data_yaml(yolo(tmp_path, {"a": None, "b": None}))
    refused(tmp_path, "none of the 2 images of train has a label file", "labels/train/a.txt")
    yolo(tmp_path, {"a": BOX})
    yolo(tmp_path, {"t": None}, "test")
    data_yaml(tmp_path, "train: images/train\ntest: images/test\nnames: [a, b]")
    assert noted(list_objects(tmp_path), "none of the 1 images of test has a label file")


def test_orphans_and_other_files_are_named(root: Path) -> None:
    write(root / "labels/train/lost.txt", BOX)
    write(root / "images/train/notes.docx", "x")
    image(root / "images/train/a.jpg")
    listing = list_objects(root)
    assert noted(listing, "1 images have the label file of another image", "a.png")
    assert noted(listing, "1 label files are of no listed image", "lost.txt")
    assert noted(listing, "1 file is no image", "notes.docx")


def test_given_class_names_select_by_name(root: Path) -> None:
    listing = list_objects(root, class_names=["hair", "dust"])
    assert listing.class_names == ["hair", "dust"]
    assert labels(listing, "a") == ["dust"]
    assert labels(listing, "b") == ["hair"]
    assert listing.table.labels.tolist() == [1, 0]
    assert noted(listing, "1 objects are of classes", "cell")
    refused(root, "no class 'dist'", "did you mean 'dust'?", class_names=["dist", "cell"])
    refused(root, "name twice", class_names=["dust", "dust"])


def test_a_set_may_have_only_a_test_split(root: Path) -> None:
    data_yaml(root, "test: images/train\nnames: [a, b, c]")
    assert {sample.split for sample in list_objects(root).samples} == {"test"}


def test_keypoints_are_boxes(root: Path) -> None:
    data_yaml(root, "train: images/train\nkpt_shape: [2, 3]\nnames: [a, b, c]")
    write(root / "labels/train/a.txt", "1 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 1\n")
    listing = list_objects(root)
    assert boxes(listing, "a") == [[30, 10, 50, 30]]
    assert listing.table.shapes is None
    assert noted(listing, "kpt_shape")


def test_a_yaml_is_read_safely(root: Path) -> None:
    data_yaml(root, "train: images/train\nnames: !!python/object/apply:os.system ['touch x']\n")
    assert not (root / "x").exists()
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"k{n}: &k{n} [*b, *b]\n" for n in range(20))
    data_yaml(root, f"{bomb}train: images/train\nnames: [*a, b]\n")
    refused(root, "names must be a list of texts")


def test_relative_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert labels(list_objects(Path()), "a") == ["dust"]
    monkeypatch.chdir(root.parent)
    assert labels(list_objects(Path(root.name)), "a") == ["dust"]


def test_blood_cells(real_data: Path) -> None:
    listing = list_objects(real_data / "bccd")
    assert listing.class_names == ["RBC", "WBC", "Platelets"]
    assert len(listing.samples) == 364
    assert len(listing.table.labels) == 4886
    assert {split: sum(s.split == split for s in listing.samples) for split in ("train", "val", "test")} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    assert listing.notes == []
