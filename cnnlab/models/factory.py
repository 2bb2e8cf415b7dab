"""Build networks by name: cnnlab's own, timm's, torchvision's, and the user's by import path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from cnnlab.errors import InputError, nearest
from cnnlab.imaging import INTERPOLATIONS, Preprocessing
from cnnlab.imports import by_path
from cnnlab.models.lenet import LeNet5
from cnnlab.models.resnet import SmallResNet
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.torchvision_table import TORCHVISION_DETECTORS
from cnnlab.models.transfer import HEADS, TransferModel
from cnnlab.models.weights import (
    check_hub,
    explain_errors,
    find_file,
    find_weights,
    is_cached,
    read_state_dict,
    requested,
    save_prefetched,
)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "simple_cnn": SimpleCNN,
    "small_resnet": SmallResNet,
}
"""cnnlab's own networks; each is called with num_classes, channels and further keyword arguments."""


def create_network(
    name: str,
    num_classes: int,
    channels: int,
    dropout: float | None = None,
    weights: str | None = None,
    head: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network that returns logits (B, num_classes).

    Args:
        name: A name in NETWORKS, a timm model, a torchvision model, or the import path of a user's callable
            (``package.module.Class``) that takes num_classes and channels; the first match is used. The prefixes
            ``timm/`` and ``torchvision/`` select a library.
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0..1; the network's default if None.
        weights: Pretrained weights for all layers but the classifier (timm and torchvision only), see
            weights.find_weights; random initialization if None.
        head: A new head, linear or mlp (see transfer.TransferModel; timm and torchvision only); the network's own
            classifier if None.
        **kwargs: Passed to the network.

    Raises:
        InputError: If there is no such network, it does not take these arguments, or its weights cannot be loaded.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}, expected 0 up to (not including) 1")
    if head not in (None, *HEADS):
        raise InputError(f"head is {head!r}, expected linear, mlp or null")
    source = find_source(name)
    if source.name in TORCHVISION_DETECTORS:
        raise InputError(f"network {name!r} finds objects, and does not classify images: use it for detection")
    if source.factory is not None:
        if weights is not None or head is not None:
            raise InputError(
                f"network {name!r} takes neither weights nor a head: only timm's and torchvision's do (weights of "
                "a checkpoint of cnnlab: --model.init_from)"
            )
        if dropout is not None:
            parameters = inspect.signature(source.factory).parameters.values()
            if not any(own.name == "dropout" or own.kind is own.VAR_KEYWORD for own in parameters):
                raise InputError(
                    f"network {name!r} takes no dropout, and model.dropout is {dropout}: leave it out (--model.dropout "
                    "null), or give the network an argument dropout"
                )
            kwargs["dropout"] = dropout
        return build(name, source.factory, num_classes=num_classes, channels=channels, **kwargs)
    weights = requested(weights)
    if head is None:
        return build(name, _build_from_library, source, num_classes, channels, weights, dropout=dropout, **kwargs)
    backbone = build(name, _build_from_library, source, 0, channels, weights, **kwargs)
    # Some timm networks have another layer between the features and the classifier.
    features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return TransferModel(backbone, cast(int, features), num_classes, "mlp" if head == "mlp" else "linear", dropout)


def create_classifier(name: str, num_classes: int, channels: int, weights: str) -> nn.Module:
    """Build a timm or torchvision network with all pretrained weights, including its classifier.

    Args:
        name: See create_network.
        num_classes: The number of classes that it must have been trained for.
        channels: The images' channels.
        weights: See weights.find_weights.

    Raises:
        InputError: If it was trained for another number of classes or channels, or its weights cannot be loaded.
    """
    source = _find_pretrained(name)
    file = find_weights(source.file_name, weights)
    if file is None:
        described = source.pretraining
        is_timm = source.origin == "timm"
        known = getattr(described, "num_classes", 0) if is_timm else len(described.meta["categories"])
        if known != num_classes:
            raise InputError(
                f"the pretrained {name} tells {known:,} classes apart, and there are {num_classes}: fine-tune it on "
                "them first (cnnlab fit --model.network ...), and name that run"
            )
    with explain_errors(name, file):
        return _create(source, True, file, num_classes=num_classes, **_channel_settings(source, channels))


