"""LightningDataModules: images and targets for the stages of a run."""

from cnnlab.data.base import VisionDataModule
from cnnlab.data.box_folder import BoxFolder
from cnnlab.data.center_crop import CenterCropDataModule
from cnnlab.data.digits import Digits
from cnnlab.data.file_data import FileDataModule
from cnnlab.data.image_folder import ImageFolder
from cnnlab.data.in_memory import InMemoryDataModule
from cnnlab.data.instance_folder import InstanceFolder
from cnnlab.data.mask_folder import MaskFolder
from cnnlab.data.mnist import MNIST
from cnnlab.data.shapes import Shapes, write_photos
from cnnlab.data.value_table import ValueTable

__all__ = [
    "MNIST",
    "BoxFolder",
    "CenterCropDataModule",
    "Digits",
    "FileDataModule",
    "ImageFolder",
    "InMemoryDataModule",
    "InstanceFolder",
    "MaskFolder",
    "Shapes",
    "ValueTable",
    "VisionDataModule",
    "write_photos",
]
