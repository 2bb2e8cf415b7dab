"""Each kind of data in archives: what ``cnnlab data check`` says is what it says of the folder."""

from __future__ import annotations

import csv
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_PHOTOS, Cnnlab, write_photos
from tests.data.objects.files import coco, data_yaml, write, yolo
from tests.data.objects.files import image as write_image
from tests.data.objects.pictures import write_objects
from tests.data.test_mask_folder import stripes
from tests.data.test_mask_folder import write as write_pair

pytestmark = pytest.mark.filterwarnings("default")
CONF = TINY_PHOTOS.parent
XML = """<annotation><size><width>80</width><height>40</height></size><object><name>cell</name>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def masks(root: Path) -> tuple[str, ...]:
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        for number in range(count):
            write_pair(root, str(number), stripes(number), split)
    return ("--config", str(CONF / "segmentation.yaml"), "--data", "MaskFolder", "--data.crop", "32")


def outlines(root: Path) -> tuple[str, ...]:
    """Masks that are drawn from a COCO file."""
    write_objects(root, {"train": 4, "val": 4, "test": 4})
    return ("--config", str(CONF / "segmentation.yaml"), "--data", "MaskFolder", "--data.crop", "32")


def yolo_files(root: Path) -> tuple[str, ...]:
    labels = {f"{number}": "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n" for number in range(4)}
    for split in ("train", "val"):
        yolo(root, {**labels, "none": None}, split)
    data_yaml(root, "train: images/train\nval: images/val\nnames: [cell, dust, hair]\n")
    return ("--config", str(CONF / "detection.yaml"))


def coco_files(root: Path) -> tuple[str, ...]:
    for split in ("train", "val", "test"):
        coco(root / "annotations" / f"instances_{split}.json", [{"bbox": [3, 4, 20, 20]}])
        for name in "ab":
            write_image(root / "images" / split / f"{name}.png")
    return ("--config", str(CONF / "detection.yaml"))


def voc_files(root: Path) -> tuple[str, ...]:
    for number in range(8):
        write_image(root / "JPEGImages" / f"{number}.png")
        write(root / "Annotations" / f"{number}.xml", XML)
    write(root / "ImageSets/Main/train.txt", "0\n1\n2\n3\n")
    write(root / "ImageSets/Main/val.txt", "4\n5\n")
    write(root / "ImageSets/Main/test.txt", "6\n7\n")
    return ("--config", str(CONF / "detection.yaml"))


def boxes_in_a_table(root: Path) -> tuple[str, ...]:
    rows = [f"i/{number}.png,3,4,20,30,cell" for number in range(12)]
    for number in range(12):
        write_image(root / "i" / f"{number}.png")
    write(root / "boxes.csv", "\n".join(["path,x1,y1,x2,y2,class", *rows]) + "\n")
    return ("--config", str(CONF / "detection.yaml"), "--data.csv", "{root}/boxes.csv")


def values(root: Path) -> tuple[str, ...]:
    rows = [f"i/{number}.png,{number}" for number in range(12)]
    for number in range(12):
        write_image(root / "i" / f"{number}.png")
    write(root / "scores.csv", "\n".join(["path,brightness", *rows]) + "\n")
    return ("--config", str(CONF / "regression.yaml"), "--data.csv", "{root}/scores.csv")


def labels(root: Path) -> tuple[str, ...]:
    rows = [f"i/{number}.png,{'odd' if number % 2 else 'even'}" for number in range(12)]
    for number in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(write_image(root / "i" / f"{number}.png"))
    write(root / "labels.csv", "\n".join(["path,label", *rows]) + "\n")
    return ("--config", str(TINY_PHOTOS), "--data.csv", "{root}/labels.csv")


KINDS = [masks, outlines, yolo_files, coco_files, voc_files, boxes_in_a_table, values, labels]


@pytest.mark.parametrize("make", KINDS)
def test_a_check_of_archives_says_what_it_says_of_files(
    cnnlab: Cnnlab, tmp_path: Path, make: Callable[[Path], tuple[str, ...]]
) -> None:
    """The same images, splits, objects and notes from a tar, from shards, and from a zip of each folder in the root."""
    flags = make(tmp_path / "files/r")
    forms = {name: tmp_path / name / "r" for name in ("files", "shards", "parts")} | {"tar": tmp_path / "tar/r.tar"}
    assert cnnlab("data", "pack", forms["files"], forms["shards"], "--size", "20KB").code == 0
    forms["tar"].parent.mkdir()
    with tarfile.open(forms["tar"], "w") as tar:
        tar.add(forms["files"], "r")
    forms["parts"].mkdir(parents=True)
    for path in forms["files"].iterdir():
        if path.is_dir():
            shutil.make_archive(str(forms["parts"] / path.name), "zip", path)
        else:
            shutil.copy(path, forms["parts"])
    said = {}
    for form, root in forms.items():
        own = [flag.format(root=root) for flag in flags]
        done = cnnlab("data", "check", *own, "--data.root", root)
        said[form] = (done.code, (done.out + done.err).replace(str(root), "ROOT").replace(str(tmp_path), ""))
    assert "images can be read" in said["files"][1]
    assert said["tar"] == said["shards"] == said["parts"] == said["files"]


def predicted(path: Path) -> list[tuple[str, ...]]:
    """Each image's name and answers in a table of predictions."""
    with path.open(newline="") as file:
        return [(Path(row.pop("path")).name, *row.values()) for row in csv.DictReader(file)]


def test_a_zip_is_predicted_as_its_folder_by_a_run_and_by_an_exported_file(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Photographs come as a zip."""
    write_photos(tmp_path / "p", {"": 6})
    with zipfile.ZipFile(tmp_path / "new.zip", "w", zipfile.ZIP_DEFLATED) as content:
        for path in sorted((tmp_path / "p/along").iterdir()):
            content.write(path, f"new/{path.name}")
    fit = ("--callbacks.unfreezing", "false", "--callbacks.gradcam", "false", "--trainer.max_epochs", "1")
    assert cnnlab("fit", "--config", TINY_PHOTOS, *fit, "--data.root", "p", "--data.size", "16", "--run", "R").code == 0
    assert cnnlab("predict", "R", "p/along").code == 0
    done = cnnlab("predict", "R", "new.zip")
    assert done.code == 0, done.err
    expected = predicted(tmp_path / "R/results/along/predictions.csv")
    assert len(expected) == 6
    assert predicted(tmp_path / "R/results/new.zip/predictions.csv") == expected
    assert cnnlab("predict", "R", "new.zip/03.jpg").code == 0
    assert len(predicted(tmp_path / "R/results/03.jpg/predictions.csv")) == 1
    assert cnnlab("export", "R").code == 0
    model = next((tmp_path / "R").rglob("*.onnx"))
    assert cnnlab("infer", model, "new.zip", "--out", "zip.csv").code == 0
    assert cnnlab("infer", model, "p/along", "--out", "files.csv").code == 0
    assert predicted(tmp_path / "zip.csv") == predicted(tmp_path / "files.csv")
    missing = cnnlab("predict", "R", "new.zip/nothing")
    assert missing.code == 2
    assert "there is no folder new.zip/nothing" in missing.err
