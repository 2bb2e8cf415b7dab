"""cnnlab sync."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cnnlab.checkpoint import read_header
from cnnlab.commands.messages import say
from cnnlab.errors import InputError
from cnnlab.imports import by_path
from cnnlab.run import Run


def sync(run: Path, replay: bool = False, dashboard: bool = False) -> None:
    """Upload a run that was logged offline to Weights & Biases.

    Args:
        run: The run's folder.
        replay: Ignore the offline pieces, and replace W&B's run with metrics.csv, test.json and the pictures. Without
            an API key or with WANDB_MODE=offline, this writes another offline piece.
        dashboard: Create W&B panels for the run's task in its project, instead of uploading.

    Raises:
        InputError: If there is nothing to upload, or if W&B refuses the upload.
    """
    place = Run(run)
    if dashboard:
        say(f"dashboard  {_save_dashboard(place)}")
        return
    if replay:
        say(f"rebuilt from {place.metrics}  {_backfill(place)}")
        return
    if not place.wandb.is_file():
        raise InputError(f"{run} has logged nothing for W&B: train with --config logger/wandb, or give --replay true")
    # A run that was killed at once leaves an empty piece.
    pieces = [str(file.parent) for file in sorted(run.glob("wandb/offline-run-*/*.wandb")) if file.stat().st_size > 7]
    if not pieces:
        raise InputError(f"{run / 'wandb'} has no offline pieces, so there is nothing to upload")
    saved = json.loads(place.wandb.read_text())
    names = [part for name in ("id", "project", "entity") if saved[name] for part in (f"--{name}", saved[name])]
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *names, *pieces], check=False)
    if done.returncode or not all(list(Path(piece).glob("*.synced")) for piece in pieces):
        raise InputError("the upload to W&B failed (see above): wandb login, then cnnlab sync again")
    say(f"uploaded  {len(pieces)} pieces of run {saved['id']}")


def _backfill(run: Run) -> Path | str:
    from cnnlab.loggers import MetricsCsv, Wandb

    if not MetricsCsv(run.metrics).read():
        raise InputError(f"there is no {run.metrics} to rebuild the run from")
    saved = json.loads(run.wandb.read_text()) if run.wandb.is_file() else {}
    logger = Wandb(project=saved.get("project", "cnnlab"), entity=saved.get("entity"))
    logger.attach(run.folder)
    logger.restart()
    logger.backfill()
    if run.test.is_file():
        logger.log_metrics(json.loads(run.test.read_text()))
    where = Path(logger.experiment.dir).parent if logger.is_offline else logger.experiment.url
    logger.finalize("success")
    return where


def _save_dashboard(run: Run) -> str:
    import wandb

    from cnnlab.loggers.dashboard import create_dashboard

    if not run.wandb.is_file():
        raise InputError(f"{run.folder} has logged nothing for W&B: train with --config logger/wandb")
    saved = json.loads(run.wandb.read_text())
    task = by_path(read_header(run.to_evaluate())["cnnlab"]["task"])
    try:
        entity = saved["entity"] or str(wandb.Api().default_entity)
    except wandb.errors.Error as error:
        raise InputError(f"W&B did not return the default entity: {error}") from error
    workspace = create_dashboard(task, entity, saved["project"])
    try:
        workspace.save()
    except Exception as error:  # W&B's library raises many types when the server refuses or is unreachable.
        raise InputError(f"W&B did not accept the dashboard: {error}") from error
    return str(workspace.url)
