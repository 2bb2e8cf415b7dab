"""W&B workspaces: the panels for each task."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from cnnlab.errors import InputError

_STEP = "trainer/global_step"
_SHARED = {"Losses": ["train/loss", "train/loss_step", "val/loss"], "Speed": ["train/images_per_second"]}
_TABLES = ["val/hardest", "test/hardest", "test/classes"]


def create_dashboard(task: Any, entity: str, project: str) -> Any:
    """Create a wandb_workspaces.workspaces.Workspace: main numbers, curves, images, tables. Its save() uploads it.

    Args:
        task: The task's class, a VisionTask, which defines the panels.
        entity: W&B's user or team.
        project: W&B's project.

    Raises:
        InputError: If the task has no dashboard, or if wandb-workspaces is not installed.
    """
    if not getattr(task, "charts", None):
        raise InputError(f"{task.__name__} has no charts, which say what a dashboard shows")
    try:
        with warnings.catch_warnings():
            # wandb-workspaces uses pydantic 1's interface, which pydantic 2 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            panels: Any = import_module("wandb_workspaces.reports.v2")
            workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise InputError('a dashboard needs wandb-workspaces: pip install "cnnlab[dashboards]"') from error

    def lines(charts: Mapping[str, Sequence[str]]) -> list[Any]:
        return [panels.LinePlot(title=title, x=_STEP, y=list(names)) for title, names in charts.items()]

    def section(name: str, shown: list[Any]) -> Any:
        return workspaces.Section(name=name, panels=shown, is_open=True)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"cnnlab {task.__name__.lower()}",
        sections=[
            section("Main figures", [panels.ScalarChart(metric=name) for name in task.key_metrics]),
            section("Curves", lines({**task.charts, **_SHARED})),
            section("Pictures", [panels.MediaBrowser(media_keys=[name]) for name in task.dashboard_pictures]),
            section("Tables", [panels.WeavePanelSummaryTable(table_name=name) for name in _TABLES]),
        ],
    )
