"""TensorBoard and Weights & Biases, with all of their files in the run's folder."""

from __future__ import annotations

import functools
import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from cnnlab.errors import InputError
from cnnlab.lightning_compat import has_wandb_ended
from cnnlab.loggers.metrics_csv import MetricsCsv
from cnnlab.run import Run
from cnnlab.writing import write_json
from cnnlab.yaml_text import load_yaml

_PICTURES = {"gradcam": "val/gradcam", "validation": "val/predictions"}
"""File names of images that have another name in the loggers."""


class RunLogger(ABC):
    """A logger that keeps all of its files in a run's folder."""

    @abstractmethod
    def attach(self, folder: Path) -> None:
        """Keep all files in this folder."""

    @abstractmethod
    def replay(self, before: int | None = None) -> None:
        """Log the run's earlier values again, up to the step before, if this logger starts empty; all if None."""


class TensorBoard(RunLogger, TensorBoardLogger):
    """TensorBoard's event files in the run's folder: tensorboard --logdir runs.

    Raises:
        InputError: If tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            self.attach(Path())
        except ModuleNotFoundError as error:
            raise InputError('the logger TensorBoard needs pip install "cnnlab[dashboards]"') from error

    def attach(self, folder: Path) -> None:
        """Keep all files in the folder's ``tensorboard``."""
        TensorBoardLogger.__init__(self, folder / "tensorboard", name=None, version="")

    def replay(self, before: int | None = None) -> None:
        """Log nothing, since TensorBoard reads all files of the folder together.

        A resumed run begins a file that replaces the steps from ``before`` on, which a killed run has logged already.
        """
        if before is not None:
            self.finalize("success")
            TensorBoardLogger.__init__(self, self.save_dir, name=None, version="", purge_step=before)


