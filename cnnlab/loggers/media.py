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

from cnnlab.outputs.base import Marks

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


def write_marked(
    trainer: Trainer,
    name: str,
    images: Sequence[Any],
    marks: Sequence[Mapping[str, Marks]],
    class_names: Sequence[str],
    step: int | None = None,
) -> None:
    """Log images with boxes and masks that W&B's viewer can switch on and off, if the trainer has its logger.

    Args:
        trainer: The trainer that has the loggers.
        name: The images' name in the logger.
        images: (H, W, 3) uint8 each.
        marks: Each image's by what they are, such as "prediction".
        class_names: The classes.
        step: The optimizer step of the images, 0 for the first; the last step if None.
    """
    labels = dict(enumerate(class_names))
    for logger in trainer.loggers if images else []:
        if isinstance(logger, WandbLogger):
            boxes = [
                {kind: {"box_data": _box_data(one, class_names), "class_labels": labels} for kind, one in each.items()}
                for each in marks
            ]
            shown = {number + 1: text for number, text in labels.items()}
            masks = [
                {
                    kind: {"mask_data": one.mask, "class_labels": {0: "background", **shown}}
                    for kind, one in each.items()
                    if one.mask is not None
                }
                for each in marks
            ]
            logger.log_image(name, list(images), step=step, boxes=boxes, masks=masks)


def _box_data(marks: Marks, class_names: Sequence[str]) -> list[dict[str, Any]]:
    scores: list[float | None] = [None] * len(marks.labels) if marks.scores is None else marks.scores.tolist()
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
            "domain": "pixel",
            "class_id": label,
            "box_caption": class_names[label] if score is None else f"{class_names[label]} {score:.0%}",
            **({} if score is None else {"scores": {"score": score}}),
        }
        for box, label, score in zip(marks.boxes.tolist(), marks.labels.tolist(), scores, strict=True)
    ]


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
