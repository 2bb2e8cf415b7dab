"""Loggers of other makers, with all of their files inside the run's folder."""

from __future__ import annotations

import functools
import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from cnnlab.errors import InputError
from cnnlab.loggers.metrics_csv import MetricsCsv
from cnnlab.run import Run
from cnnlab.writing import write_json

_PICTURES = {"gradcam": "val/gradcam", "validation": "val/masks"}
"""What pictures are called whose files are not called so."""


class InRun(ABC):
    """A logger that is told its run's folder before it begins."""

    @abstractmethod
    def begin_in(self, folder: Path) -> None:
        """Put all files there."""

    @abstractmethod
    def replay(self, before: int | None = None) -> None:
        """Take in what the run has logged before a step, or all of it, where this logger would begin with nothing."""


class TensorBoard(InRun, TensorBoardLogger):
    """TensorBoard's event files in the run's folder: tensorboard --logdir runs.

    Raises:
        InputError: If tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            super().__init__(".", name=None, version="")
        except ModuleNotFoundError as error:
            raise InputError('the logger TensorBoard needs pip install "cnnlab[dashboards]"') from error

    def begin_in(self, folder: Path) -> None:
        """Put all files there."""
        self._root_dir = str(folder / "tensorboard")

    def replay(self, before: int | None = None) -> None:
        """Nothing: TensorBoard reads all files of the folder together."""


_ENDED = ("MailboxClosedError", "HandleAbandonedError")
"""What W&B raises, besides ConnectionErrors, where its own process has ended; they belong to no public module."""


def _while_it_lives(method: Callable[..., None]) -> Callable[..., None]:
    """The method of a W&B logger, which does nothing once W&B's own process has ended.

    A scheduler's SIGTERM goes to that one too, while the training saves itself.
    """

    @functools.wraps(method)
    def tolerant(self: Wandb, *args: Any, **kwargs: Any) -> None:
        if self.has_ended:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if not isinstance(error, ConnectionError) and type(error).__name__ not in _ENDED:
                raise
            self.has_ended = True
            rank_zero_warn(
                f"wandb's own process has ended ({error}): what it lacks from here on is in metrics.csv, from which a "
                "resumed run, or cnnlab sync RUN --replay true, takes it"
            )

    return tolerant


class Wandb(InRun, WandbLogger):
    """One run of Weights & Biases for each run's folder, on the first process, whatever interrupts it.

    The id is kept in wandb.json, so that a resumed or requeued run, and its test, go on with the same run. Without a
    key it is offline. W&B cannot resume what is offline, and of several pieces of a run the last upload replaces
    the others (wandb/wandb#2423, #4624): so each offline piece begins with what the run's folder knows, and the last
    one has all numbers and pictures. A step is the optimizer's.

    Args:
        project: W&B's project.
        entity: W&B's user or team; the key's own if None.
        name: What the run is called there; as the run's folder if None.
        group: What it is grouped with.
        tags: Its tags.
        notes: A note.
        offline: Send nothing.
        log_model: Keep checkpoints as artifacts: true for the best, "all" for each.
        media_budget: Megabytes of pictures and tables of a run; what comes after is left out, with a warning.

    Raises:
        InputError: If checkpoints are asked for offline, or if the budget is negative.
    """

    def __init__(
        self,
        project: str = "cnnlab",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        offline: bool = False,
        log_model: bool | str = False,
        media_budget: float = 200.0,
    ) -> None:
        if media_budget < 0:
            raise InputError(f"media_budget is {media_budget}, expected megabytes, 0 or more")
        if log_model not in (True, False, "all"):
            raise InputError(f"log_model is {log_model!r}, expected true, false or all")
        super().__init__(
            name=name,
            project=project,
            log_model=log_model,  # type: ignore[arg-type]
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
        )
        del self._wandb_init["anonymous"]  # W&B warns of it.
        self._offline = offline
        self.media_budget = media_budget
        self._folder = Path()
        self._warned = False
        self.has_ended = False
        """Whether W&B's own process has ended before the run."""

    @property
    def is_offline(self) -> bool:
        """Whether nothing is sent."""
        return self._offline

    @rank_zero_only
    def begin_in(self, folder: Path) -> None:
        """Put all files there, and go on with the run's id."""
        self._folder = folder
        kept = Run(folder).wandb
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        self._id = known.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._name = self._wandb_init["name"] = self._wandb_init["name"] or folder.absolute().name
        # W&B's own process may have begun in another folder.
        self._save_dir = str(folder.absolute())
        self._wandb_init |= {"dir": self._save_dir, "id": self._id}
        # What W&B would put into the home directory.
        for variable, place in (
            ("WANDB_DIR", folder),
            ("WANDB_DATA_DIR", folder / "wandb/data"),
            ("WANDB_CACHE_DIR", folder / "wandb/cache"),
            ("WANDB_ARTIFACT_DIR", folder / "wandb/artifacts"),
        ):
            os.environ.setdefault(variable, str(place.absolute()))
        self._offline = self._offline or not _connected()
        if self._offline and self._log_model:
            raise InputError("log_model keeps checkpoints at W&B, and this run is offline: log in, or leave it out")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, begun when it is first asked for."""
        if self._experiment is None:
            self._experiment = self._begun()
        return self._experiment

    def _begun(self) -> Any:
        import wandb

        if self._folder != Path():
            (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
            identity = {"id": self._id, "project": self._project, "entity": self._wandb_init["entity"]}
            write_json(Run(self._folder).wandb, identity)
        # Offline there is nothing to ask whether the run exists.
        how = {"mode": "offline", "resume": None} if self._offline else {}
        try:
            run = wandb.init(**{**self._wandb_init, **how})
        except wandb.errors.Error as error:
            raise InputError(f"wandb: {error} (without network: WANDB_MODE=offline)") from error
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self._offline:
            rank_zero_info(f"wandb is offline: cnnlab sync {self._folder} uploads the run")
        return run

    @rank_zero_only
    @_while_it_lives
    def log_hyperparams(self, params: Any) -> None:
        """The resolved configuration, and as a file."""
        super().log_hyperparams(params)
        for name in ("config.yaml", "environment.json"):
            if (self._folder / name).is_file():
                self.experiment.save(str(self._folder / name), base_path=str(self._folder), policy="now")

    @rank_zero_only
    def replay(self, before: int | None = None) -> None:
        """Begin an offline piece with what was logged before it."""
        if self._offline:
            self.rebuild(before)

    @rank_zero_only
    def begin_anew(self) -> None:
        """Replace what W&B knows of the run, instead of going on with it."""
        self._wandb_init["resume"] = None

    @rank_zero_only
    def rebuild(self, before: int | None = None) -> None:
        """Write what the run's folder knows of the steps before one; of all, and the configuration, if None."""
        run = Run(self._folder)
        if before is None and run.config.is_file():
            self.log_hyperparams(yaml.safe_load(run.config.read_text(encoding="utf-8")))
        for row in MetricsCsv(run.metrics).read():
            if before is not None and int(row["step"]) >= before:
                break
            numbers = {name: float(value) for name, value in row.items() if value and name != "step"}
            self.log_metrics(numbers, int(row["step"]))
        for picture in sorted(run.pictures.glob("*.png")):
            name = _PICTURES.get(picture.stem, picture.stem.replace("_", "/", 1))
            self.log_image(name, [str(picture)], None if before is None else before - 1)

    @rank_zero_only
    @_while_it_lives
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write metrics of a step; what comes without a step stands behind the last one."""
        if step is None:
            self.experiment.log(dict(metrics))
        else:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    @_while_it_lives
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures while the budget lasts."""
        if self._affordable(key):
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    @_while_it_lives
    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Log a table while the budget lasts."""
        if self._affordable(key):
            super().log_table(key, *args, **kwargs)

    def _affordable(self, key: str) -> bool:
        # From the files, so that a resumed run goes on counting.
        media = (self._folder / "wandb").glob("*run-*/files/media/**/*")
        used = sum(path.stat().st_size for path in media if path.is_file()) / 1e6
        if used >= self.media_budget and not self._warned:
            self._warned = True
            rank_zero_warn(f"wandb: {used:.0f} MB of pictures, the media_budget; {key} and what follows is left out")
        return used < self.media_budget

    @rank_zero_only
    @_while_it_lives
    def finalize(self, status: str) -> None:
        """Finish W&B's run: unfinished ones lose what they have not written yet."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


def _connected() -> bool:
    """Whether W&B is to be sent to: there is a key, and nobody has said otherwise."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return mode == "disabled"
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.errors.Error as error:
        raise InputError(f"wandb: {error} (without network: WANDB_MODE=offline)") from error
