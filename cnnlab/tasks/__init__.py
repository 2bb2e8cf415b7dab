"""LightningModules, one for each kind of question asked of an image."""

from cnnlab.tasks.base import VisionTask
from cnnlab.tasks.classification import Classification

__all__ = ["Classification", "VisionTask"]
