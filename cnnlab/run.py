"""A run's folder: the paths in it, and the name of a new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cnnlab.errors import InputError
from cnnlab.results import replacing, results_folder, set_aside

RUN_VARIABLE = "CNNLAB_RUN"
"""The environment variable that gives the run's folder to the processes that a run starts."""


RESULTS = {
    "test": (
        *("test.json", "errors/test*", "pictures/test_*"),
        *("classes.csv", "confusion_matrix.csv", "reliability.csv", "values.csv", "value_pairs.csv"),
        *("error_kinds.csv", "precision_recall.csv", "f1.csv", "intervals.csv"),
    ),
    "validate": ("validation.json",),
    "report": ("report.html",),
    "predict": (
        "predictions.csv",
        "masks",
        "overlays",
        "probabilities",
        "pictures/predictions.png",
        "labels",
        "predictions.json",
    ),
    "explain": ("explain",),
    "benchmark": ("benchmark.*",),
    "export": ("model*.onnx", "model*.onnx.json", "model*.pt2*", "model*.xml*", "model*.bin"),
}
"""Files that each command makes from a run's weights, and that are outdated once training continues."""


class _Place:
    """A path in a run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, owner: type[Run]) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the paths in it."""

    folder: Path
    config = _Place("config.yaml")
    """The resolved configuration."""
    checkpoints = _Place("checkpoints")
    """The folder of the checkpoints."""
    best = _Place("checkpoints/best.ckpt")
    """The best checkpoint by the task's monitored metric."""
    last = _Place("checkpoints/last.ckpt")
    """The latest checkpoint."""
    metrics = _Place("metrics.csv")
    """All logged metrics, one row per step."""
    test = _Place("test.json")
    """The test's results."""
    validation = _Place("validation.json")
    """The results of a validation by itself."""
    measured = _Place("measured.json")
    """What its results were measured on, in words, by the command: validate, test or predict."""
    plain_manifest = _Place("manifest.csv")
    packed_manifest = _Place("manifest.csv.gz")
    wandb = _Place("wandb.json")
    """The run's id at Weights & Biases; the folder of the same name beside it has the pieces of offline runs."""
    explanations = _Place("explain")
    """The folder of the pictures of cnnlab explain."""
    report = _Place("report.html")
    """The HTML report of the run."""
    onnx = _Place("model.onnx")
    """The network as an ONNX file; its certificate is model.onnx.json."""
    pruning = _Place("pruning.json")
    """The channels or weights that cnnlab prune removed, and the effect on accuracy and speed."""
    benchmark = _Place("benchmark.json")
    """The table of cnnlab benchmark; the .csv and .png files of the same name are beside it."""
    predictions = _Place("predictions.csv")
    """A row for each predicted image."""
    pictures = _Place("pictures")
    """The folder of the pictures."""
    environment = _Place("environment.json")
    """Versions, device and git commit."""
    jobs = _Place("slurm")
    """The folder of its jobs on a cluster: the script, the jobs' ids (jobs.json), and their output."""

    @property
    def manifest(self) -> Path:
        """The image files that a run was trained on: path, label, split, bytes, hash; compressed, if there are many."""
        return self.packed_manifest if self.packed_manifest.is_file() else self.plain_manifest

    def table(self, name: str) -> Path:
        """Return the path of a table that a task makes from its test results, such as classes or confusion_matrix."""
        return self.folder / f"{name}.csv"

    def errors(self, stage: Literal["val", "test"]) -> Path:
        """The table of a stage's worst and least certain images; the folder of the same name has their pictures."""
        return self.folder / "errors" / f"{stage}.csv"

    def results_of(self, source: str, name: str | None = None) -> Run:
        """Return the folder for results on data other than the run's own test set; its structure is that of a run.

        The source is a path, or a split's name; see results.results_folder.
        """
        return Run(results_folder(self.folder, source, name))

    def set_results_aside(self, step: int) -> Path | None:
        """Move results of the weights at a step into RUN/earlier/step-STEP; None if there are none."""
        names = [*(name for names in RESULTS.values() for name in names), "results", "measured.json"]
        return set_aside(self.folder, f"step-{step}", names)

    @contextlib.contextmanager
    def replacing(self, command: str, names: Sequence[str] | None = None) -> Iterator[None]:
        """Let a command replace its earlier results: see results.replacing.

        Args:
            command: A name in RESULTS, or one for the folder of earlier results.
            names: The files and folders that the command makes, as patterns; those of RESULTS if None.
        """
        with replacing(self.folder, command, RESULTS[command] if names is None else names):
            yield

    def discard_if_empty(self) -> None:
        """Remove the folder if it is empty: it was created for a run that never began."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def exists(self) -> bool:
        """Whether the folder has any content; hidden files, such as its lock, do not count."""
        return self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir())

    def to_evaluate(self) -> Path:
        """Return the checkpoint for test and predict: the best one, else the last one.

        Raises:
            InputError: If there is no checkpoint.
        """
        for path in (self.best, self.last):
            if path.is_file():
                return path
        raise InputError(self._without_checkpoint("nothing to evaluate"))

    def to_resume(self) -> Path:
        """Return the checkpoint to resume training from: of last.ckpt and best.ckpt, the one with more steps.

        Raises:
            InputError: If there is no checkpoint.
        """
        found = [path for path in (self.last, self.best) if path.is_file()]
        if not found:
            raise InputError(self._without_checkpoint("nothing to resume"))
        from cnnlab.checkpoint import read_header  # Imports torch.

        return max(found, key=lambda path: int(read_header(path)["global_step"]))

    def _without_checkpoint(self, what: str) -> str:
        if not self.folder.is_dir():
            return f"there is no run {self.folder}: {what}"
        return f"run {self.folder} has no checkpoint in {self.checkpoints}: {what}; start a new run with cnnlab fit"


def find(path: str | Path, purpose: Literal["to_evaluate", "to_resume"] = "to_evaluate") -> tuple[Run | None, Path]:
    """Find the run and the checkpoint of a path, which is a run's folder or a checkpoint.

    Returns:
        The run (None for a checkpoint outside of any run's folder), and the checkpoint.

    Raises:
        InputError: If the path does not exist, or if the folder has no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        run = Run(path)
        return run, run.to_evaluate() if purpose == "to_evaluate" else run.to_resume()
    if not path.is_file():
        raise InputError(f"there is no run or checkpoint {path}")
    around = Run(path.absolute().parent.parent)
    return (around if around.config.is_file() else None), path


def global_rank() -> int:
    """Return this process's rank among all processes of a run, as set by its launcher; 0 if there is only one."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name]) or (int(os.environ.get("NODE_RANK", "0")) if name == "LOCAL_RANK" else 0)
    # Started by hand on several nodes.
    return int(os.environ.get("NODE_RANK", "0"))


def is_restarted_job() -> bool:
    """Whether SLURM has requeued this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def choose(requested: str | None, recipe: str, root: Path = Path("runs")) -> Run:
    """Choose the folder of a new run, the same one on all of its processes.

    Args:
        requested: The folder that the user wants, or None for ROOT/RECIPE-SUFFIX. The suffix is the job's id under
            SLURM and torchrun; otherwise the time, with -2, -3, ... if that is taken.
        recipe: The recipe's name.
        root: The folder of the runs.

    Returns:
        The run. The environment variable CNNLAB_RUN passes its folder to the processes that this one starts.
    """
    inherited = os.environ.get(RUN_VARIABLE)
    if inherited and global_rank() > 0:
        return Run(Path(inherited))
    if requested is not None:
        folder = Path(requested)
    else:
        job = _job_id(os.environ)
        folder = _claim(root, recipe) if job is None else root / f"{recipe}-{job}"
    os.environ[RUN_VARIABLE] = str(folder.absolute())
    return Run(folder)


def _claim(root: Path, recipe: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    name = f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    for count in range(1, 1000):
        folder = root / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise InputError(f"there are 999 runs called {name}: name this one with --run")


def _job_id(environment: Mapping[str, str]) -> str | None:
    """Return the id that all processes of a job share, even after a requeue; None for a process started by hand.

    >>> _job_id({"SLURM_JOB_ID": "12"})
    '12'
    >>> _job_id({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"})
    '12_3'
    """
    if "SLURM_JOB_ID" in environment:
        if "SLURM_ARRAY_JOB_ID" in environment:
            return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return environment["SLURM_JOB_ID"]
    if "TORCHELASTIC_RUN_ID" in environment:
        if environment["TORCHELASTIC_RUN_ID"] == "none":
            raise InputError(
                "torchrun gave this job no id, so its processes cannot agree on a folder: give --run DIR, or start "
                "torchrun with --standalone or --rdzv-id"
            )
        return environment["TORCHELASTIC_RUN_ID"]
    return None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration's values by their dotted keys, without class_path and init_args in the keys.

    >>> flat({"model": {"class_path": "A", "init_args": {"lr": 0.1}}, "seed": 0})
    {'model': 'A', 'model.lr': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, Mapping) and value:
            found |= flat(value, key)
        else:
            found[key] = value
    return found
