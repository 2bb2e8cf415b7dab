"""Build networks for segmentation by name: U-Net, plain or with a timm encoder, DeepLabV3+, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cnnlab.errors import InputError, nearest
from cnnlab.imports import by_path
from cnnlab.models.factory import build, create_features, find_encoder
from cnnlab.models.unet import EncoderUNet, UNet, pad_to_multiple

_DEFAULT_ENCODER = "resnet34"


def create_segmenter(
    name: str,
    num_classes: int,
    channels: int = 3,
    encoder: str | None = None,
    weights: str | None = None,
    dropout: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network that returns logits (B, num_classes, H, W) for images (B, channels, H, W) of any size.

    Args:
        name: A name in SEGMENTERS, or the import path of a user's callable (``package.module.Class``) that takes
            num_classes and channels.
        num_classes: The number of classes.
        channels: The images' channels.
        encoder: A timm network as the encoder; if None, unet has its own encoder and deeplabv3plus has resnet34.
        weights: The encoder's pretrained weights, see weights.find_weights; random initialization if None.
        dropout: Dropout rate before the classifier, 0..1; the network's default if None.
        **kwargs: Passed to the network.

    Raises:
        InputError: If there is no such network, it does not take these arguments, or its weights cannot be loaded.
    """
    if dropout is not None:
        kwargs["dropout"] = dropout
    if name in SEGMENTERS:
        return SEGMENTERS[name](name, num_classes, channels, encoder, weights, kwargs)
    if "." not in name:
        raise InputError(
            f"there is no network {name!r} for segmentation: {nearest(name, SEGMENTERS)} (model.encoder chooses its "
            "encoder; or give the import path of your own, package.module.Class)"
        )
    refuse_encoder(name, encoder, weights)
    return build(name, by_path(name), num_classes=num_classes, channels=channels, **kwargs)


def encoder_of(name: str, encoder: str | None) -> str | None:
    """The timm encoder of a network for segmentation; None if it has none."""
    return _DEFAULT_ENCODER if name == "deeplabv3plus" and encoder is None else encoder


def refuse_encoder(name: str, encoder: str | None, weights: str | None) -> None:
    """Reject an encoder, or weights for one, for a network without a timm encoder.

    Raises:
        InputError: If an encoder or weights are given.
    """
    if encoder is not None:
        raise InputError(f"network {name!r} takes no model.encoder: use {', '.join(SEGMENTERS)}")
    if weights is not None:
        raise InputError(
            f"network {name!r} has no encoder that model.weights {weights!r} could be for: choose a timm network with "
            "model.encoder (weights of a checkpoint of cnnlab: --model.init_from)"
        )


def _build_unet(
    name: str, num_classes: int, channels: int, encoder: str | None, weights: str | None, kwargs: dict[str, Any]
) -> nn.Module:
    if encoder is None:
        refuse_encoder(name, encoder, weights)
        return build(name, UNet, num_classes=num_classes, channels=channels, **kwargs)
    features = create_features(encoder, channels, weights)
    return build(name, EncoderUNet, features.network, features.widths, features.strides, num_classes, **kwargs)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611) of segmentation_models_pytorch, for images of any size.

    The image is padded to a multiple of ``multiple``, and the result is cropped.

    Args:
        network: The library's DeepLabV3Plus.
    """

    multiple = 16

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """One group each for the encoder, the decoder and the head."""
        parts = {"encoder": "encoder", "decoder": "decoder", "head": "segmentation_head"}
        return {name: (f"network.{part}",) for name, part in parts.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Standardized images (B, C, H, W) to logits (B, num_classes, H, W)."""
        height, width = images.shape[-2:]
        logits: Tensor = self.network(pad_to_multiple(images, self.multiple))
        return logits[..., :height, :width]


def _build_deeplab(
    name: str, num_classes: int, channels: int, encoder: str | None, weights: str | None, kwargs: dict[str, Any]
) -> nn.Module:
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise InputError('network deeplabv3plus needs a library: pip install "cnnlab[segmentation]"') from error
    model_name = find_encoder(_DEFAULT_ENCODER if encoder is None else encoder).name
    settings = {"decoder_aspp_dropout": kwargs.pop("dropout")} if "dropout" in kwargs else {}
    network: Any = build(
        name,
        library.DeepLabV3Plus,
        f"tu-{model_name}",
        encoder_weights=None,
        in_channels=channels,
        classes=num_classes,
        **settings,
        **kwargs,
    )
    if weights is not None:
        # The library's encoder is timm's with dilated convolutions and the same parameter names.
        network.encoder.model.load_state_dict(create_features(model_name, channels, weights).network.state_dict())
    return DeepLabV3Plus(network)


_Builder = Callable[[str, int, int, str | None, str | None, dict[str, Any]], nn.Module]
SEGMENTERS: dict[str, _Builder] = {"unet": _build_unet, "deeplabv3plus": _build_deeplab}
"""cnnlab's networks for segmentation, by name."""
