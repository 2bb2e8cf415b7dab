"""A table that all processes write, and that the first one puts in order."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from cnnlab.run import Run
from cnnlab.writing import write_atomically, write_json, written_row_by_row

_T = TypeVar("_T")


def results_of(trainer: Trainer) -> Run:
    """Return where a trainer's results belong: the run, or a folder in it for data other than its own."""
    run = Run(Path(trainer.default_root_dir))
    source = getattr(getattr(trainer, "datamodule", None), "results_source", None)
    if source is None:
        return run
    results = run.results_of(source)
    if trainer.is_global_zero:
        write_atomically(results.folder / "source.txt", source.encode())
    return results


def write_measured(trainer: Trainer, results: Run) -> None:
    """Write beside the results which images they were measured on, where the data say it."""
    describe = getattr(getattr(trainer, "datamodule", None), "describe_measured", None)
    if not callable(describe) or trainer.state.fn is None:
        return
    stage = str(trainer.state.fn.value)
    known = json.loads(results.measured.read_text(encoding="utf-8")) if results.measured.is_file() else {}
    write_json(results.measured, {**known, stage: describe(stage) + _limit(trainer, stage)})


def _limit(trainer: Trainer, stage: str) -> str:
    """Say that only a part was measured, if the trainer limits the batches."""
    name = "limit_val_batches" if stage == "validate" else f"limit_{stage}_batches"
    limit = getattr(trainer, name, 1.0)
    return "" if limit == 1.0 and isinstance(limit, float) else f", of which trainer.{name} took {limit}"


def from_all(trainer: Trainer, own: list[_T]) -> list[_T]:
    """Return the items of all processes, in the processes' order; every process must call this."""
    parts: list[list[_T]] = [own for _ in range(trainer.world_size)]
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(parts, own)
    return [one for part in parts for one in part]


class SharedTable:
    """A CSV file with a row for each sample, starting with its index; each process writes its own part."""

    def __init__(self, trainer: Trainer, path: Path) -> None:
        self.trainer = trainer
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part(trainer.global_rank).open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def write(self, row: Sequence[Any]) -> None:
        """Write a row of this process's part; indices must be ascending."""
        self._writer.writerow(row)

    def merge(self, header: Sequence[str]) -> None:
        """Wait for all processes, and put their rows in order; every process must call this."""
        self._file.close()
        self.trainer.strategy.barrier("table")
        if not self.trainer.is_global_zero:
            return
        parts = [self._part(rank) for rank in range(self.trainer.world_size)]
        with written_row_by_row(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            rows: Iterator[list[str]] = heapq.merge(*map(_rows, parts), key=lambda row: int(row[0]))
            writer.writerows(rows)
        for part in parts:
            part.unlink()

    def discard(self) -> None:
        """Remove this process's part."""
        self._file.close()
        self._part(self.trainer.global_rank).unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.stem}.rank{rank}.csv")


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)
