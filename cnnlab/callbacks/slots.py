"""The callbacks that a run has by default, and those that are switched on by name."""

from __future__ import annotations

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from cnnlab.callbacks.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from cnnlab.callbacks.error_gallery import ErrorGallery
from cnnlab.callbacks.exact_resume import ExactResume
from cnnlab.callbacks.finite_loss import FiniteLoss
from cnnlab.callbacks.gradcam import GradCamSnapshots
from cnnlab.callbacks.gradients import GradientMonitor
from cnnlab.callbacks.onnx_export import OnnxExport
from cnnlab.callbacks.predicted_masks import PredictedMasks
from cnnlab.callbacks.predictions import PredictionTable
from cnnlab.callbacks.records import RunRecords
from cnnlab.callbacks.report import Report
from cnnlab.callbacks.searches import BatchSizeSearch, LearningRateSearch
from cnnlab.callbacks.sparsity import Sparsity
from cnnlab.callbacks.throughput import Throughput
from cnnlab.callbacks.unfreezing import ProgressiveUnfreezing
from cnnlab.callbacks.validation_masks import ValidationMasks
from cnnlab.callbacks.weights import ExponentialMovingAverage

SLOTS: dict[str, tuple[type[Callback], bool, str]] = {
    "best": (BestCheckpoint, True, "keep checkpoints/best.ckpt, by the task's monitor"),
    "last": (LastCheckpoint, True, "keep checkpoints/last.ckpt to resume from"),
    "early_stopping": (EarlyStop, False, "stop when the monitored metric no longer improves"),
    "unfreezing": (ProgressiveUnfreezing, False, "train the head first, then late layers, then all"),
    "sparsity": (Sparsity, False, "keep weights at zero that are zero at the start"),
    "ema": (ExponentialMovingAverage, False, "average the weights"),
    "gradients": (GradientMonitor, False, "log the gradients' norms, and warn of bad ones"),
    "lr_finder": (LearningRateSearch, False, "search a learning rate before training"),
    "batch_size_finder": (BatchSizeSearch, False, "search the largest batch that fits before training"),
    "lr_monitor": (LearningRateMonitor, True, "log the learning rates"),
    "predictions": (PredictionTable, True, "write predictions.csv when predicting"),
    "masks": (PredictedMasks, True, "write masks and overlays when predicting with a segmentation task"),
    "validation_masks": (ValidationMasks, True, "draw masks of validation images while segmentation trains"),
    "gradcam": (GradCamSnapshots, True, "draw where the network looks in validation images"),
    "errors": (ErrorGallery, True, "show the images that the network is most wrong or least certain about"),
    "onnx": (OnnxExport, False, "write model.onnx of the best network when the training has ended"),
    "report": (Report, True, "write report.html when testing"),
    "throughput": (Throughput, True, "log the training images a second"),
}
"""Callbacks by name: the class, whether it is on by default, and what it does."""


def default_callbacks() -> list[Callback]:
    """What ``cnnlab fit``, ``test`` and ``predict`` give a trainer, for a trainer of one's own.

    They write into the trainer's default_root_dir; its logger should be a MetricsCsv of that folder.

    >>> [type(callback).__name__ for callback in default_callbacks()][:4]
    ['RunRecords', 'ExactResume', 'FiniteLoss', 'BestCheckpoint']
    """
    slots = [kind() for kind, default, _ in SLOTS.values() if default]
    return [RunRecords(), ExactResume(), FiniteLoss(), *slots]
