"""LightningModules: one for each kind of prediction."""

from cnnlab.tasks.base import VisionTask
from cnnlab.tasks.classes import ClassTask
from cnnlab.tasks.classification import Classification
from cnnlab.tasks.detection import Detection
from cnnlab.tasks.distillation import Distillation
from cnnlab.tasks.instances import Instances
from cnnlab.tasks.regression import Regression
from cnnlab.tasks.segmentation import Segmentation

__all__ = [
    "ClassTask",
    "Classification",
    "Detection",
    "Distillation",
    "Instances",
    "Regression",
    "Segmentation",
    "VisionTask",
]
