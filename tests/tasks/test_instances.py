"""Instances through the real command line, on generated images of squares and disks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.data import InstanceFolder
from tests.conftest import TINY, Cnnlab, run_process
from tests.data.objects.pictures import write_objects
from tests.tasks.coco_oracle import summarize
from tests.tasks.object_runs import check_interrupted, check_two_processes, table

RECIPE = TINY.with_name("instances.yaml")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images for training, 8 for validation and 8 for testing; the first of each has a crowd."""
    return write_objects(tmp_path_factory.mktemp("objects") / "photos", {"train": 20, "val": 8, "test": 8}, crowd=True)


def fit(objects: Path, run: str, *flags: str) -> tuple[str, ...]:
    return ("fit", "--config", str(RECIPE), "--data.root", str(objects), "--run", run, *flags)


@pytest.fixture(scope="module")
def trained(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned enough to find some objects."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_process(*fit(objects, "R", "--trainer.max_epochs", "25", "--callbacks.gradcam", "false"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "R"


def test_a_run_is_tested_predicted_explained_exported_and_reported(
    trained: Path, objects: Path, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    for command in ("test", "predict", "explain", "export", "report"):
        done = cnnlab(command, trained)
        assert done.code == 0, (command, done.err)
    measured = json.loads((trained / "test.json").read_text())
    rows = table(trained / "predictions.csv")
    for masks, prefix in ((True, "test/"), (False, "test/box_")):
        found = summarize(objects / "test.json", rows, masks)
        assert measured[f"{prefix}map"] == pytest.approx(found["map"], abs=1e-5)
        assert measured[f"{prefix}map50"] == pytest.approx(found["map50"], abs=1e-5)
        assert measured[f"{prefix}map50"] > 0.2
    with Image.open(trained / "masks/03.png.png") as numbers:
        assert numbers.size == (64, 48)
        certain = [row for row in rows if row["path"].endswith("03.png") and row["certain"] == "1"]
        assert 1 < len(np.unique(np.array(numbers))) <= 1 + len(certain)
    done = cnnlab("predict", trained, objects / "test", "--conf", "0.5", "--format", "yolo")
    assert done.code == 0, done.err
    (tmp_path / "again").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "again" / name).symlink_to(
            objects / "test" if name == "images" else trained / "results/test/labels"
        )
    with pytest.warns(UserWarning, match="with an empty label file"):
        labels = InstanceFolder(root=str(tmp_path / "again"), class_names=["square", "disk"], size=64, format="yolo")
    kept = [row for row in table(trained / "results/test/predictions.csv") if row["certain"] == "1"]
    assert 0 < len(labels.table.labels) <= len(kept)
    done = cnnlab("infer", trained / "model.onnx", objects / "test", "--out", "out/predictions.csv", "--verify")
    assert done.code == 0, done.err
    inferred = table(Path("out/predictions.csv"))
    assert len(inferred) == len(rows)
    expected, again = (sorted(float(row["area"]) for row in each) for each in (rows, inferred))
    np.testing.assert_allclose(again, expected, atol=2)


def test_it_is_quantized_and_the_bare_network_is_decoded_by_the_reader(
    trained: Path, objects: Path, cnnlab: Cnnlab
) -> None:
    done = cnnlab("quantize", trained, "--max_drop", "1", "--images", "8", "--out", "int8.onnx")
    assert done.code == 0, done.err
    assert cnnlab("export", trained, "--raw", "--out", "raw.onnx").code == 0
    assert cnnlab("export", trained, "--out", "whole.onnx").code == 0
    masks = []
    for model in ("raw", "whole"):
        done = cnnlab("infer", f"{model}.onnx", objects / "test", "--out", f"{model}/predictions.csv")
        assert done.code == 0, done.err
        masks.append([row["mask"] for row in table(Path(f"{model}/predictions.csv"))][:5])
    assert masks[0] == masks[1]


def test_objects_without_masks_are_refused(objects: Path, tmp_path: Path, cnnlab: Cnnlab) -> None:
    content = json.loads((objects / "train.json").read_text())
    del content["annotations"][2]["segmentation"]
    (objects / "lacking.json").write_text(json.dumps(content))
    root = tmp_path / "lacking"
    root.mkdir()
    for name in ("train", "val", "test"):
        (root / name).symlink_to(objects / name)
        (root / f"{name}.json").symlink_to(objects / ("lacking.json" if name == "train" else f"{name}.json"))
    done = cnnlab(*fit(root, "R"))
    assert done.code == 2
    assert "objects have only a box and no outline" in done.err
    assert "--config detection" in done.err
    with pytest.warns(UserWarning, match="1 images left out, in which 1 objects have only a box"):
        done = cnnlab(*fit(root, "R", "--data.on_error", "skip", "--trainer.max_epochs", "1"))
    assert done.code == 0, done.err
    left_out = {(image["id"], "train") for image in content["images"]}
    left_out -= {(int(Path(row["path"]).stem), row["split"]) for row in table(Path("R/manifest.csv"))}
    assert left_out == {(content["annotations"][2]["image_id"], "train")}


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(objects: Path, tmp_path: Path) -> None:
    mixing = '{"mosaic": 0.5, "copy_paste": 0.5, "mixup": 0.2, "until": 0.7}'
    flags = (
        *("--trainer.max_epochs", "3", "--data.num_workers", "2"),
        *("--data.mixing", mixing, "--data.multi_scale", "[0.75, 1.5]"),
    )
    check_interrupted(("--config", str(RECIPE), "--data.root", str(objects), *flags), tmp_path)


@pytest.mark.slow
def test_two_processes_measure_the_same(trained: Path, tmp_path: Path) -> None:
    check_two_processes(trained, tmp_path)
