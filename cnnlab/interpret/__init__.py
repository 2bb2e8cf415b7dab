"""Looking inside a network: any nn.Module, no Lightning."""

from cnnlab.interpret.activations import embeddings, feature_maps, filters, projected
from cnnlab.interpret.cam import METHODS, CamMethod, Explanation, GradCAM, GradCAMPlusPlus, ScoreCAM
from cnnlab.interpret.layers import default_layer, layer_named
from cnnlab.interpret.undisturbed import undisturbed

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
    "layer_named",
    "projected",
    "undisturbed",
]
