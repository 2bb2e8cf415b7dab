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
    """Upload what a run has logged for Weights & Biases without network.

    Args:
        run: The run's folder.
        replay: Rebuild the run at W&B from metrics.csv, test.json and the pictures, whatever its pieces hold. Without a
            key or with WANDB_MODE=offline that makes another piece, to be uploaded later.
        dashboard: Lay out the panels for the run's task in its project, instead of uploading.

    Raises:
        InputError: If there is nothing to upload, or if W&B does not take it.
    """
    place = Run(run)
    if dashboard:
        say(f"dashboard  {_laid_out(place)}")
        return
    if replay:
        say(f"rebuilt from {place.metrics}  {_rebuilt(place)}")
        return
    if not place.wandb.is_file():
        raise InputError(f"{run} has logged nothing for W&B: train with --config logger/wandb, or give --replay true")
    # Of those that were killed at once nothing was written.
    pieces = [str(file.parent) for file in sorted(run.glob("wandb/offline-run-*/*.wandb")) if file.stat().st_size > 7]
    if not pieces:
        raise InputError(f"{run / 'wandb'} has no offline pieces: nothing is left to upload")
    kept = json.loads(place.wandb.read_text())
    names = [part for name in ("id", "project", "entity") if kept[name] for part in (f"--{name}", kept[name])]
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *names, *pieces], check=False)
    if done.returncode or not all(list(Path(piece).glob("*.synced")) for piece in pieces):
        raise InputError("W&B has not taken the run (see above): wandb login, then cnnlab sync again")
    say(f"uploaded  {len(pieces)} pieces of run {kept['id']}")


def _rebuilt(run: Run) -> Path | str:
    from cnnlab.loggers import MetricsCsv, Wandb

    if not MetricsCsv(run.metrics).read():
        raise InputError(f"there is no {run.metrics} to rebuild the run from")
    kept = json.loads(run.wandb.read_text()) if run.wandb.is_file() else {}
    logger = Wandb(project=kept.get("project", "cnnlab"), entity=kept.get("entity"))
    logger.attach(run.folder)
    logger.restart()
    logger.backfill()
    if run.test.is_file():
        logger.log_metrics(json.loads(run.test.read_text()))
    where = Path(logger.experiment.dir).parent if logger.is_offline else logger.experiment.url
    logger.finalize("success")
    return where


def _laid_out(run: Run) -> str:
    from cnnlab.loggers.dashboard import create_dashboard

    if not run.wandb.is_file():
        raise InputError(f"{run.folder} has logged nothing for W&B: train with --config logger/wandb")
    kept = json.loads(run.wandb.read_text())
    task = by_path(read_header(run.to_evaluate())["cnnlab"]["task"])
    entity = kept["entity"] or _default_entity()
    workspace = create_dashboard(task, entity, kept["project"])
    try:
        workspace.save()
    except Exception as error:  # Whatever W&B's library makes of a server that refuses or cannot be reached.
        raise InputError(f"W&B has not taken the dashboard: {error}") from error
    return str(workspace.url)


def _default_entity() -> str:
    import wandb

    try:
        return str(wandb.Api().default_entity)
    except wandb.errors.Error as error:
        raise InputError(f"W&B does not say whose the project is: {error}") from error
