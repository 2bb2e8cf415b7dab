"""What convolutional networks are made of, what they cost and what they see. No Lightning."""

from cnnlab.analysis.catalogue import Architecture, catalogue
from cnnlab.analysis.convolution import KERNELS, conv2d, conv2d_loops, output_size, pool2d, shift_change
from cnnlab.analysis.convolutions import Convolution, convolutions
from cnnlab.analysis.cost import LayerCost, NetworkCost, Sight, network_cost
from cnnlab.analysis.initialisation import Beginning, initialisation
from cnnlab.analysis.memory import TrainingMemory, training_memory
from cnnlab.analysis.normalisation import Normalisation, normalisations
from cnnlab.analysis.receptive_field import Field, Layer, receptive_field
from cnnlab.analysis.recommendation import Need, Recommendation, recommend
from cnnlab.analysis.scaling import Coefficients, Scaled, compound, family

__all__ = [
    "KERNELS",
    "Architecture",
    "Beginning",
    "Coefficients",
    "Convolution",
    "Field",
    "Layer",
    "LayerCost",
    "Need",
    "NetworkCost",
    "Normalisation",
    "Recommendation",
    "Scaled",
    "Sight",
    "TrainingMemory",
    "catalogue",
    "compound",
    "conv2d",
    "conv2d_loops",
    "convolutions",
    "family",
    "initialisation",
    "network_cost",
    "normalisations",
    "output_size",
    "pool2d",
    "receptive_field",
    "recommend",
    "shift_change",
    "training_memory",
]
