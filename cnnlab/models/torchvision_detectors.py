"""Build torchvision's networks for detection with one's own classes, and load their weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.imports import parameters_of
from cnnlab.models.torchvision_one_stage import FCOS, SSD, RetinaNet
from cnnlab.models.torchvision_parts import TorchvisionDetector
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.models.torchvision_two_stage import FasterRCNN, MaskRCNN
from cnnlab.models.weights import check_hub, explain_errors, find_weights, is_cached, read_state_dict, requested

_DESIGNS: dict[str, type[TorchvisionDetector]] = {
    "ssd": SSD,
    "retinanet": RetinaNet,
    "fcos": FCOS,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
}
_MULTIPLES = {"ssd": 1}
"""To multiples of what images are padded; 32 for other designs, as in torchvision."""


def create_torchvision_detector(
    name: str,
    num_classes: int,
    channels: int = 3,
    weights: str | None = None,
    fixed_norms: bool | None = None,
    **kwargs: Any,
) -> TorchvisionDetector:
    """Build one of torchvision's networks for detection.

    Args:
        name: A name in TORCHVISION_DETECTORS.
        num_classes: K, without the background.
        channels: The images' channels, which must be 3.
        weights: Weights of a training on COCO, see weights.find_weights; random initialization if None. The last layers
            are new, unless the weights are for K classes (or K is 80 and they are for COCO).
        fixed_norms: Whether the backbone's batch norms stay as they are; as in torchvision, with weights, if None.
        **kwargs: Further arguments of torchvision's function, such as ``rpn_post_nms_top_n_test``; and those of
            torchvision_two_stage.MaskRCNN.

    Raises:
        InputError: If it does not take such images or arguments, or if the weights cannot be loaded.
    """
    import torchvision

    if channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, not {channels}: cnnlab's networks for detection take "
            "any number"
        )
    info = TORCHVISION_DETECTORS[name]
    design = _DESIGNS[info.design]
    outputs = num_classes + design.first_label
    own = {key: kwargs.pop(key) for key in sorted(kwargs.keys() & parameters_of(design))}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs, **kwargs)
    if fixed_norms is None:
        fixed_norms = info.fixed_norms and weights is not None
    if (weights := requested(weights)) is not None:
        file = find_weights(f"torchvision/{name}", weights)
        with explain_errors(name, file):
            found = _from_hub(name) if file is None else read_state_dict(file)
            model.load_state_dict(_fitted(found, model, outputs, design.first_label))
    return design(model, _MULTIPLES.get(info.design, 32), fixed_norms, **own)


def published_map(name: str) -> float:
    """The mAP of torchvision's weights on COCO val2017 in percent, from the weights' own metadata."""
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name)
    return float(weights["DEFAULT"].meta["_metrics"]["COCO-val2017"]["box_map"])


def _from_hub(name: str) -> dict[str, Tensor]:
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name)
    if not is_cached(None, weights["DEFAULT"].url):
        check_hub(weights["DEFAULT"].url)
    found: dict[str, Tensor] = weights["DEFAULT"].get_state_dict(progress=False, check_hash=True)
    return found


def _fitted(found: dict[str, Tensor], model: nn.Module, outputs: int, first_label: int) -> dict[str, Tensor]:
    """Weights with the model's number of classes: only the rows of its classes, or the model's own rows.

    Args:
        found: The weights.
        model: The network.
        outputs: The number of its classes, with the background if it has one.
        first_label: The number of its first class.
    """
    fitted = dict(found)
    for name, own in model.state_dict().items():
        layer = name.rpartition(".")[0]
        value = found.get(name, own)
        if value.shape == own.shape or value.shape[1:] != own.shape[1:] or not _tells_classes(layer):
            continue
        classes = len(value) * outputs // len(own)
        rows = _rows(classes, outputs - first_label)
        if rows is None or len(value) * outputs % len(own):
            fitted[name] = own
            continue
        rows = [0, *rows] if first_label else rows
        # The classes of linear layers lie together; in convolutions, those of an anchor do.
        if isinstance(model.get_submodule(layer), nn.Linear):
            fitted[name] = value.unflatten(0, (classes, -1))[rows].flatten(0, 1)
        else:
            fitted[name] = value.unflatten(0, (-1, classes))[:, rows].flatten(0, 1)
    return fitted


def _tells_classes(layer: str) -> bool:
    """Whether a layer's outputs depend on the number of classes."""
    return any(part in layer for part in ("classification_head", "box_predictor", "mask_fcn_logits"))


def _rows(classes: int, wanted: int) -> list[int] | None:
    """The numbers of the wanted classes among those of the weights; None if the weights are for other classes."""
    if classes == wanted:
        return list(range(wanted))
    if classes == wanted + 1:
        return list(range(1, classes))
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights

    coco = RetinaNet_ResNet50_FPN_V2_Weights.DEFAULT.meta["categories"]
    real = [i for i, name in enumerate(coco) if name not in ("__background__", "N/A")]
    return real if (classes, wanted) == (len(coco), len(real)) else None
