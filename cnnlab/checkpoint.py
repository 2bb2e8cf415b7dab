"""Reading of checkpoint files, safely (weights only), and what cnnlab adds to them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

import cnnlab
from cnnlab.errors import InputError
from cnnlab.imports import parameters_of

LINKED = (
    *("channels", "mean", "std"),
    *("num_classes", "class_names", "multi_label", "ignore_index"),
    *("value_names", "value_mean", "value_std", "value_levels"),
)
"""Settings that a data module gives to the task, unless it declares its own (VisionDataModule.PROVIDES)."""


def read_header(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's content without its tensors: see read_checkpoint."""
    return read_checkpoint(path, mmap=True)


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint that cnnlab wrote, on the CPU, with weights_only=True.

    Args:
        path: The file.
        mmap: Keep the tensors in the file until they are used.

    Raises:
        InputError: If the file is missing, is truncated, or was not written by cnnlab.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, expected a checkpoint file") from error
    except Exception as error:  # The unpickler can raise any error if the file is not a checkpoint.
        size = Path(path).stat().st_size
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} ({size:,} bytes) cannot be read as a checkpoint: it is truncated or something else ({reason}); "
            "use another checkpoint of its run, or copy it again"
        ) from error
    if not isinstance(checkpoint, dict) or "cnnlab" not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(
            f"{path} is not a checkpoint that cnnlab wrote: it does not say which task it holds; to start from foreign "
            "weights, load them in a task of your own"
        )
    return checkpoint


def make_portable(checkpoint: dict[str, Any], task: object, data: object | None, trainer: Any) -> None:
    """Add what creates task and data again to a checkpoint, under the key "cnnlab"; keep only their hyperparameters.

    Lightning also saves hyperparameters of their base classes, which the classes themselves do not accept. The
    checkpoint is changed in place, before it is written.

    Args:
        checkpoint: Lightning's checkpoint.
        task: Its task.
        data: Its data module.
        trainer: Its trainer, whose precision is kept.
    """
    about: dict[str, Any] = {"version": cnnlab.__version__, "task": _class_path(task)}
    if data is not None:
        provided = data.provided() if hasattr(data, "provided") else LINKED
        about |= {"data": _class_path(data), "provided": list(provided)}
    about["trainer"] = {"precision": str(trainer.precision)}
    if (matmul := getattr(trainer, "float32_matmul_precision", None)) is not None:
        about["trainer"]["float32_matmul_precision"] = matmul
    checkpoint["cnnlab"] = about
    for key, owner in (("hyper_parameters", task), ("datamodule_hyper_parameters", data)):
        if key in checkpoint:
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if takes(type(owner), name)}


def takes(kind: type, name: str) -> bool:
    """Whether a class's constructor takes an argument of this name."""
    return name in parameters_of(kind)


def _class_path(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
