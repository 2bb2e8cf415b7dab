"""A run's own records: config.yaml and environment.json at its start, test.json and report.html after a test."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from cnnlab.callbacks.tables import results_of, write_measured
from cnnlab.checkpoint import make_portable
from cnnlab.data import contents
from cnnlab.data.listed_files import ListedFiles
from cnnlab.figures import confusion_matrix
from cnnlab.loggers import RunLogger, write_picture, write_table
from cnnlab.report import write_report
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.versions import versions
from cnnlab.writing import write_atomically, write_columns, write_csv, write_json
from cnnlab.yaml_text import dump_yaml, load_yaml


class RunRecords(Callback):
    """Writes the records of a run into its folder, on the first process.

    Args:
        config: The resolved configuration as YAML; None if there is none.
        recipe: The recipe of the configuration, and the changes to it ({"name": ..., "changes": {key: [recipe, run]}}).
    """

    def __init__(self, config: str | None = None, recipe: dict[str, Any] | None = None) -> None:
        self.config = config
        self.recipe = recipe
        self._contents_known = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml and environment.json (a resumed run adds to it); send the configuration to each logger."""
        if not trainer.is_global_zero:
            return
        run = Run(Path(trainer.default_root_dir))
        if trainer.ckpt_path is not None and (aside := run.set_results_aside(trainer.global_step)) is not None:
            rank_zero_info(f"results of the weights so far are in {aside}")
        config = None
        if self.config is not None:
            config = _with_what_was_found(load_yaml(self.config), trainer, pl_module)
            write_atomically(run.config, dump_yaml(config).encode())
        now = {**environment(), "device": str(trainer.strategy.root_device), "processes": trainer.world_size}
        if isinstance(pl_module, VisionTask):
            now["lower_is_better"] = list(pl_module.lower_is_better)
        if self.recipe is not None:
            now["recipe"] = self.recipe
        if trainer.ckpt_path is not None and run.environment.is_file():
            first = json.loads(run.environment.read_text())
            first.pop("stopped_early", None)
            now = {**first, "resumed": [*first.get("resumed", []), {**now, "step": trainer.global_step}]}
        write_json(run.environment, now)
        for logger in trainer.loggers:
            if config is not None:
                logger.log_hyperparams(config)
            if isinstance(logger, RunLogger) and trainer.global_step:
                logger.replay(trainer.global_step)
        if trainer.ckpt_path is None or not run.manifest.is_file():
            _write_manifest(trainer, run)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the classes of task and data to the checkpoint, if the task is not cnnlab's and has not added them."""
        if "cnnlab" not in checkpoint:
            make_portable(checkpoint, pl_module, getattr(trainer, "datamodule", None), trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write validation.json if the command was validate."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("val/")}
            write_json(results_of(trainer).validation, results)
            write_measured(trainer, results_of(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add to the manifest the hashes of the files that the first epoch has read."""
        data = getattr(trainer, "datamodule", None)
        if self._contents_known or not isinstance(data, ListedFiles):
            return
        self._contents_known = True
        data.learn_contents()
        if trainer.is_global_zero:
            _write_manifest(trainer, Run(Path(trainer.default_root_dir)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the manifest's hashes; draw the last validation's confusion matrix."""
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and self._contents_known and isinstance(data, ListedFiles):
            data.learn_the_rest()
            _write_manifest(trainer, Run(Path(trainer.default_root_dir)))
        if trainer.is_global_zero:
            _draw_matrix(trainer, pl_module, "val", max(trainer.global_step - 1, 0))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the training's metrics to loggers that would otherwise start empty."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, RunLogger):
                logger.replay()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write test.json and the task's tables and pictures."""
        if not trainer.is_global_zero:
            return
        run = results_of(trainer)
        results = {key: value for key, value in _results(trainer, pl_module).items() if key.startswith("test/")}
        write_json(run.test, results)
        write_measured(trainer, run)
        for logger in trainer.loggers:
            logger.log_metrics(results, None)
        if isinstance(pl_module, VisionTask):
            for name, rows in pl_module.result_tables("test").items():
                write_csv(run.table(name), rows)
                if f"test/{name}" not in pl_module.tables:  # Those are drawn, under the same name.
                    write_table(trainer, f"test/{name}", rows)
        _draw_matrix(trainer, pl_module, "test", None)


class Report(Callback):
    """Writes report.html into the run's folder at the end of a test, on the first process."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, after all other files have been written."""
        run = Run(Path(trainer.default_root_dir))
        # A test on other data has its own folder, and says nothing about the run itself.
        if trainer.is_global_zero and results_of(trainer) == run:
            write_report([run], run.report)


def _write_manifest(trainer: Trainer, run: Run) -> None:
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ListedFiles):
        columns, many = data.manifest_columns(), len(data.samples) > contents.MANY
        write_columns(run.packed_manifest if many else run.plain_manifest, columns)
        (run.plain_manifest if many else run.packed_manifest).unlink(missing_ok=True)
    elif callable(rows := getattr(data, "manifest", None)):
        write_csv(run.plain_manifest, rows())


def note(trainer: Trainer, name: str, content: Any) -> None:
    """Add something to a run's environment.json, on the first process.

    Args:
        trainer: The run's trainer; nothing is written if it writes no records.
        name: The key.
        content: Anything that JSON takes.
    """
    path = Run(Path(trainer.default_root_dir)).environment
    if trainer.is_global_zero and path.is_file():
        write_json(path, {**json.loads(path.read_text()), name: content})


def _draw_matrix(trainer: Trainer, pl_module: LightningModule, stage: str, step: int | None) -> None:
    tables = getattr(pl_module, "tables", {})
    if f"{stage}/confusion_matrix" not in tables:
        return
    path = results_of(trainer).pictures / f"{stage}_confusion_matrix.png"
    unit = "images" if f"{stage}/iou" not in tables else "pixels"
    names = list(getattr(pl_module, "class_names", []))
    confusion_matrix(tables[f"{stage}/confusion_matrix"].numpy(), names, path, unit)
    write_picture(trainer, f"{stage}/confusion_matrix", path, step)


def _with_what_was_found(config: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the configuration with what was found before the training: learning rate, batch size, precision."""
    data = getattr(trainer, "datamodule", None)
    for part, owner, name in (("model", pl_module, "lr"), ("data", data, "batch_size")):
        settings = (config.get(part) or {}).get("init_args") or {}
        if name in settings and owner is not None and name in owner.hparams:
            settings[name] = owner.hparams[name]
    settings = config.get("trainer") or {}
    if settings.get("precision") == "auto":
        # A plugin for precision is in the configuration too, and excludes a name.
        settings["precision"] = None if getattr(trainer, "has_precision_plugin", False) else str(trainer.precision)
    if (matmul := getattr(trainer, "float32_matmul_precision", None)) is not None:
        settings["float32_matmul_precision"] = matmul
    return config


def environment() -> dict[str, Any]:
    """Return what is needed to reproduce or report a run: versions, machine, command and git commit."""
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
    # The task's own values are not rounded to float32.
    return {**logged, **getattr(pl_module, "results", {})}
