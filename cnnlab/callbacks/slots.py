"""The callbacks that a run has by default, and those that are switched on by name."""

from __future__ import annotations

from typing import NamedTuple

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from cnnlab.callbacks.auto_compile import AutoCompile
from cnnlab.callbacks.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from cnnlab.callbacks.error_gallery import ErrorGallery
from cnnlab.callbacks.exact_resume import ExactResume
from cnnlab.callbacks.finite_loss import FiniteLoss
from cnnlab.callbacks.gradcam import GradCamSnapshots
from cnnlab.callbacks.gradients import GradientMonitor
from cnnlab.callbacks.onnx_export import OnnxExport
from cnnlab.callbacks.predictions import PredictionTable
from cnnlab.callbacks.progress import Throughput
from cnnlab.callbacks.records import Report, RunRecords
from cnnlab.callbacks.searches import BatchSizeSearch, LearningRateSearch
from cnnlab.callbacks.unfreezing import ProgressiveUnfreezing
from cnnlab.callbacks.validation_pictures import ValidationPictures
from cnnlab.callbacks.weights import ExponentialMovingAverage, Sparsity

Stages = frozenset[str]
_FIT: Stages = frozenset({"fit"})
_EVALUATED: Stages = frozenset({"fit", "validate", "test"})


class Slot(NamedTuple):
    """A callback that is switched on and off by its name."""

    callback: type[Callback]
    default: bool
    """Whether it is on by default."""
    purpose: str
    """What it does, in one line for --help."""
    stages: Stages = _FIT
    """The commands that use it: fit, validate, test, predict."""
    in_trials: bool = False
    """Whether a trial run (--trainer.fast_dev_run) uses it; such a run writes no files."""
    at_start_only: bool = False
    """Whether a resumed run leaves it out."""


SLOTS = {
    "best": Slot(BestCheckpoint, True, "keep checkpoints/best.ckpt, by the task's monitor"),
    "last": Slot(LastCheckpoint, True, "keep checkpoints/last.ckpt to resume from"),
    "early_stopping": Slot(EarlyStop, False, "stop when the monitored metric no longer improves", in_trials=True),
    "unfreezing": Slot(
        ProgressiveUnfreezing, False, "train the head first, then late layers, then all", in_trials=True
    ),
    "sparsity": Slot(Sparsity, False, "keep weights at zero that are zero at the start", in_trials=True),
    "ema": Slot(ExponentialMovingAverage, False, "average the weights", in_trials=True),
    "gradients": Slot(GradientMonitor, False, "log the gradients' norms, and warn of bad ones", in_trials=True),
    "lr_finder": Slot(
        LearningRateSearch, False, "search a learning rate before training", in_trials=True, at_start_only=True
    ),
    "batch_size_finder": Slot(
        BatchSizeSearch, False, "search the largest batch that fits before training", in_trials=True, at_start_only=True
    ),
    "lr_monitor": Slot(LearningRateMonitor, True, "log the learning rates"),
    "predictions": Slot(
        PredictionTable, True, "write predictions.csv, and files such as masks, when predicting", frozenset({"predict"})
    ),
    "validation_pictures": Slot(ValidationPictures, True, "draw answers on validation images while training"),
    "gradcam": Slot(GradCamSnapshots, True, "draw where the network looks in validation images"),
    "errors": Slot(
        ErrorGallery, True, "show the images that the network is most wrong or least certain about", _EVALUATED
    ),
    "onnx": Slot(OnnxExport, False, "write model.onnx of the best network when the training has ended"),
    "report": Slot(Report, True, "write report.html when testing", frozenset({"test"})),
    "throughput": Slot(Throughput, True, "log the training images a second", in_trials=True),
}
"""Callbacks by name."""


def default_callbacks() -> list[Callback]:
    """Return the callbacks that ``cnnlab fit``, ``test`` and ``predict`` give a trainer, for a trainer of your own.

    They write into the trainer's default_root_dir; its logger should be a MetricsCsv of that folder.

    >>> [type(callback).__name__ for callback in default_callbacks()][:4]
    ['RunRecords', 'ExactResume', 'FiniteLoss', 'BestCheckpoint']
    """
    slots = [slot.callback() for slot in SLOTS.values() if slot.default]
    return [RunRecords(), ExactResume(), FiniteLoss(), *slots, AutoCompile()]
