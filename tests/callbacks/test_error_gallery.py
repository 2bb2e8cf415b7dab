"""The hardest images: they are those that the table of predictions says, on one process and on two."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.callbacks import ErrorGallery
from cnnlab.tasks import Classification
from tests.conftest import TINY, Cnnlab, run_process

SEGMENTATION = TINY.with_name("segmentation.yaml")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tested(fit: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> Path:
    """A run that was trained for an epoch, tested and predicted."""
    assert fit("--trainer.max_epochs", "1").code == 0
    for command in ("test", "predict"):
        done = cnnlab(command, "R")
        assert done.code == 0, done.err
    return tmp_path / "R"


def test_the_worst_are_those_whose_class_is_least_probable(tested: Path) -> None:
    predicted = table(tested / "predictions.csv")
    of_truth = {int(row["index"]): float(row[row["target"]]) for row in predicted}
    worst = [int(row["index"]) for row in table(tested / "errors/test.csv") if row["kind"] == "worst"]
    assert len(worst) == 16
    assert [of_truth[index] for index in worst] == pytest.approx(sorted(of_truth.values())[:16], abs=1e-5)


def test_the_least_certain_are_those_whose_best_class_is_least_probable(tested: Path) -> None:
    predicted = table(tested / "predictions.csv")
    best = {int(row["index"]): max(float(row[str(label)]) for label in range(10)) for row in predicted}
    rows = table(tested / "errors/test.csv")
    # Those that are among the worst too are not shown twice.
    shown = {int(row["index"]) for row in rows}
    assert len(shown) == len(rows)
    assert set(sorted(best, key=lambda index: best[index])[:16]) <= shown
    said = {row["index"]: (row["target"], row["label"]) for row in predicted}
    for row in rows:
        assert best[int(row["index"])] == pytest.approx(float(row["probability"]), abs=1e-5)
        assert (row["truth"], row["predicted"]) == said[row["index"]]


def test_each_has_its_picture(tested: Path) -> None:
    for stage in ("val", "test"):
        rows = table(tested / f"errors/{stage}.csv")
        assert rows
        for row in rows:
            with Image.open(tested / "errors" / row["picture"]) as picture:
                assert picture.size == (28, 28)
        assert (tested / f"pictures/{stage}_errors.png").is_file()


def test_photographs_are_named(fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit_photos("--trainer.max_epochs", "3", "--callbacks.errors.images", "2").code == 0
    assert cnnlab("test", "R").code == 0
    for row in table(tmp_path / "R/errors/test.csv"):
        assert Path(row["path"]).parent.name == row["truth"]


def test_segmentation_shows_the_masks_beside_the_image(cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert cnnlab("fit", "--config", SEGMENTATION, "--run", "R").code == 0
    rows = table(tmp_path / "R/errors/val.csv")
    worst = [float(row["wrong pixels"]) for row in rows if row["kind"] == "worst"]
    assert worst == sorted(worst, reverse=True)
    assert 0 < worst[0] <= 1
    with Image.open(tmp_path / "R/errors" / rows[0]["picture"]) as picture:
        assert picture.size == (96, 32)


class Own(Classification):
    """A task that returns its loss, as tasks of Lightning do."""

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
        return self._measure(batch, self.val_metrics)[0]


def test_a_task_of_ones_own_may_return_something_else(fit: Cnnlab, tmp_path: Path) -> None:
    done = fit("--model", "tests.callbacks.test_error_gallery.Own", "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    assert not (tmp_path / "R/errors").exists()


def test_images_are_kept_without_their_batches(mnist_root: Path) -> None:
    gallery = ErrorGallery(images=2)
    task = Classification(channels=1)
    images = torch.zeros(64, 1, 28, 28)
    for _ in range(3):
        answers = task.decode(torch.randn(64, 10))
        gallery._take(task, answers, Batch.of((images, torch.randint(10, (64,)))))
    assert len(pickle.dumps(gallery._hard)) < 4 * 2 * images[0].nbytes
    assert len({one.place for one in gallery._hard}) == len(gallery._hard) <= 4


def test_none_are_kept_where_it_is_switched_off(fit: Cnnlab, tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs", "1", "--callbacks.errors", "false").code == 0
    assert not (tmp_path / "R/errors").exists()


@pytest.mark.slow
def test_two_processes_find_the_same(fit: Cnnlab, tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs", "1").code == 0
    found = []
    for devices in ("1", "2"):
        flags = ("--trainer.devices", devices, "--trainer.strategy", "ddp" if devices == "2" else "auto")
        done = run_process("test", "R", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append([(row["kind"], row["index"], row["predicted"]) for row in table(tmp_path / "R/errors/test.csv")])
    assert found[0] == found[1]