def preprocessing(name: str, channels: int) -> Preprocessing | None:
    """The preprocessing of a network's pretraining; None if it is unknown.

    Args:
        name: See create_network.
        channels: The images' channels; if they differ, mean and std are averaged over the pretraining's channels.
    """
    source = find_source(name)
    described = source.pretraining
    if described is None:
        return None
    if source.origin == "timm":
        height, width = described.input_size[1:]
        crop = described.crop_pct
        interpolation = described.interpolation if described.interpolation in INTERPOLATIONS else "bicubic"
    elif source.name in TORCHVISION_DETECTORS:
        return TORCHVISION_DETECTORS[source.name].preprocessing
    else:
        described = described.transforms()
        height = width = described.crop_size[0]
        crop, interpolation = height / described.resize_size[0], described.interpolation.value
    known = Preprocessing((height, width), crop, interpolation, list(described.mean), list(described.std))
    if channels == len(known.mean):
        return known
    mean, std = (sum(values) / len(values) for values in (known.mean, known.std))
    return known._replace(mean=[mean] * channels, std=[std] * channels)


class Encoder(NamedTuple):
    """A network that returns the features of each of its stages."""

    network: nn.Module
    """Standardized images (B, C, H, W) to a list of features, the largest first."""
    widths: list[int]
    """The features' channels."""
    strides: list[int]
    """The features' strides: the factors by which they are smaller than the image."""


def find_encoder(name: str) -> Source:
    """Find an encoder by its name in timm, with or without the prefix ``timm/``.

    Raises:
        InputError: If timm has no such network.
    """
    import timm

    source = find_source(name)
    if source.origin != "timm":
        raise InputError(f"encoder {name!r} is not timm's: {nearest(name, timm.list_models())}")
    return source


def create_features(name: str, channels: int, weights: str | None = None) -> Encoder:
    """Build a timm network that returns the features of each of its stages.

    Args:
        name: See find_encoder.
        channels: The images' channels.
        weights: Pretrained weights, see weights.find_weights; random initialization if None.

    Raises:
        InputError: If there is no such network, it has no such features, or its weights cannot be loaded.
    """
    source = find_encoder(name)
    weights = requested(weights)
    file = None
    if weights is not None:
        # With features_only, timm accepts files that lack weights: loading the whole network checks the file.
        _build_from_library(source, 0, channels, weights)
        file = find_weights(source.file_name, weights)
    try:
        network: Any = _create(source, weights is not None, file, features_only=True, in_chans=channels)
    except (AttributeError, RuntimeError, AssertionError) as error:
        raise InputError(f"encoder {name!r} has no features of its stages: {error}") from error
    info = network.feature_info
    return Encoder(network, list(info.channels()), list(info.reduction()))


def fetch_weights(name: str, folder: Path) -> Path:
    """Download a network's pretrained weights into a folder, unless they are there already.

    Raises:
        InputError: If the network has no pretrained weights, or they cannot be downloaded.
    """
    source = _find_pretrained(name)
    if (file := find_file(folder, source.file_name)) is not None:
        return file
    with explain_errors(name, None):
        network = _create(source, True)
    return save_prefetched(source.file_name, network, folder)


class Source(NamedTuple):
    """The origin of a network's name."""

    origin: str
    """cnnlab, timm, torchvision or user."""
    name: str
    """Its name there, without a prefix."""
    factory: Callable[..., nn.Module] | None = None
    """The function or class that builds the network; None for timm's and torchvision's."""

    @property
    def file_name(self) -> str:
        """The name of its pretrained weights, see weights.find_weights."""
        return f"torchvision/{self.name}" if self.origin == "torchvision" else self.name

    @property
    def pretraining(self) -> Any:
        """The library's description of the default weights: timm's PretrainedCfg or torchvision's Weights, or None."""
        if self.origin == "timm":
            import timm

            return timm.get_pretrained_cfg(self.name)
        if self.origin == "torchvision":
            import torchvision

            return torchvision.models.get_model_weights(self.name)["DEFAULT"]
        return None


