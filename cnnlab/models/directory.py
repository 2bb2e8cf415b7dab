"""What is known of networks by their names, before they are made: which there are, for what images, how good."""

from __future__ import annotations

from cnnlab.models.factory import NETWORKS, find_source, preprocessing
from cnnlab.models.segmentation import SEGMENTERS
from cnnlab.models.weights import downloaded, find_in, hub_has, prefetched_folder

_FOR_DIGITS = ("lenet5", "simple_cnn")


def list_networks() -> list[str]:
    """All names that create_network takes, besides import paths: cnnlab's, timm's, torchvision's."""
    import timm
    import torchvision

    others = torchvision.models.list_models(module=torchvision.models)
    return [*NETWORKS, *timm.list_models(), *(f"torchvision/{name}" for name in others)]


def usual_image(name: str, channels: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network is made for; 3x224x224 where nobody says.

    Args:
        name: See create_network and create_segmenter.
        channels: Others than the network is made for.

    >>> usual_image("simple_cnn"), usual_image("unet", channels=1)
    ((1, 28, 28), (1, 224, 224))
    """
    if name in _FOR_DIGITS:
        return (1 if channels is None else channels, 28, 28)
    given = 3 if channels is None else channels
    known = None if name in SEGMENTERS or name in NETWORKS else preprocessing(name, given)
    return (given, *(known.size if known is not None else (224, 224)))


def top1(name: str) -> float | None:
    """Accuracy on ImageNet's validation set in percent, of torchvision's own weights; None where it gives none."""
    source = find_source(name)
    if source.origin != "torchvision":
        return None
    import torchvision

    found = torchvision.models.get_model_weights(source.name)["DEFAULT"].meta["_metrics"]
    return float(found["ImageNet-1K"]["acc@1"])


def weights_of(name: str) -> str:
    """Whether a network's pretrained weights are here: "here", "to fetch", or "none"."""
    source = find_source(name)
    if source.origin == "timm":
        import timm

        known = timm.get_pretrained_cfg(source.name)
        if known is None or not known.has_weights:
            return "none"
        cached = hub_has(known.hf_hub_id) if known.hf_hub_id else downloaded(str(known.url))
        return "here" if cached or find_in(prefetched_folder(), source.name) else "to fetch"
    if source.origin == "torchvision":
        import torchvision

        url = torchvision.models.get_model_weights(source.name)["DEFAULT"].url
        return "here" if downloaded(url) or find_in(prefetched_folder(), f"torchvision/{source.name}") else "to fetch"
    return "none"
