"""Sets in which some objects have only a box, and masks are to be learned."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from cnnlab.data import InstanceFolder
from cnnlab.errors import InputError
from tests.conftest import Cnnlab
from tests.data.objects.files import data_yaml, image, write, yolo
from tests.data.objects.pictures import write_objects

FLAGS = (
    *("--model", "Instances", "--model.network", "instances_s"),
    *("--data", "InstanceFolder", "--data.root", "p", "--data.size", "64"),
)
BOX, OUTLINE = "0 0.5 0.5 0.25 0.25\n", "1 0.1 0.1 0.4 0.1 0.4 0.4\n"


def only_boxes(root: Path, split: str, places: tuple[int, ...]) -> list[int]:
    """Take the outlines of a COCO file's annotations away; the number of objects of each image, from the first on."""
    content = json.loads((root / f"{split}.json").read_text())
    for place in places:
        content["annotations"][place].pop("segmentation")
    (root / f"{split}.json").write_text(json.dumps(content))
    images = [annotation["image_id"] for annotation in content["annotations"]]
    return [images.count(number) for number in range(len(content["images"]))]


def test_images_whose_objects_lack_outlines_are_refused_or_left_out_whole(cnnlab: Cnnlab) -> None:
    """Of an object that is left out alone, a network would learn that it is background."""
    root = write_objects(Path("p"), {"train": 8, "val": 4, "test": 4}, crowd=True)
    # Crowds stay: objects 0 of the first image; images 2 and 3 have two and three objects.
    counts = only_boxes(root, "train", (2, 4))
    assert counts[:4] == [1, 1, 2, 3]
    refused = cnnlab("fit", *FLAGS)
    assert refused.code == 2
    (line,) = refused.err.strip().splitlines()
    assert "02.png: 1 of its 2 objects have only a box" in line
    assert f"2 of {sum(counts) + 2 * 7:,} objects in 2 of 16 images" in line
    assert "--config detection" in line
    assert "--data.on_error skip" in line
    with pytest.warns(UserWarning, match="2 images left out, in which 2 objects have only a box and no outline"):
        assert cnnlab("data", "check", *FLAGS, "--data.on_error", "skip").code == 0
    with pytest.warns(UserWarning, match="2 images left out"):
        data = InstanceFolder(root=str(root), size=64, on_error="skip")
    names = [sample.path for sample in data.samples]
    assert len(names) == 14
    assert not [name for name in names if name.endswith(("train/02.png", "train/03.png"))]
    for sample in data.samples:
        number = int(Path(sample.path).stem)
        assert data.table.counts[sample.objects] == number % 4 + (number == 0)
        assert data.image_ids[sample.path] == number


def test_lines_of_boxes_and_of_polygons(cnnlab: Cnnlab) -> None:
    labels: dict[str, str | None] = {"a": OUTLINE, "b": OUTLINE + BOX, "c": "", "d": OUTLINE * 2 + BOX * 2}
    data_yaml(yolo(Path("p"), labels))
    with warnings.catch_warnings(action="ignore"):
        refused = cnnlab("fit", *FLAGS)
    assert refused.code == 2
    assert "b.png: 1 of its 2 objects have only a box" in refused.err
    assert "--data.on_error skip" in refused.err
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = InstanceFolder(root="p", size=64, on_error="skip")
    assert any("2 images left out, in which 2 objects" in str(note.message) for note in said)
    assert [Path(sample.path).name for sample in data.samples] == ["a.png", "c.png"]
    np.testing.assert_array_equal(data.table.counts, [1, 0])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_set_of_boxes_is_always_refused(cnnlab: Cnnlab, on_error: str) -> None:
    """Pascal VOC's files have no outlines: if all images were left out, only those without objects would stay."""
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    for name, content in (("a", f"<object><name>cell</name>{box}</object>"), ("b", "")):
        image(Path(f"p/JPEGImages/{name}.png"))
        write(Path(f"p/Annotations/{name}.xml"), f"<annotation><filename>{name}.png</filename>{content}</annotation>")
    refused = cnnlab("fit", *FLAGS, "--data.on_error", on_error)
    assert refused.code == 2
    (line,) = refused.err.strip().splitlines()
    assert "1 of 1 objects in 1 of 2 images have only a box and no outline" in line
    assert "--config detection" in line
    assert "skip" not in line


def test_objects_of_classes_that_are_left_out_need_no_outline(tmp_path: Path) -> None:
    data_yaml(yolo(tmp_path, {"a": OUTLINE, "b": OUTLINE + BOX}))
    with pytest.warns(UserWarning, match="are of classes that data.class_names leaves out"):
        data = InstanceFolder(root=str(tmp_path), size=64, class_names=["dust"])
    assert data.table.counts.tolist() == [1, 1]
    with pytest.raises(InputError, match="1 of its 2 objects"):
        InstanceFolder(root=str(tmp_path), size=64)
