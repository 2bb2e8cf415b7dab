"""Load a run's task and data, for commands that do not train."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from cnnlab.checkpoint import read_checkpoint
from cnnlab.commands.arguments import Plan, config_flags, parse_request, plan
from cnnlab.commands.training import VisionCLI
from cnnlab.data import VisionDataModule
from cnnlab.errors import InputError
from cnnlab.models.weights import architecture_only
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.yaml_text import load_yaml


def load_config(arguments: list[str]) -> tuple[LightningModule, LightningDataModule, Run | None]:
    """Create the task and the data of ``RUN`` or of ``--config C`` with flags, without pretrained weights.

    Also returns the run, if one was named.

    Raises:
        InputError: If the run does not exist, or the configuration is not valid.
    """
    request = parse_request("fit", arguments)
    run = None
    if request.target is not None:
        run = Run(Path(request.target))
        if not run.config.is_file():
            raise InputError(f"there is no run {run.folder}: name a run's folder, or give --config")
        request.configs.insert(0, str(run.config))
        if run.manifest.is_file():
            request.flags = ["--data.splits", str(run.manifest), *request.flags]
    with architecture_only():
        cli = configure(Plan(Run(Path()), ["fit", *config_flags(request.configs), *request.flags]))
        return cli.model, cli.datamodule, run


def load_run(target: str, flags: Sequence[str] = ()) -> tuple[LightningModule, LightningDataModule, Run, Path]:
    """Load the task and the data of a run or a checkpoint.

    Args:
        target: A run's folder, or a checkpoint.
        flags: Settings to change, such as --data.root; --ckpt_path names another of the run's checkpoints.

    Returns:
        The task with its weights, in eval mode; the data as for predict; the run, a new one for a checkpoint outside of
        any run's folder; and the checkpoint.

    Raises:
        InputError: If the run or checkpoint does not exist or cannot be read, or if the flags are not valid.
    """
    decided = plan(parse_request("predict", [target, *flags]))
    assert decided.checkpoint is not None
    checkpoint = decided.checkpoint.path
    try:
        task, data = (cli := configure(decided)).model, cli.datamodule
        # They are averaged weights if the run averaged them.
        task.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    finally:
        decided.run.discard_if_empty()
    return task.eval(), data, decided.run, checkpoint


def load_cnnlab_run(
    target: str, flags: Sequence[str] = (), stage: str = "validate"
) -> tuple[VisionTask, VisionDataModule, Run, Path]:
    """Load a run like load_run, for functions that need cnnlab's tasks and data.

    The data are set up for a stage: "validate", or "fit" to have the training images too.

    Raises:
        InputError: If load_run fails, or if task or data are not cnnlab's.
    """
    task, data, run, checkpoint = load_run(target, flags)
    if not isinstance(task, VisionTask) or not isinstance(data, VisionDataModule):
        raise InputError(f"{type(task).__name__} on {type(data).__name__}: both must be cnnlab's for this")
    data.prepare_data()
    with silence():
        data.setup(stage)
    return task, data, run, checkpoint


def configure(decided: Plan) -> ConfigOnlyCLI:
    """Create the task and the data of a plan.

    Raises:
        InputError: If the configuration is not valid or has no data.
    """
    with silence():
        cli = ConfigOnlyCLI(decided)
    if cli.datamodule is None:
        raise InputError("the configuration has no data")
    return cli


class ConfigOnlyCLI(VisionCLI):
    """Creates the configuration, task and data of the command line, and runs nothing."""

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved configuration."""
        settings: dict[str, Any] = load_yaml(self._resolved)
        return settings

    def before_instantiate_classes(self) -> None:
        """Remove the loggers, which only a trainer needs: they may ask for a package or an account."""
        super().before_instantiate_classes()
        self.config[self.subcommand].trainer.logger = False

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Return a placeholder: a real trainer might ask for an accelerator that this machine lacks."""
        return _NoTrainer()


class _NoTrainer:
    """Replaces the trainer, and runs nothing."""

    is_global_zero = False
    interrupted = False

    def fit(self, **kwargs: Any) -> None:
        """Do nothing."""

    validate = test = predict = fit


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide Lightning's messages about a trainer that runs nothing."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
