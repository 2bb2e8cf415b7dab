"""Lightning's Trainer with two more settings: a precision of its own choice, and that of float32 matrix products."""

from __future__ import annotations

from typing import Any, Literal, get_type_hints

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import Precision

from cnnlab.callbacks import AutoPrecision
from cnnlab.commands.arguments import CheckpointInfo
from cnnlab.commands.messages import say
from cnnlab.precision import Device, float32_hint
from cnnlab.run import global_rank

_Precision = get_type_hints(Trainer.__init__)["precision"] | Literal["auto"]


class VisionTrainer(Trainer):
    """The Trainer of the command line.

    Args:
        precision: One of Lightning's names, or auto: mixed precision where that is faster (callbacks.AutoPrecision).
        float32_matmul_precision: How a GPU multiplies float32 matrices (torch.set_float32_matmul_precision); in full
            precision if None.
        **kwargs: Lightning's arguments. A plugin for precision among them replaces auto.
    """

    def __init__(
        self,
        *,
        precision: _Precision = None,  # type: ignore[valid-type]
        float32_matmul_precision: Literal["highest", "high", "medium"] | None = None,
        **kwargs: Any,
    ) -> None:
        self.has_precision_plugin = _has_precision(kwargs.get("plugins"))
        self._float32_matmul_precision = float32_matmul_precision
        self._auto = AutoPrecision() if precision == "auto" and not self.has_precision_plugin else None
        if self._auto is not None:
            kwargs["callbacks"] = [*as_list(kwargs.get("callbacks")), self._auto]
        super().__init__(precision=None if precision == "auto" else precision, **kwargs)
        if isinstance(self.accelerator, CUDAAccelerator):
            if float32_matmul_precision is not None:
                torch.set_float32_matmul_precision(float32_matmul_precision)
            elif precision != "auto" and global_rank() == 0:
                for line in float32_hint(Device.of(self.strategy.root_device), str(self.precision)):
                    say(line)

    @property
    def float32_matmul_precision(self) -> str | None:
        """The given one, or what auto has chosen; kept in config.yaml and in checkpoints."""
        chosen = None if self._auto is None or self._auto.choice is None else self._auto.choice.float32_matmul
        return self._float32_matmul_precision or chosen


def kept_precision(checkpoint: CheckpointInfo, plugins: Any) -> str | None:
    """The precision for auto where a checkpoint goes on: its own, so that its run has one precision; say it.

    Args:
        checkpoint: The checkpoint.
        plugins: The trainer's plugins.

    Returns:
        A name; None if a plugin says it.
    """
    if _has_precision(plugins):
        return None
    kept = checkpoint.config.get("trainer", {}).get("precision")
    if global_rank() == 0:
        say(f"precision: {kept}, as in {checkpoint.path}" if kept else "precision: 32-true: the checkpoint names none")
    return kept or "32-true"


def as_list(value: Any) -> list[Any]:
    """A list of what may be None, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _has_precision(plugins: Any) -> bool:
    return any(isinstance(plugin, Precision) for plugin in as_list(plugins))
