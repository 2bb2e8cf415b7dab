"""LightningDataModules: images and targets for the stages of a run."""

from cnnlab.data.base import PredictionBatch, VisionDataModule
from cnnlab.data.digits import Digits
from cnnlab.data.image_folder import ImageFolder
from cnnlab.data.mask_folder import MaskFolder
from cnnlab.data.mnist import MNIST
from cnnlab.data.shapes import Shapes

__all__ = ["MNIST", "Digits", "ImageFolder", "MaskFolder", "PredictionBatch", "Shapes", "VisionDataModule"]
