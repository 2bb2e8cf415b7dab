"""Regression through the real command line, on generated images whose brightness is the value."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from scipy.stats import spearmanr

from cnnlab.losses import OrdinalLoss, ValueLoss
from cnnlab.tasks import Regression
from cnnlab.tasks.handshake import arguments_from
from cnnlab.tasks.metrics import ValueScores, quadratic_kappa, rank_correlation
from tests.conftest import TINY, Cnnlab, Result, processes, run_process

RECIPE = TINY.with_name("regression.yaml")


# In the middle of the third epoch.
STOP = """
import os, signal
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def write_spots(root: Path, count: int = 48) -> None:
    """Images 16 x 16 with a bright spot, and scores.csv: brightness 0..10, height of the spot, grade 0 to 3."""
    generator = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        brightness, top = i * 10 / (count - 1), int(generator.integers(0, 8))
        pixels = generator.integers(0, 20, (16, 16))
        pixels[top : top + 8, 4:12] += int(brightness * 22)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:02}.png")
        rows.append(
            {"path": f"{i:02}.png", "brightness": f"{brightness:.3f}", "top": top, "grade": int(brightness // 2.6)}
        )
    with (root / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def fit_spots(cnnlab: Cnnlab, tmp_path: Path) -> Callable[..., Result]:
    """``cnnlab fit`` with the tiny recipe, into the folder R."""
    write_spots(tmp_path / "spots")

    def run(*flags: str) -> Result:
        paths = ("--data.root", "spots", "--data.csv", "spots/scores.csv")
        return cnnlab("fit", "--config", RECIPE, *paths, "--run", "R", *flags)

    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_tested_predicted_explained_exported_and_reported(
    fit_spots: Callable[..., Result], cnnlab: Cnnlab, tmp_path: Path
) -> None:
    done = fit_spots("--trainer.max_epochs", "12")
    assert done.code == 0, done.err
    for arguments in (("test", "R"), ("predict", "R"), ("explain", "R", "--class", "brightness"), ("export", "R")):
        done = cnnlab(*arguments)
        assert done.code == 0, (arguments, done.err)
    run = tmp_path / "R"
    measured = json.loads((run / "test.json").read_text())
    rows = table(run / "predictions.csv")
    true, predicted = (np.array([float(row[name]) for row in rows]) for name in ("target brightness", "brightness"))
    # In the table's own unit, and what the table says to six digits.
    assert measured["test/mae"] == pytest.approx(np.abs(true - predicted).mean(), abs=1e-4)
    assert measured["test/rmse"] == pytest.approx(np.sqrt(np.square(true - predicted).mean()), abs=1e-4)
    assert measured["test/r2"] == pytest.approx(
        1 - np.square(true - predicted).sum() / np.square(true - true.mean()).sum()
    )
    assert measured["test/spearman"] == pytest.approx(spearmanr(true, predicted).statistic, abs=1e-6)
    assert measured["test/mae"] < np.abs(true - true.mean()).mean() / 2
    worst = [row for row in table(run / "errors/test.csv") if row["kind"] == "worst"]
    errors = [abs(float(row["error"])) for row in worst]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(np.abs(true - predicted).max(), abs=1e-4)
    assert table(run / "values.csv")[0]["value"] == "brightness"
    page = (run / "report.html").read_text()
    assert "brightness: prediction over truth" in page
    assert (run / "explain/gradcam.png").is_file()
    done = cnnlab("infer", "R/model.onnx", "spots", "--out", "out.csv", "--verify")
    assert done.code == 0, done.err
    inferred = {row["path"]: float(row["brightness"]) for row in table(tmp_path / "out.csv")}
    assert [inferred[row["path"]] for row in rows] == pytest.approx(
        [float(row["brightness"]) for row in rows], abs=1e-3
    )


def test_it_is_quantized_and_pruned(fit_spots: Callable[..., Result], cnnlab: Cnnlab, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    assert fit_spots("--trainer.max_epochs", "6").code == 0
    done = cnnlab("quantize", "R", "--max_drop", "1", "--images", "16")
    assert done.code == 0, done.err
    certificate = json.loads((tmp_path / "R/model.int8.onnx.json").read_text())
    assert certificate["metric"]["name"] == "val/mae"
    # A greater error is the worse one.
    assert certificate["metric"]["file"] <= certificate["metric"]["network"] + 1


def test_a_spread_is_learned_and_exported(fit_spots: Callable[..., Result], cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit_spots("--model.loss", "gaussian_nll", "--data.values", "brightness,top").code == 0
    for arguments in (("test", "R"), ("predict", "R"), ("export", "R"), ("export", "R", "--raw", "--out", "raw.onnx")):
        done = cnnlab(*arguments)
        assert done.code == 0, (arguments, done.err)
    rows = table(tmp_path / "R/predictions.csv")
    header = "index path target brightness,brightness,spread brightness,target top,top,spread top"
    assert list(rows[0]) == ["index", "path", *header.removeprefix("index path ").split(",")]
    assert all(float(row["spread top"]) > 0 for row in rows)
    spreads = []
    for model in ("R/model.onnx", "raw.onnx"):
        assert cnnlab("infer", model, "spots", "--out", f"{Path(model).stem}.csv").code == 0
        spreads.append([float(row["spread top"]) for row in table(tmp_path / f"{Path(model).stem}.csv")])
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-3)


def test_levels_with_an_order(fit_spots: Callable[..., Result], cnnlab: Cnnlab, tmp_path: Path) -> None:
    assert fit_spots("--model.ordinal", "true", "--data.values", "grade", "--trainer.max_epochs", "10").code == 0
    for arguments in (("test", "R"), ("predict", "R"), ("explain", "R"), ("export", "R")):
        done = cnnlab(*arguments)
        assert done.code == 0, (arguments, done.err)
    measured = json.loads((tmp_path / "R/test.json").read_text())
    rows = table(tmp_path / "R/predictions.csv")
    assert {float(row["grade"]) for row in rows} <= {0.0, 1.0, 2.0, 3.0}
    right = np.mean([row["grade"] == row["target grade"] for row in rows])
    assert measured["test/accuracy"] == pytest.approx(right)
    assert measured["test/kappa"] > 0.5


def test_an_interrupted_run_ends_with_the_same_weights(
    fit_spots: Callable[..., Result], cnnlab: Cnnlab, tmp_path: Path
) -> None:
    """A metric that keeps lists crashed a run that was resumed in the middle of an epoch ('list' has no 'to')."""
    assert fit_spots("--trainer.max_epochs", "3").code == 0
    whole = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    (tmp_path / "R").rename(tmp_path / "whole")
    (tmp_path / "stopping.py").write_text(STOP)
    assert fit_spots("--trainer.max_epochs", "3", "--trainer.callbacks+=stopping.Stop").code == 143
    done = cnnlab("resume", "R")
    assert done.code == 0, done.err
    again = torch.load(tmp_path / "R/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_measure_the_same(fit_spots: Callable[..., Result], tmp_path: Path) -> None:
    assert fit_spots("--trainer.max_epochs", "1").code == 0
    measured = []
    for count in (1, 2):
        done = run_process("test", "R", *processes(count), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        measured.append((tmp_path / "R/test.json").read_text())
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.values", "height"), "no column 'height'"),
        (("--model", "Classification"), "the data have values (ValueTable), but Classification answers with labels"),
        (("--model.ordinal", "true"), "model.ordinal is for one value of whole numbers"),
        (("--model.loss", "huber"), "there is no loss 'huber' of values"),
        (("--model.value_names", "[other]"), "model.value_names is ['other'], but the data have ['brightness']"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    fit_spots: Callable[..., Result], flags: tuple[str, ...], message: str
) -> None:
    done = fit_spots(*flags)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_levels_with_a_gap_are_refused_before_training(fit_spots: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "spots/scores.csv"
    rows = table(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "grade": {"2": "5"}.get(row["grade"], row["grade"])} for row in rows)
    done = fit_spots("--model.ordinal", "true", "--data.values", "grade")
    assert done.code == 2
    assert "levels without gaps" in done.err
    assert "scores.csv" in done.err


def test_another_librarys_data_module_tells_its_values() -> None:
    class Foreign(LightningDataModule):
        value_names = ("height",)
        value_mean = (1.7,)
        value_std = (0.1,)

    told = {"value_names": ("height",), "value_mean": (1.7,), "value_std": (0.1,)}
    assert arguments_from(Foreign(), Regression) == told


def test_losses_by_hand() -> None:
    outputs, targets = torch.tensor([[1.0], [0.0]]), torch.tensor([[14.0], [10.0]])
    # Standardized, the targets are 2 and 0.
    assert ValueLoss("mse", [10.0], [2.0])(outputs, targets) == 0.5
    assert ValueLoss("l1", [10.0], [2.0])(outputs, targets) == 0.5
    with_variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert ValueLoss("gaussian_nll", [10.0], [2.0])(with_variance, targets) == 0.25
    # One logit of 0 for each of two thresholds: twice log 2.
    loss = OrdinalLoss(1, 3)(torch.zeros(1, 2), torch.tensor([[2.0]]))
    assert loss.item() == pytest.approx(2 * np.log(2))


def test_scores_by_hand() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (2, 50))
    expected = spearmanr(first, second).statistic
    assert rank_correlation(torch.tensor(first), torch.tensor(second)).item() == pytest.approx(expected)
    assert quadratic_kappa(
        torch.tensor([[0], [1], [2], [2]]), torch.tensor([[0], [1], [1], [2]])
    ).item() == pytest.approx(1 - 0.25 / (9 / 4 + 6 / 4 - 2 * 5 / 4))
    scores = ValueScores([2.0, 4.0])
    scores.update(torch.tensor([[1.0, 4.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    # Of several values the mean in standard deviations: (1 / 2 + 2 / 4) / 2.
    found = scores.compute()
    assert found["mae"] == 0.5
    assert found["pairs"].tolist() == [[1.0, 0.0, 3.0, 0.0], [1.0, 0.0, 1.0, 4.0]]


def test_every_parameter_receives_a_gradient() -> None:
    task = Regression(
        value_names=["a", "b"], value_mean=[1.0, 2.0], value_std=[1.0, 3.0], loss="gaussian_nll", channels=1
    )
    loss: Any = task.loss(task(torch.rand(4, 1, 28, 28)), torch.rand(4, 2))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in task.network.parameters())
