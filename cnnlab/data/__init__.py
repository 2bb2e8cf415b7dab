"""LightningDataModules: images and targets for the stages of a run."""

from cnnlab.data.base import VisionDataModule
from cnnlab.data.digits import Digits
from cnnlab.data.image_folder import ImageFolder
from cnnlab.data.in_memory import InMemoryDataModule
from cnnlab.data.mask_folder import MaskFolder
from cnnlab.data.mnist import MNIST
from cnnlab.data.shapes import Shapes, write_photos

__all__ = [
    "MNIST",
    "Digits",
    "ImageFolder",
    "InMemoryDataModule",
    "MaskFolder",
    "Shapes",
    "VisionDataModule",
    "write_photos",
]
