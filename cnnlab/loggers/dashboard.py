"""W&B workspaces: the panels for each task."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from cnnlab.errors import InputError

_STEP = "trainer/global_step"
_SHARED = {"Losses": ["train/loss", "train/loss_step", "val/loss"], "Speed": ["train/images_per_second"]}
_SCORES = {
    "Classification": {
        "Accuracy": ["train/accuracy", "val/accuracy", "val/accuracy_top5"],
        "F1": ["val/f1"],
        "Calibration error": ["val/calibration_error"],
    },
    "Segmentation": {
        "Mean IoU": ["train/mean_iou", "val/mean_iou"],
        "Dice": ["train/dice", "val/dice"],
        "Pixel accuracy": ["train/pixel_accuracy", "val/pixel_accuracy"],
    },
}
_MAIN = {
    "Classification": ["val/accuracy", "test/accuracy", "test/f1"],
    "Segmentation": ["val/mean_iou", "test/mean_iou", "test/dice"],
}
_PICTURES = {
    "Classification": ["val/gradcam", "val/errors", "val/confusion_matrix", "test/errors", "test/confusion_matrix"],
    "Segmentation": ["val/masks", "val/gradcam", "val/errors", "test/errors", "test/confusion_matrix"],
}
_TABLES = ["val/hardest", "test/hardest", "test/classes"]


def create_dashboard(task: str, entity: str, project: str) -> Any:
    """Create a workspace with main figures, curves, pictures and tables; its save() uploads it.

    Args:
        task: Classification or Segmentation.
        entity: W&B's user or team.
        project: W&B's project.

    Returns:
        A wandb_workspaces.workspaces.Workspace.

    Raises:
        InputError: If the task has no dashboard, or if wandb-workspaces is not installed.
    """
    if task not in _MAIN:
        raise InputError(f"there is no dashboard for {task}, only for {' and '.join(_MAIN)}")
    try:
        with warnings.catch_warnings():
            # It uses pydantic 1's interface, which pydantic 2 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            panels: Any = import_module("wandb_workspaces.reports.v2")
            workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise InputError('a dashboard needs wandb-workspaces: pip install "cnnlab[dashboards]"') from error

    def lines(charts: dict[str, list[str]]) -> list[Any]:
        return [panels.LinePlot(title=title, x=_STEP, y=names) for title, names in charts.items()]

    def section(name: str, shown: list[Any]) -> Any:
        return workspaces.Section(name=name, panels=shown, is_open=True)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"cnnlab {task.lower()}",
        sections=[
            section("Main figures", [panels.ScalarChart(metric=name) for name in _MAIN[task]]),
            section("Curves", lines({**_SCORES[task], **_SHARED})),
            section("Pictures", [panels.MediaBrowser(media_keys=[name]) for name in _PICTURES[task]]),
            section("Tables", [panels.WeavePanelSummaryTable(table_name=name) for name in _TABLES]),
        ],
    )
