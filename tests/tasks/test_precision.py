"""Networks in half precision, for each kind of target, through the real command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cnnlab
from tests.tasks.test_regression import write_spots

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def options(tmp_path: Path, mnist_root: Path, photos: Path) -> Callable[[str], tuple[str | Path, ...]]:
    """The recipe of a task, with its data."""

    def of(name: str) -> tuple[str | Path, ...]:
        if name == "regression":
            write_spots(tmp_path / "spots")
        places: dict[str, tuple[str | Path, ...]] = {
            "classification": ("--data.root", mnist_root),
            "image_folder": ("--data.root", photos, "--data.mixing", "true", "--callbacks.unfreezing", "false"),
            "regression": ("--data.root", tmp_path / "spots", "--data.csv", tmp_path / "spots/scores.csv"),
            "segmentation": (),
        }
        return ("--config", CONF / f"{name}.yaml", *places[name])

    return of


@pytest.mark.parametrize("name", ["classification", "image_folder", "regression", "segmentation"])
def test_a_network_in_half_precision_trains_and_is_tested(
    cnnlab: Cnnlab, tmp_path: Path, options: Callable[[str], tuple[str | Path, ...]], name: str
) -> None:
    """Lightning rounds a batch's numbers to the network's precision, which failed, or rounded the targets too."""
    precision = ("--trainer.precision", "bf16-true")
    assert cnnlab("fit", *options(name), *precision, "--trainer.max_epochs", "1", "--run", "R").code == 0
    assert cnnlab("test", "R", *precision).code == 0
    assert json.loads((tmp_path / "R/test.json").read_text())["test/loss"] >= 0
    if name == "regression":
        assert cnnlab("predict", "R", *precision).code == 0
        with (tmp_path / "spots/scores.csv").open() as table, (tmp_path / "R/predictions.csv").open() as predicted:
            true = {row["path"]: float(row["brightness"]) for row in csv.DictReader(table)}
            rows = list(csv.DictReader(predicted))
        assert all(
            float(row["target brightness"]) == pytest.approx(true[Path(row["path"]).name], abs=1e-4) for row in rows
        )
