"""Pascal VOC's XML as users have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnlab.data.objects import list_objects
from tests.data.objects.files import HEIGHT, WIDTH, boxes, image, labels, noted, refused, write

Object = tuple[str, tuple[object, object, object, object], str]
CAT: Object = ("cat", (11, 6, 30, 35), "<truncated>1</truncated>")


def xml(path: Path, objects: list[Object], size: tuple[int, int] | None = (WIDTH, HEIGHT), head: str = "") -> Path:
    """An XML of objects: name, box, other elements."""
    text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    for name, box, others in objects:
        sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        text += f"<object><name>{name}</name>{others}<bndbox>{sides}</bndbox></object>"
    return write(path, f"{head}<annotation>{text}</annotation>")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcd":
        image(tmp_path / f"JPEGImages/{name}.png")
    xml(tmp_path / "Annotations/a.xml", [CAT])
    xml(
        tmp_path / "Annotations/b.xml", [("ant", (1, 1, 80, 40), ""), ("cat", (2, 2, 3, 3), "<difficult>1</difficult>")]
    )
    xml(tmp_path / "Annotations/c.xml", [])
    return tmp_path


def test_boxes_count_from_one_and_difficult_objects_are_ignored(root: Path) -> None:
    listing = list_objects(root)
    assert listing.class_names == ["ant", "cat"]
    assert boxes(listing, "a") == [[10, 5, 30, 35]]
    assert boxes(listing, "b") == [[0, 0, 80, 40], [1, 1, 3, 3]]
    assert listing.table.crowd.tolist() == [False, False, True]
    assert listing.table.sizes.tolist()[:2] == [[HEIGHT, WIDTH]] * 2
    assert noted(listing, "1 objects are marked as difficult")
    assert noted(listing, "2 of 4 images", "1 with an empty label file (c)", "1 without a label file (d)")
    assert {sample.split for sample in listing.samples} == {""}
    assert listing.layout == f"Pascal VOC, XML in {root / 'Annotations'}"


def test_boxes_that_begin_at_zero_do_not_count_from_one(root: Path) -> None:
    xml(root / "Annotations/c.xml", [("cat", (0, 0, 80, 40), "")])
    listing = list_objects(root)
    assert boxes(listing, "a") == [[11, 6, 30, 35]]
    assert boxes(listing, "c") == [[0, 0, 80, 40]]
    assert noted(listing, "1 of 4 boxes begin at 0")


def test_lists_decide_on_splits(root: Path) -> None:
    main = root / "ImageSets/Main"
    write(main / "train.txt", "a\nb\n")
    write(main / "val.txt", "c  -1\n")
    write(main / "cat_train.txt", "a 1\n")
    listing = list_objects(root)
    assert [(Path(s.path).stem, s.split) for s in listing.samples] == [("a", "train"), ("b", "train"), ("c", "val")]
    assert noted(listing, "1 images are not listed", "d.png")
    write(main / "val.txt", "c\nz\n")
    refused(root, "z.jpg: there is no such image")
    assert len(list_objects(root, on_error="skip").samples) == 3
    write(main / "val.txt", "a\n")
    refused(root, "a is in", "train.txt", "val.txt")
    (main / "val.txt").unlink()
    write(main / "trainval.txt", "a\nc\n")
    write(main / "test.txt", "b\n")
    assert [(Path(s.path).stem, s.split) for s in list_objects(root).samples] == [("a", ""), ("c", ""), ("b", "test")]


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("", ""), ("images", "annotations"), ("{split}", "{split}"), ("{split}/images", "{split}/annotations")],
)
def test_where_files_lie(tmp_path: Path, images: str, annotations: str) -> None:
    for split in ("train", "test"):
        image(tmp_path / images.format(split=split) / f"{split}.png")
        xml(tmp_path / annotations.format(split=split) / f"{split}.xml", [CAT])
    listing = list_objects(tmp_path)
    assert boxes(listing, "test") == [[10, 5, 30, 35]]
    assert {s.split for s in listing.samples} == ({"train", "test"} if "{split}" in images else {""})


@pytest.mark.parametrize(
    ("one", "parts"),
    [
        (("cat", (30, 6, 11, 35), ""), ["a width of -18", "the upper left corner first"]),
        (("cat", (11, 6, 82, 35), ""), ["beyond the image of 80 x 40: x 10 to 82"]),
        (("cat", ("nan", 6, 82, 35), ""), ["finite"]),
        (("cat", ("x", 6, 82, 35), ""), ["its box is"]),
        ((" ", (11, 6, 30, 35), ""), ["it has no name"]),
    ],
)
def test_a_bad_object_is_named_and_can_be_left_out(root: Path, one: Object, parts: list[str]) -> None:
    path = xml(root / "Annotations/a.xml", [CAT, one])
    refused(root, f"{path}, object 2: ", *parts)
    listing = list_objects(root, on_error="skip")
    assert boxes(listing, "a") == [[10, 5, 30, 35]]
    assert noted(listing, "left out", "object 2")


def test_objects_without_a_box_are_named(root: Path) -> None:
    write(root / "Annotations/a.xml", "<annotation><object><name>cat</name><polygon/></object></annotation>")
    refused(root, "a.xml, object 1: it has no xmin")


def test_an_image_whose_xml_is_broken_is_not_a_negative(root: Path) -> None:
    write(root / "Annotations/c.xml", "<annotation><object>")
    refused(root, "c.xml: cannot be read as XML")
    assert [Path(s.path).stem for s in list_objects(root, on_error="skip").samples] == ["a", "b", "d"]


def test_entities_are_not_expanded(root: Path) -> None:
    """A billion laughs: some lines of XML that fill the memory."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    head = f'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY l0 "ha">{levels}]>'
    xml(root / "Annotations/a.xml", [("&l9;", (11, 6, 30, 35), "")], head=head)
    refused(root, "a.xml: cannot be read as XML (it declares the entity 'l0')")
    xml(root / "Annotations/a.xml", [("&x;", (1, 1, 3, 3), "")], head='<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]>')
    refused(root, "it declares the entity 'x'")
    xml(root / "Annotations/a.xml", [CAT], head="<!DOCTYPE annotation>")
    assert labels(list_objects(root), "a") == ["cat"]


def test_classes_of_a_checkpoint_may_be_absent(root: Path) -> None:
    """VOC lists no classes: a class that no object has is not a mistake, another name of one is."""
    listing = list_objects(root, class_names=["cat", "dog", "ant"])
    assert listing.table.labels.tolist() == [0, 2, 0]
    assert noted(listing, "no object is of dog")
    refused(root, "no class 'dgo'", class_names=["dgo", "ant"])


def test_without_a_declared_size_that_of_the_image_counts(root: Path) -> None:
    xml(root / "Annotations/a.xml", [CAT, ("cat", (60, 6, 90, 35), "")], size=None)
    refused(root, "a.xml, object 2: ", "beyond the image of 80 x 40")