def find_source(name: str) -> Source:
    """Find the library, or the user's callable, that a network's name refers to.

    Raises:
        InputError: If there is no such network.
    """
    if name in NETWORKS:
        return Source("cnnlab", name, NETWORKS[name])
    # Each takes a second to import, so they are imported only if the name needs them.
    import timm
    import torchvision

    prefix, _, model_name = name.rpartition("/")
    if prefix in ("", "timm") and timm.is_model(model_name):
        return Source("timm", model_name)
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if prefix in ("", "torchvision") and (model_name in classifiers or model_name in TORCHVISION_DETECTORS):
        return Source("torchvision", model_name)
    if not prefix and "." in name:
        return Source("user", name, by_path(name))
    raise InputError(
        f"there is no network {name!r}: {nearest(model_name, [*NETWORKS, *timm.list_models(), *classifiers])} "
        "(or give the import path of your own, package.module.Class)"
    )


def _find_pretrained(name: str) -> Source:
    source = find_source(name)
    if source.factory is not None:
        raise InputError(f"network {name!r} has no pretrained weights: only timm's and torchvision's do")
    return source


def build(name: str, factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Call a network's factory.

    Raises:
        InputError: If the factory does not take these arguments; the message names the network.
    """
    try:
        return factory(*args, **kwargs)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"network {name!r} cannot be made with these arguments: {error}") from error


def _build_from_library(
    source: Source, num_classes: int, channels: int, weights: str | None, dropout: float | None = None, **kwargs: Any
) -> nn.Module:
    """Build a timm or torchvision network; with num_classes 0 it returns features, and num_features is their number."""
    is_timm = source.origin == "timm"
    kwargs |= _channel_settings(source, channels)
    if dropout is not None:
        kwargs["drop_rate" if is_timm else "dropout"] = dropout
    if weights is None and (is_timm or num_classes):
        return _create(source, False, num_classes=num_classes, **kwargs)
    if weights is None:
        network = _create(source, False, **kwargs)
    else:
        file = find_weights(source.file_name, weights)
        with explain_errors(source.name, file):
            # With the pretraining's number of classes: with another one, timm accepts files that lack weights.
            network = _create(source, True, file, **kwargs)
    if is_timm:
        cast(Any, network).reset_classifier(num_classes)
        return network
    return _replace_classifier(source.name, network, num_classes)


def _channel_settings(source: Source, channels: int) -> dict[str, Any]:
    """The library's argument for the images' channels.

    Raises:
        InputError: If it is a network of torchvision's that does not take such images, or cannot be trained.
    """
    if source.origin == "timm":
        return {"in_chans": channels}
    if channels != 3:
        raise InputError(
            f"torchvision's {source.name} takes images of 3 channels, not {channels}: timm's networks take any number"
        )
    if source.name in ("googlenet", "inception_v3"):
        # With pretrained weights they would also standardize a second time.
        raise InputError(f"torchvision's {source.name} returns more than logits in training: use timm's inception_v3")
    return {}


def _create(source: Source, pretrained: bool, file: Path | None = None, **kwargs: Any) -> nn.Module:
    """Call timm's or torchvision's factory; the pretrained weights are those of a file, or the hub's if it is None."""
    if pretrained and file is None:
        described = source.pretraining
        repository, url = getattr(described, "hf_hub_id", None), getattr(described, "url", None) or ""
        if (repository or url) and not is_cached(repository, url):
            check_hub(os.environ.get("HF_ENDPOINT", "https://huggingface.co") if repository else url)
    if source.origin == "timm":
        import timm

        overlay = None if file is None else {"file": str(file), "custom_load": False}
        if overlay is not None and "num_classes" in kwargs:
            overlay["num_classes"] = kwargs["num_classes"]
        return timm.create_model(source.name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs)
    import torchvision

    from_hub = pretrained and file is None
    network: nn.Module = torchvision.models.get_model(source.name, weights="DEFAULT" if from_hub else None, **kwargs)
    if file is not None:
        network.load_state_dict(read_state_dict(file))
    return network


def _replace_classifier(name: str, network: nn.Module, num_classes: int) -> nn.Module:
    """Replace the last linear layer for a number of classes, or remove it if that is 0."""
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or not linear[-1].startswith(("fc", "classifier", "head", "heads")):
        raise InputError(f"torchvision's {name} has no linear classifier to replace: use a network of timm's")
    features = cast(nn.Linear, network.get_submodule(linear[-1])).in_features
    network.set_submodule(linear[-1], nn.Linear(features, num_classes) if num_classes else nn.Identity())
    if not num_classes:
        network.num_features = cast(Any, features)
    return network
