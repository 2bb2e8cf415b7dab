"""Segmentation through the command line: from masks in a folder to masks, overlays and IoU."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from tests.conftest import Cnnlab, processes, run_process

TINY = Path(__file__).parents[1] / "conf/segmentation.yaml"


def test_fit_test_predict_and_resume(cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert cnnlab("fit", "--config", TINY, "--run", "R", "--trainer.max_epochs", "1").code == 0
    resumed = cnnlab("resume", "R", "--trainer.max_epochs", "2")
    assert resumed.code == 0, resumed.err
    tested = cnnlab("test", "R")
    assert tested.code == 0, tested.err
    results = json.loads((tmp_path / "R/test.json").read_text())
    assert set(results) == {"test/loss", "test/mean_iou", "test/dice", "test/pixel_accuracy"}
    with (tmp_path / "R/classes.csv").open() as file:
        iou = [float(row["iou"]) for row in csv.DictReader(file) if row["iou"]]
    assert results["test/mean_iou"] == pytest.approx(np.mean(iou), abs=1e-6)
    matrix = np.loadtxt(tmp_path / "R/confusion_matrix.csv", delimiter=",", skiprows=1, usecols=range(1, 5))
    assert matrix.sum() == 6 * 32 * 32
    assert results["test/pixel_accuracy"] == matrix.trace() / matrix.sum()

    predicted = cnnlab("predict", "R", "--callbacks.masks.probabilities", "true")
    assert predicted.code == 0, predicted.err
    with (tmp_path / "R/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(i) for i in range(6)]
    hits = 0
    for row in rows:
        with Image.open(tmp_path / "R" / row["mask"]) as mask:
            assert mask.mode == "P"
            classes = np.asarray(mask)
        name = Path(row["path"]).stem
        with Image.open(tmp_path / f"data/shapes/masks/test/{name}.png") as truth:
            hits += (np.asarray(truth) == classes).sum()
        assert float(row["background"]) == pytest.approx((classes == 0).mean(), abs=1e-6)
        probabilities = np.load(tmp_path / f"R/probabilities/{name}.jpg.npz")["probabilities"]
        assert (probabilities.argmax(axis=0) == classes).mean() > 0.99
        with Image.open(tmp_path / f"R/overlays/{name}.jpg.png") as overlay:
            assert overlay.size == (64, 32)
            image = np.asarray(Image.open(row["path"]).convert("RGB"))
            assert np.array_equal(np.asarray(overlay)[:, :32], image)
            assert not np.array_equal(np.asarray(overlay)[:, 32:], image)
    # What predict writes is what test has measured.
    assert hits / matrix.sum() == results["test/pixel_accuracy"]


def test_predict_takes_images_of_any_size(cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert cnnlab("fit", "--config", TINY, "--run", "R", "--trainer.max_epochs", "1").code == 0
    sizes = {"a.jpg": (1, 1), "b.png": (33, 17), "sub/a.jpg": (300, 200)}
    for name, size in sizes.items():
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "gray").save(path)
    flags = ("--model.window", "96", "--model.margin", "32", "--callbacks.masks.overlays", "false")
    predicted = cnnlab("predict", "R", "--data.predict", "new", *flags)
    assert predicted.code == 0, predicted.err
    for name, size in sizes.items():
        with Image.open(tmp_path / f"R/results/new/masks/{name}.png") as mask:
            assert mask.size == size
    assert not (tmp_path / "R/results/new/overlays").exists()


def test_ignore_index_and_classes_come_from_the_data(cnnlab: Cnnlab, tmp_path: Path) -> None:
    data = ("--data", "MaskFolder", "--data.root", "data/shapes", "--data.ignore_index", "3", "--data.num_workers", "0")
    assert cnnlab("fit", "--config", TINY, "--run", "S", "--trainer.max_epochs", "1").code == 0
    assert cnnlab("fit", "--model", "Segmentation", "--model.network_args", '{"base":2,"depth":2}', *data, "--run", "R",
                  "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu").code == 0  # fmt: skip
    assert cnnlab("test", "R").code == 0
    matrix = np.loadtxt(tmp_path / "R/confusion_matrix.csv", delimiter=",", skiprows=1, usecols=range(1, 4))
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "data/shapes/masks/test").iterdir()]
    assert matrix.sum() == sum((mask != 3).sum() for mask in masks)
    assert yaml.safe_load((tmp_path / "R/config.yaml").read_text())["data"]["init_args"]["ignore_index"] == 3


def test_fetch_finds_the_encoders_weights(cnnlab: Cnnlab, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w/resnet10t.pth")
    network = ("--model.encoder", "resnet10t", "--model.network_args", "null")
    fetched = cnnlab("fetch", "--config", TINY, *network, "--model.weights", "pretrained", "--to", "w")
    assert fetched.code == 0, fetched.err
    assert "w/resnet10t.pth" in fetched.out
    flags = ("--model.weights", "w", "--trainer.max_epochs", "1", "--run", "R", "--data.size", "64")
    assert cnnlab("fit", "--config", TINY, *network, *flags).code == 0
    # The checkpoint brings its weights.
    (tmp_path / "w/resnet10t.pth").unlink()
    assert cnnlab("test", "R").code == 0
    assert yaml.safe_load((tmp_path / "R/config.yaml").read_text())["model"]["init_args"]["encoder"] == "resnet10t"


def test_a_contact_sheet_and_a_check(cnnlab: Cnnlab, tmp_path: Path) -> None:
    shown = cnnlab("data", "show", "--config", TINY)
    assert shown.code == 0, shown.err
    assert len(list(tmp_path.glob("runs/data-segmentation-*/pictures/batch.png"))) == 1
    assert cnnlab("data", "check", "--config", TINY).code == 0
    (tmp_path / "data/shapes/images/train/0003.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 36 images cannot be read and are left out"):
        checked = cnnlab("data", "check", "--config", TINY)
    assert checked.code == 2
    assert "0003.jpg: the file is empty" in checked.out


def test_pictures_of_validation_images_change_nothing(cnnlab: Cnnlab, tmp_path: Path) -> None:
    for name, on in (("R", "true"), ("S", "false")):
        flags = ("--model.dropout", "0.5", "--callbacks.validation_pictures", on)
        trained = cnnlab("fit", "--config", TINY, "--run", name, *flags)
        assert trained.code == 0, trained.err
    weights = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in "RS"]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    with Image.open(tmp_path / "R/pictures/validation.png") as picture:
        assert picture.size[0] > 300
    assert not (tmp_path / "S/pictures/validation.png").exists()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_scores_to_the_last_digit(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Samples that fill up the last batch counted twice (Lightning-AI/pytorch-lightning#7929, #12862)."""
    short = ("--config", TINY, "--run", "R", "--trainer.max_epochs", "1", "--data.images", "52")
    trained = run_process("fit", *short, *processes(2), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    results, tables, masks = [], [], []
    for count in (1, 2, 3):
        for command in ("test", "predict"):
            done = run_process(command, "R", *processes(count), "--data.batch_size", "7", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        # 13 images in two batches: a third process has none.
        results.append(json.loads((tmp_path / "R/test.json").read_text()))
        tables.append((tmp_path / "R/predictions.csv").read_bytes())
        masks.append({path.name: path.read_bytes() for path in (tmp_path / "R/masks").iterdir()})
    assert results[0] == results[1] == results[2]
    assert tables[0] == tables[1] == tables[2]
    assert len(masks[0]) == 13
    assert masks[0] == masks[1] == masks[2]
