"""What a run writes about itself: config.yaml and environment.json when it starts, test.json when it is tested."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnnlab.checkpoint import make_portable
from cnnlab.figures import confusion_matrix
from cnnlab.loggers import Row, RunLogger, write_picture, write_table
from cnnlab.run import Run
from cnnlab.versions import versions
from cnnlab.writing import write_atomically, write_csv, write_json


class RunRecords(Callback):
    """Writes the records of a run into its folder, on the first process.

    Args:
        config: The resolved configuration as YAML, or None where there is none to keep.
        recipe: Which recipe that comes from, and what was changed ({"name": ..., "changes": {key: [recipe, run]}}).
    """

    def __init__(self, config: str | None = None, recipe: dict[str, Any] | None = None) -> None:
        self.config = config
        self.recipe = recipe

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml, environment.json (a resumed run adds to it), and the configuration to each logger."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        config = None
        if self.config is not None:
            config = _with_what_was_found(yaml.safe_load(self.config), trainer, pl_module)
            write_atomically(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        now = {**environment(), "device": str(trainer.strategy.root_device), "processes": trainer.world_size}
        if self.recipe is not None:
            now["recipe"] = self.recipe
        if trainer.ckpt_path is not None and run.environment.is_file():
            first = json.loads(run.environment.read_text())
            now = {**first, "resumed": [*first.get("resumed", []), {**now, "step": trainer.global_step}]}
        write_json(run.environment, now)
        for logger in trainer.loggers:
            if config is not None:
                logger.log_hyperparams(config)
            if isinstance(logger, RunLogger) and trainer.global_step:
                logger.replay(trainer.global_step)
        manifest = getattr(getattr(trainer, "datamodule", None), "manifest", None)
        if callable(manifest):
            write_csv(run.manifest, manifest())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint which classes made it, where the task is not one of cnnlab's and has not said so."""
        if "cnnlab" not in checkpoint:
            make_portable(checkpoint, pl_module, getattr(trainer, "datamodule", None))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write validation.json where the validation was all that was asked for."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("val/")}
            write_json(Run(Path(trainer.default_root_dir)).validation, results)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation's confusion matrix."""
        if trainer.is_global_zero:
            _draw_matrix(trainer, pl_module, "val", max(trainer.global_step - 1, 0))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let loggers that would begin with nothing know what the training has logged."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, RunLogger):
                logger.replay()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write test.json, and as tables and pictures what is known of each class and of the probabilities."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("test/")}
        write_json(run.test, results)
        for logger in trainer.loggers:
            logger.log_metrics(results, None)
        names = list(getattr(pl_module, "class_names", []))
        tables = getattr(pl_module, "tables", {})
        if "test/confusion_matrix" in tables:
            write_atomically(run.confusion_matrix, _table(names, tables["test/confusion_matrix"].tolist()))
            _draw_matrix(trainer, pl_module, "test", None)
        if (counts := _counts(tables)) is not None:
            rows = _class_rows(names, counts.tolist(), pixels="test/iou" in tables)
            write_csv(run.classes, rows)
            write_table(trainer, "test/classes", rows)
        if "test/reliability" in tables:
            write_csv(run.reliability, _reliability_rows(tables["test/reliability"].tolist()))


def _draw_matrix(trainer: Trainer, pl_module: LightningModule, stage: str, step: int | None) -> None:
    tables = getattr(pl_module, "tables", {})
    if f"{stage}/confusion_matrix" not in tables:
        return
    path = Run(Path(trainer.default_root_dir)).pictures / f"{stage}_confusion_matrix.png"
    unit = "images" if f"{stage}/iou" not in tables else "pixels"
    names = list(getattr(pl_module, "class_names", []))
    confusion_matrix(tables[f"{stage}/confusion_matrix"].numpy(), names, path, unit)
    write_picture(trainer, f"{stage}/confusion_matrix", path, step)


def _counts(tables: dict[str, Tensor]) -> Tensor | None:
    """(K, 3): of each class how many of the test are right, are predicted, are true; None where that is not known."""
    matrix, counts = tables.get("test/confusion_matrix"), tables.get("test/counts")
    if matrix is not None:
        return torch.stack([matrix.diagonal(), matrix.sum(dim=0), matrix.sum(dim=1)], dim=1)
    # torchmetrics' MultilabelStatScores.
    if counts is not None and counts.shape[1:] == (5,):
        hits, false, _, _, true = counts.unbind(dim=1)
        return torch.stack([hits, hits + false, true], dim=1)
    return None


def _class_rows(names: list[str], counts: list[list[int]], pixels: bool) -> list[Row]:
    """A row for each class, of how many are right, are predicted and are true; None for what is not defined.

    >>> _class_rows(["cat"], [[3, 4, 6]], pixels=False)
    [{'class': 'cat', 'precision': 0.75, 'recall': 0.5, 'f1': 0.6, 'images': 6}]
    """
    rows: list[Row] = []
    for name, (hits, predicted, true) in zip(names, counts, strict=True):
        shared = {"precision": _quotient(hits, predicted), "recall": _quotient(hits, true)}
        both = _quotient(2 * hits, predicted + true)
        if pixels:
            iou = _quotient(hits, predicted + true - hits)
            rows.append({"class": name, "iou": iou, "dice": both, **shared, "pixels": true})
        else:
            rows.append({"class": name, **shared, "f1": both, "images": true})
    return rows


def _quotient(count: int, of: int) -> float | None:
    return float(f"{count / of:.6g}") if of else None


def _reliability_rows(bins: list[list[float]]) -> list[Row]:
    return [
        {
            "from": f"{place / len(bins):.4g}",
            "to": f"{(place + 1) / len(bins):.4g}",
            "images": int(count),
            "probability": f"{probability:.6g}" if count else "",
            "accuracy": f"{accuracy:.6g}" if count else "",
        }
        for place, (count, probability, accuracy) in enumerate(bins)
    ]


def _with_what_was_found(config: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The configuration with the learning rate and the batch size that a search before the training has set."""
    data = getattr(trainer, "datamodule", None)
    for part, owner, name in (("model", pl_module, "lr"), ("data", data, "batch_size")):
        settings = (config.get(part) or {}).get("init_args") or {}
        if name in settings and owner is not None and name in owner.hparams:
            settings[name] = owner.hparams[name]
    return config


def environment() -> dict[str, Any]:
    """What it takes to reproduce, or to report, a run: versions, machine, command and git commit."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "command": sys.argv,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": (_git("status", "--porcelain") or "").splitlines(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def _results(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    # The task's own values have not been rounded to float32 on their way.
    return {**logged, **getattr(pl_module, "results", {})}


def _table(names: list[str], rows: list[list[int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth \\ predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))
    return text.getvalue().encode()
