"""Networks for segmentation by name: U-Net, plain or on any timm network, DeepLabV3+, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cnnlab.errors import InputError, nearest
from cnnlab.imports import by_path
from cnnlab.models.factory import create_features, made, timm_name
from cnnlab.models.unet import EncoderUNet, UNet, padded

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
    """Make a network that returns logits (B, num_classes, H, W) for images (B, channels, H, W) of any size.

    Args:
        name: A name in SEGMENTERS, or the import path of a callable of the user's (``package.module.Class``) that takes
            num_classes and channels.
        num_classes: The number of classes.
        channels: The images' channels.
        encoder: A timm network whose features are decoded; unet's own levels, and resnet34 for deeplabv3plus, if None.
        weights: The encoder's pretrained weights: see weights.find_weights; random ones if None.
        dropout: Dropout rate before the classifier, 0..1; the network's own if None.
        **kwargs: Handed to the network.

    Raises:
        InputError: If there is no such network, if it does not take these arguments, or if its weights cannot be had.
    """
    if dropout is not None:
        kwargs["dropout"] = dropout
    if name in SEGMENTERS:
        return SEGMENTERS[name](name, num_classes, channels, encoder, weights, kwargs)
    if "." not in name:
        raise InputError(
            f"there is no network {name!r} for segmentation: {nearest(name, SEGMENTERS)} (with the encoder of your "
            "choice, model.encoder; or give the import path of your own, package.module.Class)"
        )
    refuse_encoder(name, encoder, weights)
    return made(name, by_path(name), num_classes=num_classes, channels=channels, **kwargs)


def encoder_of(name: str, encoder: str | None) -> str | None:
    """The timm network that a network for segmentation is built on; None if it is built on none."""
    return _DEFAULT_ENCODER if name == "deeplabv3plus" and encoder is None else encoder


def refuse_encoder(name: str, encoder: str | None, weights: str | None) -> None:
    """Refuse an encoder, and weights for one, for a network that is built on none.

    Raises:
        InputError: If either is given.
    """
    if encoder is not None:
        raise InputError(f"network {name!r} takes no model.encoder: take {', '.join(SEGMENTERS)}")
    if weights is not None:
        raise InputError(
            f"network {name!r} has no encoder that model.weights {weights!r} could be for: choose a timm network with "
            "model.encoder (weights of a checkpoint of cnnlab: --model.init_from)"
        )


def _unet(
    name: str, num_classes: int, channels: int, encoder: str | None, weights: str | None, kwargs: dict[str, Any]
) -> nn.Module:
    if encoder is None:
        refuse_encoder(name, encoder, weights)
        return made(name, UNet, num_classes=num_classes, channels=channels, **kwargs)
    features = create_features(encoder, channels, weights)
    return made(name, EncoderUNet, features.network, features.widths, features.strides, num_classes, **kwargs)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611) of segmentation_models_pytorch, for images of any size.

    The image is padded inside to a multiple of ``multiple``, and the result is cut back.

    Args:
        network: The library's.
    """

    multiple = 16

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def layer_groups(self) -> dict[str, tuple[str, ...]]:
        """The encoder, the decoder, the head."""
        parts = {"encoder": "encoder", "decoder": "decoder", "head": "segmentation_head"}
        return {name: (f"network.{part}",) for name, part in parts.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Standardised images (B, C, H, W) to logits (B, num_classes, H, W)."""
        height, width = images.shape[-2:]
        logits: Tensor = self.network(padded(images, self.multiple))
        return logits[..., :height, :width]


def _deeplab(
    name: str, num_classes: int, channels: int, encoder: str | None, weights: str | None, kwargs: dict[str, Any]
) -> nn.Module:
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise InputError('network deeplabv3plus needs a library: pip install "cnnlab[segmentation]"') from error
    bare = timm_name(_DEFAULT_ENCODER if encoder is None else encoder)
    settings = {"decoder_aspp_dropout": kwargs.pop("dropout")} if "dropout" in kwargs else {}
    network: Any = made(
        name,
        library.DeepLabV3Plus,
        f"tu-{bare}",
        encoder_weights=None,
        in_channels=channels,
        classes=num_classes,
        **settings,
        **kwargs,
    )
    if weights is not None:
        # The library's encoder is timm's with dilated convolutions, under the same names.
        network.encoder.model.load_state_dict(create_features(bare, channels, weights).network.state_dict())
    return DeepLabV3Plus(network)


_Maker = Callable[[str, int, int, str | None, str | None, dict[str, Any]], nn.Module]
SEGMENTERS: dict[str, _Maker] = {"unet": _unet, "deeplabv3plus": _deeplab}
"""cnnlab's networks for segmentation, by name."""
