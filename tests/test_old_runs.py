"""Runs, flags and files that cnnlab 0.1.0 wrote (commit a75a876) are still read: they lie in tests/old_runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cnnlab

OLD = Path(__file__).parent / "old_runs"


@pytest.fixture(params=["classification", "segmentation"])
def old_run(request: pytest.FixtureRequest, tmp_path: Path, mnist_root: Path, cnnlab: Cnnlab) -> Path:
    """A copy of a run, beside the data that it was trained on."""
    shutil.copytree(mnist_root, tmp_path / "data", dirs_exist_ok=True)
    run = tmp_path / str(request.param)
    shutil.copytree(OLD / request.param, run)
    return run


def test_it_is_tested_and_predicted_to_the_last_digit(old_run: Path, cnnlab: Cnnlab) -> None:
    for command in ("test", "predict"):
        done = cnnlab(command, old_run.name)
        assert done.code == 0, done.err
    kept = OLD / old_run.name
    found, expected = (json.loads((run / "test.json").read_text()) for run in (old_run, kept))
    assert found == pytest.approx(expected, rel=1e-6)
    assert [row.split(",")[:4] for row in (old_run / "predictions.csv").read_text().splitlines()] == [
        row.split(",")[:4] for row in (kept / "predictions.csv").read_text().splitlines()
    ]


def test_it_goes_on(old_run: Path, cnnlab: Cnnlab) -> None:
    done = cnnlab("resume", old_run.name, "--trainer.max_epochs", "2")
    assert done.code == 0, done.err
    slots = yaml.safe_load((old_run / "config.yaml").read_text())["callbacks"]
    assert "masks" not in slots
    assert "validation_masks" not in slots


def test_what_its_slots_were_told_still_counts(tmp_path: Path, cnnlab: Cnnlab) -> None:
    shutil.copytree(OLD / "segmentation", tmp_path / "segmentation")
    assert cnnlab("predict", "segmentation").code == 0
    # The run was trained with callbacks.masks.probabilities.
    assert list((tmp_path / "segmentation/probabilities").glob("*.npz"))


def test_it_is_exported_explained_and_reported(old_run: Path, cnnlab: Cnnlab) -> None:
    (old_run / "model.onnx").unlink()
    for command in ("export", "explain", "report"):
        done = cnnlab(command, old_run.name)
        assert done.code == 0, done.err
    for name in ("model.onnx", "explain/gradcam.png", "report.html"):
        assert (old_run / name).is_file()


def test_files_that_it_was_exported_to_still_predict(
    old_run: Path, cnnlab: Cnnlab, photos: Path, write_gray: Callable[[Path], Path]
) -> None:
    images = write_gray(old_run / "images") if old_run.name == "classification" else photos / "test/spots"
    done = cnnlab("infer", old_run / "model.onnx", images, "--out", "out/table.csv", "--verify")
    assert done.code == 0, done.err
    header = Path("out/table.csv").read_text().splitlines()[0]
    assert header.startswith("index,path,target,label,name" if old_run.name == "classification" else "index,path,mask")


@pytest.fixture
def write_gray() -> Callable[[Path], Path]:
    """Writes three gray images of 28 x 28 pixels into a folder."""
    import numpy as np
    from PIL import Image

    def write(folder: Path) -> Path:
        folder.mkdir()
        for i in range(3):
            Image.fromarray(np.full((28, 28), 60 * i, dtype=np.uint8)).save(folder / f"{i}.png")
        return folder

    return write


def test_old_flags_say_their_new_names(cnnlab: Cnnlab) -> None:
    done = cnnlab("fit", "--config", "shapes", "--callbacks.validation_masks", "false", "--print_config")
    assert done.code == 0, done.err
    assert "--callbacks.validation_masks is called --callbacks.validation_pictures now" in done.err
    assert yaml.safe_load(done.out)["callbacks"]["validation_pictures"] is False
