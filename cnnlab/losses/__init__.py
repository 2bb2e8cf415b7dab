"""Losses, one file for each kind of task. No Lightning."""

from cnnlab.losses.detection import DetectionLoss
from cnnlab.losses.distillation import attention_transfer, soft_targets
from cnnlab.losses.labels import ClassLoss, LabelsLoss
from cnnlab.losses.network import NetworkLoss
from cnnlab.losses.parts import PartsLoss, total
from cnnlab.losses.segmentation import (
    LOSSES,
    CrossEntropy,
    CrossEntropyDice,
    Dice,
    Focal,
    Tversky,
    class_sums,
    create_loss,
)
from cnnlab.losses.values import VALUE_LOSSES, OrdinalLoss, ValueLoss

__all__ = [
    "LOSSES",
    "VALUE_LOSSES",
    "ClassLoss",
    "CrossEntropy",
    "CrossEntropyDice",
    "DetectionLoss",
    "Dice",
    "Focal",
    "LabelsLoss",
    "NetworkLoss",
    "OrdinalLoss",
    "PartsLoss",
    "Tversky",
    "ValueLoss",
    "attention_transfer",
    "class_sums",
    "create_loss",
    "soft_targets",
    "total",
]
