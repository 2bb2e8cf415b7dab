"""LightningDataModules: images and targets for the stages of a run."""

from cnnlab.data.base import PredictionBatch, VisionDataModule
from cnnlab.data.digits import Digits
from cnnlab.data.mnist import MNIST

__all__ = ["MNIST", "Digits", "PredictionBatch", "VisionDataModule"]
