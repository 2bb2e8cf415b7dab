"""Facts about networks by name, without building them: image size, accuracy, whether weights are available."""

from __future__ import annotations

from cnnlab.models.detection import DETECTORS, encoder_of, torchvision_name
from cnnlab.models.factory import NETWORKS, find_source, preprocessing
from cnnlab.models.segmentation import SEGMENTERS
from cnnlab.models.torchvision_detectors import published_map
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.models.weights import find_file, is_cached, prefetched_folder

_DETECTION_SIDE = 640
"""The side of the images that cnnlab's own detectors are measured on: the default of the data for detection."""


def list_networks() -> list[str]:
    """List the names that create_network takes, without import paths: cnnlab's, timm's and torchvision's."""
    import timm
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    return [*NETWORKS, *timm.list_models(), *(f"torchvision/{name}" for name in classifiers)]


def list_detectors() -> list[str]:
    """List the names that create_detector takes, without import paths: cnnlab's and torchvision's."""
    return [*DETECTORS, *TORCHVISION_DETECTORS]


def default_image_shape(name: str, channels: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network is designed for; 3x224x224 if they are unknown.

    Args:
        name: See create_network, create_segmenter and create_detector.
        channels: The images' channels, if they differ from the default.

    >>> default_image_shape("simple_cnn"), default_image_shape("unet", channels=1)
    ((1, 28, 28), (1, 224, 224))
    """
    if name in ("lenet5", "simple_cnn"):
        return (1 if channels is None else channels, 28, 28)
    channels = 3 if channels is None else channels
    if name in DETECTORS:
        return (channels, _DETECTION_SIDE, _DETECTION_SIDE)
    known = None if name in SEGMENTERS else preprocessing(name, channels)
    return (channels, *(known.size if known is not None else (224, 224)))


def top1(name: str) -> float | None:
    """ImageNet validation accuracy of torchvision's weights in percent; None for other networks."""
    source = find_source(name)
    if source.origin != "torchvision":
        return None
    return float(source.pretraining.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def coco_map(name: str) -> float | None:
    """The mAP of torchvision's weights on COCO val2017 in percent; None for other networks."""
    own = torchvision_name(name)
    return None if own is None else published_map(own)


def weights_status(name: str) -> str:
    """Where a network's pretrained weights are: "here", "to fetch", or "none" if it has none.

    Those of cnnlab's detectors are their backbones'.
    """
    source = find_source(encoder_of(name, None) or name)
    known = source.pretraining
    if known is None or (source.origin == "timm" and not known.has_weights):
        return "none"
    repository = known.hf_hub_id if source.origin == "timm" else None
    cached = is_cached(repository, str(known.url))
    return "here" if cached or find_file(prefetched_folder(), source.file_name) else "to fetch"
