"""Interpretation of networks: class activation maps, feature maps, embeddings; for any nn.Module, without Lightning."""

from cnnlab.interpret.activations import embeddings, feature_maps, filters, project
from cnnlab.interpret.cam import METHODS, CamMethod, Explanation, GradCAM, GradCAMPlusPlus, ScoreCAM
from cnnlab.interpret.layers import default_layer, get_layer, preserve_state

__all__ = [
    "METHODS",
    "CamMethod",
    "Explanation",
    "GradCAM",
    "GradCAMPlusPlus",
    "ScoreCAM",
    "default_layer",
    "embeddings",
    "feature_maps",
    "filters",
    "get_layer",
    "preserve_state",
    "project",
]
