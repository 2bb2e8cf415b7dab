"""A run's task and data, for commands that train nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from cnnlab.checkpoint import read_weights
from cnnlab.commands.arguments import Plan, config_flags, parse_request, plan
from cnnlab.commands.training import VisionCLI
from cnnlab.data import VisionDataModule
from cnnlab.errors import InputError
from cnnlab.models.weights import architecture_only
from cnnlab.run import Run
from cnnlab.tasks import VisionTask


def load_config(arguments: list[str]) -> tuple[LightningModule, LightningDataModule, Run | None]:
    """Make the task and the data of ``RUN`` or of ``--config C`` with flags; pretrained weights are not loaded.

    Args:
        arguments: The command line after the command.

    Returns:
        Task, data, and the run, if one was named.

    Raises:
        InputError: If there is something to mend.
    """
    request = parse_request("fit", arguments)
    run = None
    if request.target is not None:
        run = Run(Path(request.target))
        if not run.config.is_file():
            raise InputError(f"there is no run {run.folder}: name a run's folder, or give --config")
        request.configs.insert(0, str(run.config))
    with architecture_only():
        cli = configure(Plan(Run(Path()), ["fit", *config_flags(request.configs), *request.flags]))
        return cli.model, cli.datamodule, run


class Trained(NamedTuple):
    """What a run has left."""

    task: LightningModule
    """With its weights, in eval mode."""
    data: LightningDataModule
    """As predict would have them."""
    run: Run
    """A new one for a checkpoint that lies in none."""
    checkpoint: Path
    """Where the weights are from."""


def load_run(target: str, flags: Sequence[str] = ()) -> Trained:
    """Make the task and the data of a run or a checkpoint.

    Args:
        target: A run's folder, or a checkpoint.
        flags: What is to be otherwise, such as --data.root; --ckpt_path names another of a run's checkpoints.

    Raises:
        InputError: If there is something to mend.
    """
    decided = plan(parse_request("predict", [target, *flags]))
    assert decided.checkpoint is not None
    checkpoint = decided.checkpoint.path
    try:
        task, data = (cli := configure(decided)).model, cli.datamodule
        task.load_state_dict(read_weights(checkpoint))
    finally:
        decided.run.discard_if_empty()
    return Trained(task.eval(), data, decided.run, checkpoint)


def load_cnnlab_run(
    target: str, flags: Sequence[str] = (), stage: str = "validate"
) -> tuple[VisionTask, VisionDataModule, Run, Path]:
    """The same, for what only cnnlab's tasks and data can do; the data are set up.

    Args:
        target: See load_run.
        flags: See load_run.
        stage: fit, to have the training images too, or validate.

    Raises:
        InputError: If there is something to mend, or if task or data are not cnnlab's.
    """
    task, data, run, checkpoint = load_run(target, flags)
    if not isinstance(task, VisionTask) or not isinstance(data, VisionDataModule):
        raise InputError(f"{type(task).__name__} on {type(data).__name__}: both must be cnnlab's for this")
    data.prepare_data()
    with silence():
        data.setup(stage)
    return task, data, run, checkpoint


def configure(decided: Plan) -> ConfigOnlyCLI:
    """Make what has been decided on.

    Raises:
        InputError: If there is something to mend.
    """
    with silence():
        cli = ConfigOnlyCLI(decided)
    if cli.datamodule is None:
        raise InputError("the configuration has no data")
    return cli


class ConfigOnlyCLI(VisionCLI):
    """The command line's configuration, task and data: it runs nothing."""

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved configuration."""
        settings: dict[str, Any] = yaml.safe_load(self._resolved)
        return settings

    def before_instantiate_classes(self) -> None:
        """Leave out what only a trainer needs: its loggers may ask for a package or an account."""
        super().before_instantiate_classes()
        self.config[self.subcommand].trainer.logger = False

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make none: a real one might ask for an accelerator that this machine lacks."""
        return _NoTrainer()


class _NoTrainer:
    """Takes the trainer's place, and runs nothing."""

    is_global_zero = False
    interrupted = False

    def fit(self, **kwargs: Any) -> None:
        """Do nothing."""

    validate = test = predict = fit


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what Lightning says of a trainer that runs nothing."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
