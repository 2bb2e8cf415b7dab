"""Callbacks: each connects a run to one task around it, such as saving or drawing."""

from cnnlab.callbacks.auto_compile import AutoCompile
from cnnlab.callbacks.auto_precision import AutoPrecision
from cnnlab.callbacks.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from cnnlab.callbacks.error_gallery import ErrorGallery
from cnnlab.callbacks.exact_resume import ExactResume
from cnnlab.callbacks.finite_loss import FiniteLoss
from cnnlab.callbacks.gradcam import GradCamSnapshots
from cnnlab.callbacks.gradients import GradientMonitor
from cnnlab.callbacks.onnx_export import OnnxExport
from cnnlab.callbacks.predictions import PredictionTable
from cnnlab.callbacks.progress import EpochLines, Throughput
from cnnlab.callbacks.records import Report, RunRecords
from cnnlab.callbacks.searches import BatchSizeSearch, LearningRateSearch
from cnnlab.callbacks.slots import Slot, default_callbacks
from cnnlab.callbacks.unfreezing import Phase, ProgressiveUnfreezing
from cnnlab.callbacks.validation_pictures import ValidationPictures
from cnnlab.callbacks.weights import ExponentialMovingAverage, Sparsity
from cnnlab.strategies import SyncNorm

__all__ = [
    "AutoCompile",
    "AutoPrecision",
    "BatchSizeSearch",
    "BestCheckpoint",
    "EarlyStop",
    "EpochLines",
    "ErrorGallery",
    "ExactResume",
    "ExponentialMovingAverage",
    "FiniteLoss",
    "GradCamSnapshots",
    "GradientMonitor",
    "LastCheckpoint",
    "LearningRateSearch",
    "OnnxExport",
    "Phase",
    "PredictionTable",
    "ProgressiveUnfreezing",
    "Report",
    "RunRecords",
    "Slot",
    "Sparsity",
    "SyncNorm",
    "Throughput",
    "ValidationPictures",
    "default_callbacks",
]
