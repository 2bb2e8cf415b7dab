"""Networks: standardized images to raw predictions. No Lightning."""

from cnnlab.models.detection import DETECTORS, create_detector
from cnnlab.models.detector import Detector
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
    "DETECTORS",
    "NETWORKS",
    "SEGMENTERS",
    "DeepLabV3Plus",
    "Detector",
    "EncoderUNet",
    "LayerGroup",
    "LeNet5",
    "SimpleCNN",
    "SmallResNet",
    "Standardize",
    "TransferModel",
    "UNet",
    "create_detector",
    "create_network",
    "create_segmenter",
    "layer_groups",
]
