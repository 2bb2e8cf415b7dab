"""Detection through the real command line, on generated images of squares and disks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.deploy.export import load_onnx
from cnnlab.models.box_decoder import BoxDecoder
from tests.conftest import TINY, Cnnlab, run_process
from tests.data.objects.pictures import NAMES, write_objects
from tests.tasks.coco_oracle import summarize, summarize_results
from tests.tasks.object_runs import check_interrupted, check_two_processes, table

RECIPE = TINY.with_name("detection.yaml")

TWO_STAGE = (
    *("--model.network", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    *("--model.encoder", "null", "--model.network_args", "null"),
)


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
    done = run_process(*fit(objects, "R", "--trainer.max_epochs", "40", "--callbacks.gradcam", "false"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "R"


def test_a_run_is_tested_predicted_explained_exported_and_reported(
    trained: Path, objects: Path, cnnlab: Cnnlab
) -> None:
    for command in ("test", "predict", "explain", "export", "report"):
        done = cnnlab(command, trained)
        assert done.code == 0, (command, done.err)
    measured = json.loads((trained / "test.json").read_text())
    rows = table(trained / "predictions.csv")
    # The table has what was measured: COCO's own tool finds the same in it.
    found = summarize(objects / "test.json", rows)
    assert measured["test/map"] == pytest.approx(found["map"], abs=1e-5)
    assert measured["test/map50"] == pytest.approx(found["map50"], abs=1e-5)
    assert measured["test/map50"] > 0.2
    for row in table(trained / "intervals.csv"):
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert float(row["value"]) == pytest.approx(measured[f"test/{row['metric']}"], abs=1e-5)
    assert {row["name"] for row in rows} <= set(NAMES)
    assert all(float(row["x2"]) <= 64 and float(row["y2"]) <= 48 for row in rows)
    worst = [row for row in table(trained / "errors/test.csv") if row["kind"] == "worst"]
    assert worst
    assert {"objects", "found", "missed", "false"} <= set(worst[0])
    assert [row["class"] for row in table(trained / "classes.csv")] == list(NAMES)
    assert list(table(trained / "confusion_matrix.csv")[0])[1:] == [*NAMES, "background"]
    page = (trained / "report.html").read_text()
    assert "precision over recall" in page
    assert [row["kind"] for row in table(trained / "error_kinds.csv")][-1] == "missed"
    done = cnnlab("infer", trained / "model.onnx", objects / "test", "--out", "out/predictions.csv", "--verify")
    assert done.code == 0, done.err
    inferred = table(Path("out/predictions.csv"))
    assert len(inferred) == len(rows)
    sides = ("x1", "y1", "x2", "y2", "score")
    expected, again = (sorted([float(row[side]) for side in sides] for row in each) for each in (rows, inferred))
    np.testing.assert_allclose(again, expected, atol=0.02)


def test_thresholds_travel_in_the_checkpoint_and_in_the_file(trained: Path, cnnlab: Cnnlab) -> None:
    """Users asked which threshold to deploy with (ultralytics#18592, #2225): the one with the best F1, per class."""
    kept = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["thresholds"]
    assert len(kept) == 2
    assert kept != [0.5, 0.5]
    assert cnnlab("export", trained, "--out", "again.onnx").code == 0
    import onnx

    metadata = {prop.key: prop.value for prop in onnx.load("again.onnx").metadata_props}
    assert json.loads(metadata["cnnlab"])["output"]["thresholds"] == kept


def test_objects_are_written_for_other_tools(trained: Path, objects: Path, cnnlab: Cnnlab) -> None:
    """To go on labelling elsewhere, or to be scored by COCO's server."""
    done = cnnlab("predict", trained, "--format", "coco")
    assert done.code == 0, done.err
    measured = summarize(objects / "test.json", table(trained / "predictions.csv"))
    results = json.loads((trained / "predictions.json").read_text())
    assert {result["category_id"] for result in results} <= {1, 3}
    assert summarize_results(objects / "test.json", results) == measured
    done = cnnlab("predict", trained, objects / "test", "--conf", "0.3", "--format", "yolo")
    assert done.code == 0, done.err
    folder = trained / "results/test"
    rows = table(folder / "predictions.csv")
    assert all(float(row["score"]) >= 0.3 for row in rows)
    assert f"{objects / 'test/03.png'}: " in done.out
    assert (folder / "labels/classes.txt").read_text().split() == list(NAMES)
    for image in (objects / "test").iterdir():
        own = [row for row in rows if row["path"] == str(image)]
        lines = (folder / "labels" / f"{image.stem}.txt").read_text().splitlines()
        for row, line in zip(own, lines, strict=True):
            label, x, y, width, height = map(float, line.split())
            assert label == int(row["label"])
            sides = [(x - width / 2) * 64, (y - height / 2) * 48, (x + width / 2) * 64, (y + height / 2) * 48]
            assert sides == pytest.approx([float(row[side]) for side in ("x1", "y1", "x2", "y2")], abs=1e-3)
    assert cnnlab("export", trained, "--out", "boxes.onnx").code == 0
    done = cnnlab("infer", "boxes.onnx", objects / "test", "--conf", "0.3", "--format", "yolo", "--out", "o/table.csv")
    assert done.code == 0, done.err
    assert len(table(Path("o/table.csv"))) == len(rows)
    assert Path("o/labels/00.txt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--conf", "3"), "conf is 3"), (("--format", "voc"), "'yolo', 'coco'"), (("a", "b"), "'b' is another")],
)
def test_predictions_that_do_not_fit_are_refused(
    trained: Path, cnnlab: Cnnlab, flags: tuple[str, ...], message: str
) -> None:
    done = cnnlab("predict", trained, *flags)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 3


