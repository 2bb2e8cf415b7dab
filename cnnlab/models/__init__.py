"""Networks: standardised images in, raw predictions out. No Lightning."""

from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.groups import LayerGroup, layer_groups
from cnnlab.models.resnet import SmallResNet
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize
from cnnlab.models.transfer import TransferModel

__all__ = [
    "NETWORKS",
    "LayerGroup",
    "SimpleCNN",
    "SmallResNet",
    "Standardize",
    "TransferModel",
    "create_network",
    "layer_groups",
]
