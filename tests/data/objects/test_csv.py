"""Tables with a row for each object."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnlab.data.objects import ObjectListing, list_objects
from tests.data.objects.files import boxes, image, labels, noted, refused, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abc":
        image(tmp_path / f"pictures/{name}.png")
    return tmp_path


def read(root: Path, text: str, on_error: str = "raise") -> ObjectListing:
    return list_objects(root, write(root / "boxes.csv", text), on_error=on_error)  # type: ignore[arg-type]


def fails(root: Path, text: str, *parts: str) -> None:
    refused(root, *parts, csv=write(root / "boxes.csv", text))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,x1,y1,x2,y2,class", "{p},10,5,30,35,cat"),
        ("class,xmax,ymax,xmin,ymin,filename", "cat,30,35,10,5,{p}"),
        ("path,x,y,w,h,label", "{p},10,5,20,30,cat"),
        ("Path, X, Y, Width, Height, Name", "{p}, 10, 5, 20, 30, cat"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "{p},80,40,cat,10,5,30,35"),
        ("path,x1,y1,x2,y2,class", "{p},0.125,0.125,0.375,0.875,cat"),
    ],
)
def test_columns(root: Path, header: str, row: str) -> None:
    listing = read(root, f"\ufeff{header}\r\n{row.format(p='pictures/a.png')}\r\n")
    assert boxes(listing, "a") == [[10, 5, 30, 35]]
    assert labels(listing, "a") == ["cat"]
    assert listing.layout.startswith(f"CSV, {root / 'boxes.csv'}")
    assert noted(listing, "2 images are not listed", "b.png", "c.png")


def test_images_without_objects_splits_and_groups(root: Path) -> None:
    text = (
        "path,x1,y1,x2,y2,class,split,group\n"
        "pictures/b.png,1,1,5,5,zebra,valid,\npictures/a.png,10,5,30,35,cat,train,p1\n"
        "pictures/b.png,2,1,5,5,cat,valid,\npictures/c.png,,,,,,train,p2\n"
    )
    listing = read(root, text)
    assert listing.class_names == ["cat", "zebra"]
    assert [(Path(s.path).stem, s.split, s.group, s.stratum) for s in listing.samples] == [
        ("b", "val", "", "zebra"),
        ("a", "train", "p1", "cat"),
        ("c", "train", "p2", ""),
    ]
    assert labels(listing, "b") == ["zebra", "cat"]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("pictures/a.png,1,,3,4,cat", ["its box is 1, , 3, 4"]),
        ("pictures/a.png,1,2,x,4,cat", ["its box is 1, 2, x, 4"]),
        ("pictures/a.png,1,2,3,4,", ["has a box, but no class"]),
        ("pictures/a.png,1,2,nan,4,cat", ["finite"]),
        ("pictures/a.png,1,2,90,4,cat", ["beyond the image of 80 x 40"]),
        ("pictures/a.png,9,2,3,4,cat", ["a width of -6"]),
    ],
)
def test_a_bad_row_is_named_and_can_be_left_out(root: Path, row: str, parts: list[str]) -> None:
    text = f"path,x1,y1,x2,y2,class\npictures/a.png,10,5,30,35,cat\n\n{row}\n"
    fails(root, text, "boxes.csv, line 4: ", *parts)
    listing = read(root, text, "skip")
    assert boxes(listing, "a") == [[10, 5, 30, 35]]
    assert noted(listing, "left out", "line 4")


def test_tables_of_another_form(root: Path) -> None:
    form = "path,x1,y1,x2,y2,class\n"
    fails(root, "path;x1;y1\na;1;2\n", "one column", "commas")
    fails(root, "path,x1,y1,x2,class\na,1,2,3,4\n", "no column for the box")
    fails(root, "x1,y1,x2,y2,class\n1,2,3,4,a\n", "no column for the path")
    fails(root, "path,x1,y1,x2,y2\na,1,2,3,4\n", "no column for the class")
    fails(root, form, "no rows")
    fails(root, f"{form}pictures/a.png,1,2\n", "line 2: it has 3 values")
    fails(root, f"{form},1,2,3,4,cat\n", "line 2: the path is empty")
    fails(root, "path,x1,y1,x2,y2,class,split\npictures/a.png,1,2,3,4,cat,eval\n", "split is 'eval'")
    two = "pictures/a.png,1,2,3,4,cat,train\npictures/a.png,1,2,3,5,cat,val\n"
    fails(root, f"path,x1,y1,x2,y2,class,split\n{two}", "line 3", "another split or group")
    refused(root, "there is no such file", csv=root / "none.csv")
    refused(root, "no table is named", format="csv")
    refused(root, "there is", "boxes.csv: name it with --data.csv")
    refused(root, "did you mean 'yolo'?", format="yolov8")
    refused(root, "contradict", csv=root / "boxes.csv", format="coco")


def test_images_that_do_not_exist(root: Path) -> None:
    text = "path,x1,y1,x2,y2,class\npictures/a.png,10,5,30,35,cat\npictures/z.png,1,1,3,3,dog\n"
    fails(root, text, "there is no", "pictures/z.png")
    listing = read(root, text, "skip")
    assert [Path(s.path).stem for s in listing.samples] == ["a"]
    assert listing.table.counts.tolist() == [1]
