"""Cost, memory and receptive fields of convolutional networks, and their building blocks. No Lightning."""

from cnnlab.analysis.catalog import (
    Architecture,
    Coefficients,
    ScaledNetwork,
    catalog,
    compound_scaling,
    efficientnet_family,
)
from cnnlab.analysis.convolution import KERNELS, conv2d, conv2d_loops, output_size, pool2d, shift_change
from cnnlab.analysis.cost import LayerCost, NetworkCost, ReceptiveField, network_cost
from cnnlab.analysis.layers import Convolution, LayerInit, Normalization, convolutions, initialization, normalizations
from cnnlab.analysis.memory import TrainingMemory, training_memory
from cnnlab.analysis.receptive_field import Field, Layer, receptive_field
from cnnlab.analysis.recommendation import Recommendation, Requirements, recommend

__all__ = [
    "KERNELS",
    "Architecture",
    "Coefficients",
    "Convolution",
    "Field",
    "Layer",
    "LayerCost",
    "LayerInit",
    "NetworkCost",
    "Normalization",
    "ReceptiveField",
    "Recommendation",
    "Requirements",
    "ScaledNetwork",
    "TrainingMemory",
    "catalog",
    "compound_scaling",
    "conv2d",
    "conv2d_loops",
    "convolutions",
    "efficientnet_family",
    "initialization",
    "network_cost",
    "normalizations",
    "output_size",
    "pool2d",
    "receptive_field",
    "recommend",
    "shift_change",
    "training_memory",
]
