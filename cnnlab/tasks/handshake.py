"""The exchange between data and task, the same for the command line, for Python and for commands without training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from cnnlab.checkpoint import LINKED
from cnnlab.errors import InputError
from cnnlab.imports import parameters_of


def provided(data: LightningDataModule) -> dict[str, Any]:
    """What a data module provides to a task; for other libraries' modules, their attributes with known names."""
    if callable(own := getattr(data, "provided", None)):
        return dict(own())
    return {name: getattr(data, name) for name in LINKED if hasattr(data, name)}


def arguments_from(data: LightningDataModule, kind: type) -> dict[str, Any]:
    """The arguments of a task's class that the data provide.

    Raises:
        InputError: If the data's targets are of another kind than the task's answers.
    """
    check_kinds(type(data), kind)
    known = parameters_of(kind)
    return {name: value for name, value in provided(data).items() if name in known}


def check_kinds(data: type, task: type) -> None:
    """Check that the targets of a data module's class and the answers of a task's are of one kind, if both are known.

    Raises:
        InputError: If they differ.
    """
    has, wants = getattr(data, "kind", None), getattr(task, "kind", None)
    if has is not None and wants is not None and has != wants:
        raise InputError(
            f"the data have {has} ({data.__name__}), but {task.__name__} answers with {wants}: choose a task for "
            f"{has}, or data with {wants}"
        )


def introduce(task: LightningModule, data: LightningDataModule | None, given: dict[str, Any] | None = None) -> None:
    """Check a task against its data, and let the data adopt the preprocessing of a pretrained network.

    Raises:
        InputError: If an argument that the user has given contradicts the data.
    """
    if data is None:
        return
    said = provided(data)
    for name, value in (given or {}).items():
        if name in said and value is not None and _plain(value) != _plain(said[name]):
            raise InputError(
                f"model.{name} is {value!r}, but the data have {_plain(said[name])!r}: leave it out, it is taken from "
                "the data"
            )
    if callable(adopt := getattr(data, "adopt", None)):
        adopt(getattr(task, "preprocessing", None))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
