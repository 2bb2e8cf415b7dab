"""Networks: standardized images to raw predictions. No Lightning."""

from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.groups import LayerGroup, layer_groups
from cnnlab.models.lenet import LeNet5
from cnnlab.models.resnet import SmallResNet
from cnnlab.models.segmentation import SEGMENTERS, DeepLabV3Plus, create_segmenter
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize
from cnnlab.models.transfer import TransferModel
from cnnlab.models.unet import EncoderUNet, UNet

__all__ = [
    "NETWORKS",
    "SEGMENTERS",
    "DeepLabV3Plus",
    "EncoderUNet",
    "LayerGroup",
    "LeNet5",
    "SimpleCNN",
    "SmallResNet",
    "Standardize",
    "TransferModel",
    "UNet",
    "create_network",
    "create_segmenter",
    "layer_groups",
]
