"""Networks: standardised images in, raw predictions out. No Lightning."""

from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize

__all__ = ["NETWORKS", "SimpleCNN", "Standardize", "create_network"]