def _on_first_if_open(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method of Wandb do nothing on other processes than the first, or once W&B's own process has ended.

    A scheduler sends SIGTERM to that process too, while the training still saves itself.
    """

    @rank_zero_only
    @functools.wraps(method)
    def wrapped(self: Wandb, *args: Any, **kwargs: Any) -> None:
        if self.is_closed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if not has_wandb_ended(error):
                raise
            self.is_closed = True
            rank_zero_warn(
                f"W&B's own process has ended ({error}), so W&B receives no more values. They are in metrics.csv; "
                "a resumed run, or cnnlab sync RUN --replay true, uploads them from there"
            )

    return wrapped


class Wandb(RunLogger, WandbLogger):
    """One run of Weights & Biases for each run's folder, also after interruptions; only the first process logs.

    wandb.json keeps the run's id, so that a resumed run and its test continue the same W&B run. Without an API key the
    run is offline. W&B cannot resume an offline run, and the last uploaded piece replaces earlier ones
    (wandb/wandb#2423, #4624). Each offline piece therefore starts with everything that the run's folder has. Steps are
    optimizer steps.

    Args:
        project: W&B's project.
        entity: W&B's user or team; the key's own if None.
        name: The run's name at W&B; the folder's name if None.
        group: The run's group.
        tags: The run's tags.
        notes: A note on the run.
        offline: Send nothing.
        log_model: Upload checkpoints as artifacts: true for the best, "all" for each.
        media_budget: Megabytes of images and tables in a run; later ones are left out, with a warning.

    Raises:
        InputError: If log_model is not a valid choice, or if media_budget is negative.
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
        self.media_budget = media_budget
        self.is_offline = offline
        """Whether nothing is sent."""
        self.is_closed = False
        """Whether W&B's own process has ended before the run."""
        self._settings: dict[str, Any] = {"project": project, "entity": entity, "name": name, "group": group}
        self._settings |= {"tags": tags, "notes": notes, "resume": "allow"}
        self._uploads_checkpoints = log_model
        self._folder = Path()
        self._run: Any = None
        self._warned_of_budget = False
        self._configure()

    def _configure(self) -> None:
        """Pass the settings and the current W&B run to Lightning's logger."""
        WandbLogger.__init__(
            self,
            name=self._settings["name"],
            save_dir=self._settings.get("dir", "."),
            version=self._settings.get("id"),
            project=self._settings["project"],
            log_model=self._uploads_checkpoints,  # type: ignore[arg-type]
            experiment=self._run,
        )

    @rank_zero_only
    def attach(self, folder: Path) -> None:
        """Keep all files in this folder, and continue with the folder's run id.

        Raises:
            InputError: If log_model is set and the run is offline.
        """
        self._folder = folder
        file = Run(folder).wandb
        saved = json.loads(file.read_text()) if file.is_file() else {}
        self._settings["name"] = self._settings["name"] or folder.absolute().name
        # W&B's own process may have another working folder.
        self._settings["dir"] = str(folder.absolute())
        self._settings["id"] = saved.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._configure()
        # W&B would put these into the home directory.
        for variable, place in (
            ("WANDB_DIR", folder),
            ("WANDB_DATA_DIR", folder / "wandb/data"),
            ("WANDB_CACHE_DIR", folder / "wandb/cache"),
            ("WANDB_ARTIFACT_DIR", folder / "wandb/artifacts"),
        ):
            os.environ.setdefault(variable, str(place.absolute()))
        self.is_offline = self.is_offline or not _is_connected()
        if self.is_offline and self._uploads_checkpoints:
            raise InputError("log_model uploads checkpoints to W&B, and this run is offline: log in, or leave it out")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, which starts at the first use."""
        if self._run is None:
            self._run = self._start()
            self._configure()
        return self._run

    def _start(self) -> Any:
        import wandb

        if self._folder != Path():
            (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
            write_json(Run(self._folder).wandb, {name: self._settings[name] for name in ("id", "project", "entity")})
        # Offline, W&B cannot check whether the run exists.
        offline = {"mode": "offline", "resume": None} if self.is_offline else {}
        try:
            run = wandb.init(**{**self._settings, **offline})
        except wandb.errors.Error as error:
            raise InputError(f"wandb: {error} (without network: WANDB_MODE=offline)") from error
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self.is_offline:
            rank_zero_info(f"wandb is offline: cnnlab sync {self._folder} uploads the run")
        return run

    @_on_first_if_open
    def log_hyperparams(self, params: Any) -> None:
        """Log the resolved configuration, and save its file."""
        super().log_hyperparams(params)
        for name in ("config.yaml", "environment.json"):
            if (self._folder / name).is_file():
                self.experiment.save(str(self._folder / name), base_path=str(self._folder), policy="now")

    @rank_zero_only
    def replay(self, before: int | None = None) -> None:
        """Start an offline piece with the run's earlier values; online, W&B has them."""
        if self.is_offline:
            self.backfill(before)

    @rank_zero_only
    def restart(self) -> None:
        """Replace W&B's run instead of continuing it."""
        self._settings["resume"] = None

    @rank_zero_only
    def backfill(self, before: int | None = None) -> None:
        """Log the images in the run's folder and its values before a step; if None, all, and its configuration."""
        run = Run(self._folder)
        if before is None and run.config.is_file():
            self.log_hyperparams(load_yaml(run.config.read_text(encoding="utf-8")))
        for row in MetricsCsv(run.metrics).read():
            if before is not None and int(row["step"]) >= before:
                break
            numbers = {name: float(value) for name, value in row.items() if value and name != "step"}
            self.log_metrics(numbers, int(row["step"]))
        for picture in sorted(run.pictures.glob("*.png")):
            name = _PICTURES.get(picture.stem, picture.stem.replace("_", "/", 1))
            self.log_image(name, [str(picture)], None if before is None else before - 1)

    @_on_first_if_open
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the metrics of a step; without a step, they follow the last one."""
        if step is None:
            self.experiment.log(dict(metrics))
        else:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @_on_first_if_open
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images, within the media budget."""
        if self._is_within_budget(key):
            super().log_image(key, images, step, **kwargs)

    @_on_first_if_open
    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Log a table, within the media budget."""
        if self._is_within_budget(key):
            super().log_table(key, *args, **kwargs)

    def _is_within_budget(self, key: str) -> bool:
        # Count the files, so that a resumed run continues the count.
        media = (self._folder / "wandb").glob("*run-*/files/media/**/*")
        used = sum(path.stat().st_size for path in media if path.is_file()) / 1e6
        if used >= self.media_budget and not self._warned_of_budget:
            self._warned_of_budget = True
            rank_zero_warn(f"wandb: {used:.0f} MB of pictures reach media_budget; {key} and later ones are left out")
        return used < self.media_budget

    @_on_first_if_open
    def finalize(self, status: str) -> None:
        """Finish W&B's run; an unfinished one loses its last values."""
        super().finalize(status)
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)
            self._run = None
            self._configure()


def _is_connected() -> bool:
    """Whether W&B has an API key, and WANDB_MODE does not turn it off."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return mode == "disabled"
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.errors.Error as error:
        raise InputError(f"wandb: {error} (without network: WANDB_MODE=offline)") from error