def test_it_is_quantized(trained: Path, cnnlab: Cnnlab) -> None:
    done = cnnlab("quantize", trained, "--max_drop", "1", "--images", "8", "--out", "int8.onnx")
    assert done.code == 0, done.err
    certificate = json.loads(Path("int8.onnx.json").read_text())
    assert certificate["metric"]["name"] == "val/map"
    assert np.isfinite(certificate["metric"]["file"])


def test_the_bare_network_is_exported_and_decoded_by_the_reader(trained: Path, objects: Path, cnnlab: Cnnlab) -> None:
    assert cnnlab("export", trained, "--raw", "--out", "raw.onnx").code == 0
    assert cnnlab("export", trained, "--out", "whole.onnx").code == 0
    for model in ("raw", "whole"):
        done = cnnlab("infer", f"{model}.onnx", objects / "test", "--out", f"{model}/predictions.csv")
        assert done.code == 0, done.err
    scores = [
        sorted(float(row["score"]) for row in table(Path(f"{model}/predictions.csv"))) for model in ("raw", "whole")
    ]
    assert max(scores[0]) == pytest.approx(max(scores[1]), abs=1e-4)


@pytest.mark.slow
def test_a_file_takes_images_of_any_size_if_asked(trained: Path, cnnlab: Cnnlab) -> None:
    done = cnnlab("export", trained, "--dynamic_size", "true", "--out", "any.onnx")
    assert done.code == 0, done.err
    differences = json.loads(Path("any.onnx.json").read_text())["differences"]
    assert set(differences) == {"1", "2", "5", "1 of 49x49", "2 of 49x49"}
    assert max(differences.values()) <= 1e-4
    found = load_onnx(Path("any.onnx"))(np.zeros((3, 3, 96, 161), dtype=np.uint8))
    assert found["boxes"].shape == (3, 100, 4)
    assert np.isfinite(found["boxes"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_interrupted_run_ends_with_the_same_weights(objects: Path, tmp_path: Path, workers: str) -> None:
    flags = ("--trainer.max_epochs", "3", "--data.num_workers", workers)
    check_interrupted(("--config", str(RECIPE), "--data.root", str(objects), *flags), tmp_path)


@pytest.mark.slow
def test_two_processes_measure_the_same(trained: Path, tmp_path: Path) -> None:
    """Torchmetrics' own metric died where a process had fewer images than another."""
    check_two_processes(trained, tmp_path)


def test_training_does_not_decode(objects: Path, cnnlab: Cnnlab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suppression takes time, and training measures only the loss."""
    decoded: list[bool] = []
    forward = BoxDecoder.forward

    def noted(self: BoxDecoder, outputs: Any) -> Any:
        decoded.append(self.training)
        return forward(self, outputs)

    monkeypatch.setattr(BoxDecoder, "forward", noted)
    done = cnnlab(*fit(objects, "R", "--trainer.max_epochs", "1"))
    assert done.code == 0, done.err
    assert decoded
    assert not any(decoded)


def test_a_run_without_an_end_is_refused(objects: Path, cnnlab: Cnnlab) -> None:
    done = cnnlab(*fit(objects, "R", "--trainer.max_epochs", "-1", "--model.schedule", "constant"))
    assert done.code == 2
    assert "model.static_share is a share of the run, and this one has no end" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.network", "one_stage_x"), "there is no network 'one_stage_x' for detection"),
        (("--model.network_args.strides", "[8,32]"), "expected some of [2, 4, 8, 16, 32]"),
        (("--model.network_args.frozen_stages", "99"), "model.network_args.frozen_stages is 99, expected 0 to 5"),
        (("--model.network", "instances_s"), "network 'instances_s' is for --model Instances"),
        ((*TWO_STAGE, "--model.tile", "64"), "model.tile is not for network"),
        ((*TWO_STAGE, "--model.static_share", "0.1"), "has a loss of its own"),
        (("--model.nms", "0"), "model.nms is 0"),
        (("--model.detections", "0"), "model.detections is 0"),
        (("--model.thresholds", "[0.5]"), "model.thresholds are 1, expected one for each of 2 classes"),
        (("--model", "Segmentation"), "the data have boxes (BoxFolder), but Segmentation answers with masks"),
        (("--data.augment_args.scale", "[2, 1]"), "augment_args.scale is [2, 1]"),
        (("--data.repeat", "2"), "data.repeat is 2"),
        (("--data.format", "voc"), "none of the 20 images of train has a label file"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    objects: Path, cnnlab: Cnnlab, flags: tuple[str, ...], message: str
) -> None:
    done = cnnlab(*fit(objects, "R", *flags))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 3


def test_large_images_are_seen_in_tiles(trained: Path, objects: Path, tmp_path: Path, cnnlab: Cnnlab) -> None:
    """Small objects in large images (ultralytics#24732, sahi#201): nine images in one, whose objects lie on seams."""
    root = tmp_path / "large"
    for split in ("train", "val", "test"):
        paste_together(objects, root, split)
    flags = ("--data.root", str(root), "--data.size", "[144,192]")
    measured = {}
    for name, own in (("tiles", ("--model.tile", "64", "--model.tile_overlap", "0.5")), ("whole", ())):
        done = cnnlab("test", trained, *flags, *own, "--run", name)
        assert done.code == 0, done.err
        (file,) = Path(name).glob("results/*/test.json")
        measured[name] = json.loads(file.read_text())["test/map50"]
    assert cnnlab("test", trained).code == 0
    alone = json.loads((trained / "test.json").read_text())["test/map50"]
    assert measured["tiles"] == pytest.approx(alone, abs=0.25)
    done = cnnlab("export", trained, *flags, "--model.tile", "64", "--out", "tiles.onnx")
    assert done.code == 0, done.err
    done = cnnlab("infer", "tiles.onnx", root / "test", "--conf", "0.3", "--out", "o/table.csv")
    assert done.code == 0, done.err
    assert len(table(Path("o/table.csv"))) > 3


def test_training_with_tiles_takes_parts_of_images(objects: Path, cnnlab: Cnnlab) -> None:
    done = cnnlab(*fit(objects, "R", "--data.size", "[96,128]", "--model.tile", "64", "--trainer.max_epochs", "1"))
    assert done.code == 0, done.err
    assert cnnlab("test", "R").code == 0
    done = cnnlab(*fit(objects, "A", "--model.tile", "64", "--data.augment", "albumentations"))
    assert done.code == 2
    assert "takes whole images" in done.err


def paste_together(objects: Path, root: Path, split: str) -> None:
    """One image of 3 x 3 others, and their boxes."""
    content = json.loads((objects / f"{split}.json").read_text())
    whole = Image.new("RGB", (192, 144))
    annotations = []
    for image in content["images"][:9]:
        row, column = divmod(int(image["id"]), 3)
        whole.paste(Image.open(objects / split / image["file_name"]), (64 * column, 48 * row))
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"] and not entry["iscrowd"]:
                left, top, width, height = entry["bbox"]
                moved = {**entry, "image_id": 0, "bbox": [left + 64 * column, top + 48 * row, width, height]}
                moved.pop("segmentation", None)
                annotations.append(moved)
    (root / split).mkdir(parents=True)
    whole.save(root / split / "whole.png")
    images = [{"id": 0, "file_name": "whole.png", "height": 144, "width": 192}]
    (root / f"{split}.json").write_text(json.dumps({**content, "images": images, "annotations": annotations}))
