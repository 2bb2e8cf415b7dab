"""Send metrics, images and tables to those of a trainer's loggers that support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

Row = dict[str, Any]
"""A table's row: column to value; a Path is an image file."""


@rank_zero_only
def announce(message: str) -> None:
    """Print a line about the run, on the first process."""
    print(message, flush=True)


def write_metrics(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Write metrics with all loggers, immediately.

    Args:
        trainer: The trainer that has the loggers.
        metrics: Name to value.
        step: The optimizer step of the metrics, 0 for the first.
    """
    for logger in trainer.loggers:
        logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step)


def write_picture(trainer: Trainer, name: str, path: Path, step: int | None = None) -> None:
    """Log an image with W&B and TensorBoard, if the trainer has these loggers.

    Args:
        trainer: The trainer that has the loggers.
        name: The image's name in the loggers.
        path: The PNG file.
        step: The optimizer step of the image, 0 for the first; the last step if None.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")


def write_table(trainer: Trainer, name: str, rows: Sequence[Row], step: int | None = None) -> None:
    """Log a table with W&B and, as text, with TensorBoard, if the trainer has these loggers.

    Args:
        trainer: The trainer that has the loggers.
        name: The table's name in the loggers.
        rows: Rows with the same columns; None marks a missing value.
        step: The optimizer step of the table, 0 for the first; the last step if None.
    """
    for logger in trainer.loggers if rows else []:
        columns = list(rows[0])
        if isinstance(logger, WandbLogger):
            from wandb import Image as Shown

            cells = [[Shown(str(cell)) if isinstance(cell, Path) else cell for cell in row.values()] for row in rows]
            logger.log_table(name, columns, cells, step=step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *([_plain(cell) for cell in row.values()] for row in rows)]
            logger.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def _plain(cell: Any) -> str:
    if cell is None:
        return ""
    return cell.name if isinstance(cell, Path) else str(cell).replace("|", "\\|").replace("\n", " ")
