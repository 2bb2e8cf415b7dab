"""Checks before a job is submitted: errors and surprises that would otherwise come after the wait in the queue."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from cnnlab import cluster
from cnnlab.callbacks import LastCheckpoint
from cnnlab.commands.loading import ConfigOnlyCLI
from cnnlab.data import VisionDataModule
from cnnlab.errors import InputError
from cnnlab.models.factory import find_source
from cnnlab.models.weights import find_weights, prefetched_folder
from cnnlab.tasks import VisionTask
from cnnlab.tasks.starting_weights import start_checkpoint


def check_job(cli: ConfigOnlyCLI, command: str, processes: int, time: str, online: bool) -> list[str]:
    """Check a job before it is submitted, and return notes for the user.

    Its time limit is in one of SLURM's formats; online jobs may use the network.

    Raises:
        InputError: If the job would fail.
    """
    notes = _find_local_folders(cli)
    duration = cluster.parse_minutes(time)
    if command in ("fit", "resume"):
        notes += _check_saving(cli, duration) + _check_batches(cli, processes)
    if command == "fit":
        _check_weights(cli)
    if not online and logs_to_wandb(cli):
        if re.search(r"'log_model': (True|'all')", str(cli.settings["trainer"]["logger"])):
            raise InputError("log_model uploads checkpoints to W&B, and jobs are offline: leave it out or add --online")
        notes.append("wandb will be offline: cnnlab sync RUN uploads the run (--online if compute nodes have internet)")
    return notes


def _find_local_folders(cli: ConfigOnlyCLI) -> list[str]:
    """Note folders that other machines probably cannot read."""
    root = data_setting(cli, "root")
    places = {
        "the run": cli.plan.run.folder,
        "the working folder": Path.cwd(),
        **({"data.root": Path(root)} if root else {}),
    }
    own = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    found = [name for name, path in places.items() if any(path.absolute().is_relative_to(folder) for folder in own)]
    return [f"{name} is on this machine's own disk: compute nodes must see the same folder" for name in found]


def _check_saving(cli: ConfigOnlyCLI, duration: float) -> list[str]:
    last = cli.settings["callbacks"]["last"]
    if last is False:
        raise InputError("callbacks.last is off, so the run could not continue after its time limit: switch it on")
    if duration * 60 <= cluster.WARNING_SECONDS:
        raise InputError(
            f"--time is {duration:g} minutes: the last {cluster.WARNING_SECONDS} seconds are reserved for saving"
        )
    slot = LastCheckpoint(**(last.get("init_args", {}) if isinstance(last, dict) else {}))
    every = slot.every_n_minutes
    if every is not None and every >= duration:
        raise InputError(
            f"callbacks.last.every_n_minutes is {every:g}, and the job has {duration:g} minutes: a node failure "
            "would lose all of them; save more often"
        )
    if every is None and slot.every_n_steps is None:
        return ["the run is saved after each epoch only: a node failure loses up to an epoch (callbacks.last)"]
    return []


def _check_batches(cli: ConfigOnlyCLI, processes: int) -> list[str]:
    data, model = cli.datamodule, cli.model
    if not isinstance(data, VisionDataModule):
        return []
    data.prepare_data()
    data.setup("fit")
    images, step = len(data.train_set), data.batch_size * processes
    if step > images:
        raise InputError(
            f"a step takes {data.batch_size} x {processes} = {step} images, and there are only {images} for "
            "training: use a smaller data.batch_size or fewer processes"
        )
    if processes > 1 and getattr(data, "mixing", None) and data.batch_size % 2:
        raise InputError(
            f"data.batch_size is {data.batch_size}, and data.mixing mixes pairs: make it even, so that no pair is "
            "split between two processes"
        )
    notes = [f"a step takes {data.batch_size} x {processes} = {step} of {images} images"]
    if images % step and data.drop_last:
        notes[0] += f"; each epoch leaves out {images % step} different ones"
    if processes > 1 and model.hparams.get("lr_scaling", "") is None:
        notes.append(
            f"model.lr is {model.hparams['lr']:g}, for any number of processes (--model.lr_scaling linear scales it)"
        )
    return notes


def _check_weights(cli: ConfigOnlyCLI) -> None:
    """Check that the weights of a new run are available."""
    task = cli.model
    if not isinstance(task, VisionTask) or cli.plan.checkpoint is not None:
        return
    start = task.hparams.get("init_from")
    if start is not None:
        start_checkpoint(start)
    for argument, (name, weights) in task.fetched_networks().items():
        no_run = "" if argument == "network" else f"model.{argument} {name}: there is no such run or checkpoint, and "
        try:
            missing = find_weights(find_source(name).file_name, weights) is None
        except InputError as error:
            raise InputError(f"{no_run}{error}") from error
        if missing:
            raise InputError(
                f"{no_run}the pretrained weights of {name} are not in {prefetched_folder()}, and compute nodes seldom "
                "have internet: cnnlab fetch --config ... brings them"
            )


def data_setting(cli: ConfigOnlyCLI, name: str) -> Any:
    """Return a setting of the data; None if the data have no such setting."""
    return cli.settings["data"].get("init_args", {}).get(name)


def logs_to_wandb(cli: ConfigOnlyCLI) -> bool:
    """Whether the run has a W&B logger."""
    return "cnnlab.loggers.Wandb" in str(cli.settings["trainer"].get("logger"))
