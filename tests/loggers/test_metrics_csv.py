from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from cnnlab.loggers import MetricsCsv, write_picture


def test_a_step_has_one_row_whatever_is_logged_when(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 0.5, "epoch": 0}, 0)
    log.log_metrics({"loss": 0.25, "epoch": 0}, 1)
    log.log_metrics({"val/loss": 1.0}, 1)
    log.log_metrics({"loss": 0.125}, 2)
    rows = log.read()
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[1] == {"step": "1", "epoch": "0", "loss": "0.25", "val/loss": "1"}
    assert rows[0]["val/loss"] == ""


def test_a_resumed_run_drops_what_came_after_its_checkpoint_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path)
    for step in range(5):
        first.log_metrics({"loss": float(step), "name": f"a,{step}"}, step)
    again = MetricsCsv(path)
    again.forget_from(3)
    again.log_metrics({"loss": 30.0}, 3)
    again.log_metrics({"loss": 40.0, "new": 1}, 4)
    assert [row["loss"] for row in again.read()] == ["0", "1", "2", "30", "40"]
    assert again.read()[2]["name"] == "a,2"
    assert [row["step"] for row in again.read()] == list("01234")


def test_opening_deletes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsCsv(path).log_metrics({"loss": 1.0}, 0)
    before = path.read_bytes()
    MetricsCsv(path)
    assert path.read_bytes() == before


def test_a_line_cut_short_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path)
    log.log_metrics({"a": 1.0, "b": 2.0}, 0)
    log.log_metrics({"a": 1.0, "b": 2.0}, 1)
    path.write_bytes(path.read_bytes()[:-4])
    again = MetricsCsv(path)
    again.forget_from(1)
    again.log_metrics({"a": 3.0, "b": 4.0}, 1)
    assert [row["b"] for row in again.read()] == ["2", "4"]


def test_what_belongs_to_no_step_is_left_to_others(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1.0}, 0)
    log.log_metrics({"test/accuracy": 1.0}, None)
    assert log.read() == [{"step": "0", "epoch": "", "loss": "1"}]


def test_numbers_are_written_to_the_digits_of_a_float32(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1 / 3}, 0)
    assert log.read()[0]["loss"] == "0.333333333"


def test_pictures_go_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10), "red").save(path)
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
    trainer = Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    write_picture(trainer, "val/predictions", path, 7)
    logger.experiment.finish()
    (kept,) = (tmp_path / "wandb").rglob("media/images/val/*.png")
    assert kept.read_bytes() == path.read_bytes()
