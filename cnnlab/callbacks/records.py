"""What a run writes about itself: config.yaml and environment.json when it starts, test.json when it is tested."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.checkpoint import origin, write_atomically
from cnnlab.figures import confusion_matrix
from cnnlab.run import Run, write_json
from cnnlab.versions import versions


class RunRecords(Callback):
    """Writes the records of a run into its folder, on the first process.

    Args:
        config: The resolved configuration as YAML, or None where there is none to keep.
    """

    def __init__(self, config: str | None = None) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml, environment.json (a resumed run adds to it), and the configuration to each logger."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        if self.config is not None:
            config = _with_what_was_found(yaml.safe_load(self.config), trainer, pl_module)
            write_atomically(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
            for logger in trainer.loggers:
                logger.log_hyperparams(config)
        now = {**environment(), "device": str(trainer.strategy.root_device), "processes": trainer.world_size}
        if trainer.ckpt_path is not None and run.environment.is_file():
            first = json.loads(run.environment.read_text())
            now = {**first, "resumed": [*first.get("resumed", []), {**now, "step": trainer.global_step}]}
        write_json(run.environment, now)

        manifest = getattr(getattr(trainer, "datamodule", None), "manifest", None)
        if callable(manifest):
            write_atomically(run.manifest, _csv(manifest()))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint which classes made it, where the task is not one of cnnlab's and has not said so."""
        checkpoint.setdefault("cnnlab", origin(pl_module, getattr(trainer, "datamodule", None)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write validation.json where the validation was all that was asked for."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("val/")}
            write_json(Run(Path(trainer.default_root_dir)).validation, results)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write test.json, the confusion matrix as a table and as a picture, and each class's IoU."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("test/")}
        write_json(run.test, results)
        names = list(getattr(pl_module, "class_names", []))
        tables = getattr(pl_module, "tables", {})
        matrix, iou = tables.get("test/confusion_matrix"), tables.get("test/iou")
        if matrix is not None:
            write_atomically(run.confusion_matrix, _table(names, matrix.tolist()))
            unit = "images" if iou is None else "pixels"
            confusion_matrix(matrix.numpy(), names, run.pictures / "confusion_matrix.png", unit)
        if iou is not None:
            # A class that is nowhere has none.
            rows = [
                {"class": name, "iou": "" if isnan(value) else f"{value:.6g}"}
                for name, value in zip(names, iou.tolist(), strict=True)
            ]
            write_atomically(run.iou, _csv(rows))


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


def _csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _table(names: list[str], rows: list[list[int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth \\ predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))
    return text.getvalue().encode()
