"""Loading a task from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from cnnlab.checkpoint import read_header
from cnnlab.errors import InputError
from cnnlab.imports import by_path
from cnnlab.tasks.base import VisionTask


def load_task(path: Path) -> VisionTask:
    """Load the task of a checkpoint, with its weights, in eval mode.

    Raises:
        InputError: If the checkpoint cannot be read, or contains another LightningModule.
    """
    kind = by_path(read_header(path)["cnnlab"]["task"])
    if not issubclass(kind, VisionTask):
        raise InputError(f"{path} holds a {kind.__name__}, expected a task of cnnlab's")
    task: VisionTask = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return task.eval()
