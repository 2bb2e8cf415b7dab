"""The content of a run's folder, read for the report; missing files are left out."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.run import Run, flat
from cnnlab.writing import csv_rows, read_csv
from cnnlab.yaml_text import load_yaml

Table = list[dict[str, str]]
Series = list[tuple[int, float]]
"""(step, value), 0 for the first step."""


@dataclass(frozen=True)
class Facts:
    """A run, as described by its files.

    Raises:
        InputError: If there is no such run.
    """

    run: Run
    name: str

    def __post_init__(self) -> None:
        if not self.run.config.is_file() and not self.run.test.is_file() and not self.run.metrics.is_file():
            raise InputError(f"{self.run.folder} is no run: it has neither config.yaml nor metrics.csv nor test.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, by dotted keys."""
        return flat(load_yaml(self.config_text) or {})

    @cached_property
    def config_text(self) -> str:
        """The text of the resolved configuration."""
        return self.run.config.read_text(encoding="utf-8") if self.run.config.is_file() else ""

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device, command."""
        return _json(self.run.environment)

    @cached_property
    def results(self) -> dict[str, float]:
        """The test's results by metric; without a test, those of the training's last validation."""
        if tested := _json(self.run.test):
            return {name: value for name, value in tested.items() if value is not None}  # null: it was not a number.
        return {name: series[-1][1] for name, series in self.curves.items() if name.startswith("val/")}

    @cached_property
    def measured(self) -> str:
        """What the results were measured on, in words; "" if that is not known."""
        said = _json(self.run.measured)
        return str(said.get("test" if _is_there(self.run.test) else "validate", ""))

    def images_of(self, split: str) -> object:
        """What two runs must have in common so that their results on a split can be compared.

        These are the contents of the image files, or, for data that are no files, the settings that name and divide
        them. None if neither is known.
        """
        rows = (row for row in csv_rows(self.run.manifest) if row.get("split") == split)
        if images := frozenset(row.get("sha256") or row.get("path", "") for row in rows):
            return images
        names = ("data", "data.root", "data.csv", "data.val_size", "data.test_size", "data.split_seed")
        own = tuple(str(self.config.get(name)) for name in names if split == "val" or name != "data.val_size")
        return own if "data" in self.config else None

    @cached_property
    def curves(self) -> dict[str, Series]:
        """Each logged metric over the steps."""
        found: dict[str, Series] = {}
        for row in read_csv(self.run.metrics):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    found.setdefault(name, []).append((int(row["step"]), float(value)))
        return found

    def table(self, name: str) -> Table:
        """A table of the test's results, written by the task; empty if it is missing."""
        return read_csv(self.run.table(name))

    def picture(self, name: str) -> Path | None:
        """One of the run's images; None if it is missing."""
        path = self.run.pictures / name
        return path if path.is_file() else None

    def error_picture(self, row: dict[str, str]) -> Path:
        """The image of a row of errors."""
        return self.run.errors(self.errors[0]).parent / row["picture"]

    @property
    def lower_is_better(self) -> set[str]:
        """The metrics whose lower values are better, as recorded by the task."""
        return set(self.environment.get("lower_is_better", ("loss", "calibration_error")))

    @cached_property
    def confusion(self) -> tuple[list[str], npt.NDArray[np.int64]] | None:
        """The classes, and (K, K) counts; rows are the true classes."""
        matrix = self.run.table("confusion_matrix")
        if not _is_there(matrix):
            return None
        with matrix.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        return header[1:], np.array([row[1:] for row in rows], dtype=np.int64)

    def confused(self, count: int = 10) -> list[tuple[str, str, int]]:
        """The most frequently confused pairs (truth, prediction, how often)."""
        if self.confusion is None:
            return []
        names, counts = self.confusion
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(place, wrong.shape) for place in order]
        return [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    @cached_property
    def errors(self) -> tuple[Literal["val", "test"], Table]:
        """The images with the worst and with the least certain predictions, of the test if there was one."""
        for stage in ("test", "val"):
            place = self.run.errors(stage)
            if rows := [row for row in read_csv(place) if (place.parent / row["picture"]).is_file()]:
                return stage, rows
        return "val", []

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe's name, and the run's changes to it."""
        return dict(self.environment.get("recipe") or {})

    def files(self) -> list[Path]:
        """The files and folders of the run, without hidden ones."""
        return sorted(path for path in self.run.folder.iterdir() if not path.name.startswith(".") and path.exists())


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if _is_there(path) else {}


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
