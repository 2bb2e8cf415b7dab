"""Build networks by name: cnnlab's own, timm's, torchvision's, and the user's by import path."""

from __future__ import annotations

import inspect
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
from cnnlab.models.transfer import HEADS, TransferModel
from cnnlab.models.weights import explain_errors, find_file, find_weights, read_state_dict, save_prefetched, should_load

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
    if source.origin not in _LIBRARIES:
        if weights is not None or head is not None:
            raise InputError(
                f"network {name!r} takes neither weights nor a head: only timm's and torchvision's do (weights of "
                "a checkpoint of cnnlab: --model.init_from)"
            )
        if dropout is not None:
            _check_takes_dropout(name, source.factory, dropout)
            kwargs["dropout"] = dropout
        return build(name, source.factory, num_classes=num_classes, channels=channels, **kwargs)
    factory = _LIBRARIES[source.origin]
    weights = weights if should_load(weights) else None
    if head is None:
        return build(name, factory, source.name, num_classes, channels, weights, dropout=dropout, **kwargs)
    backbone = build(name, factory, source.name, 0, channels, weights, **kwargs)
    # Some timm networks have another layer between the features and the classifier.
    features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return TransferModel(backbone, cast(int, features), num_classes, "mlp" if head == "mlp" else "linear", dropout)


def _check_takes_dropout(name: str, factory: Callable[..., nn.Module], dropout: float) -> None:
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.name == "dropout" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise InputError(
            f"network {name!r} takes no dropout, and model.dropout is {dropout}: leave it out (--model.dropout null), "
            "or give the network an argument dropout"
        )


def create_classifier(name: str, num_classes: int, channels: int, weights: str) -> nn.Module:
    """Build a timm or torchvision network with all pretrained weights, including its classifier.

    Args:
        name: See create_network.
        num_classes: The number of classes that it must have been trained for.
        channels: The images' channels.
        weights: See weights.find_weights.

    Raises:
        InputError: If it was trained for another number of classes, or its weights cannot be loaded.
    """
    source = find_source(name)
    if source.origin not in _LIBRARIES:
        raise InputError(f"network {name!r} has no pretrained weights: only timm's and torchvision's do")
    is_timm = source.origin == "timm"
    file = find_weights(source.name if is_timm else f"torchvision/{source.name}", weights)
    if file is None and (known := _pretrained_classes(source)) != num_classes:
        raise InputError(
            f"the pretrained {name} tells {known:,} classes apart, and there are {num_classes}: fine-tune it on them "
            "first (cnnlab fit --model.network ...), and name that run"
        )
    with explain_errors(name, file):
        if is_timm:
            import timm

            overlay = {"file": str(file), "custom_load": False, "num_classes": num_classes} if file else None
            settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
            return timm.create_model(source.name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
        import torchvision

        if file is None:
            pretrained: nn.Module = torchvision.models.get_model(source.name, weights="DEFAULT")
            return pretrained
        network: nn.Module = _build_torchvision(source.name, num_classes, channels, None)
        network.load_state_dict(read_state_dict(file))
        return network


def _pretrained_classes(source: Source) -> int:
    if source.origin == "timm":
        import timm

        return int(getattr(timm.get_pretrained_cfg(source.name), "num_classes", 0))
    import torchvision

    return len(torchvision.models.get_model_weights(source.name)["DEFAULT"].meta["categories"])


def preprocessing(name: str, channels: int) -> Preprocessing | None:
    """The preprocessing of a network's pretraining; None if it is unknown.

    Args:
        name: See create_network.
        channels: The images' channels; if they differ, mean and std are averaged over the pretraining's channels.
    """
    source = find_source(name)
    known = None
    if source.origin == "timm":
        known = _timm_preprocessing(source.name)
    elif source.origin == "torchvision":
        known = _torchvision_preprocessing(source.name)
    if known is None or channels == len(known.mean):
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


def timm_name(name: str) -> str:
    """An encoder's name in timm, without the prefix ``timm/``.

    Raises:
        InputError: If timm has no such network.
    """
    import timm

    source = find_source(name)
    if source.origin != "timm":
        raise InputError(f"encoder {name!r} is not timm's: {nearest(name, timm.list_models())}")
    return source.name


def create_features(name: str, channels: int, weights: str | None = None) -> Encoder:
    """Build a timm network that returns the features of each of its stages.

    Args:
        name: A timm model, with or without the prefix ``timm/``.
        channels: The images' channels.
        weights: Pretrained weights, see weights.find_weights; random initialization if None.

    Raises:
        InputError: If there is no such network, it has no such features, or its weights cannot be loaded.
    """
    import timm

    model_name = timm_name(name)
    weights = weights if should_load(weights) else None
    if weights is not None:
        # With features_only, timm accepts files that lack weights: loading the whole network checks the file.
        _build_timm(model_name, 0, channels, weights)
    file = find_weights(model_name, weights) if weights is not None else None
    overlay = {"file": str(file), "custom_load": False} if file is not None else None
    try:
        network: Any = timm.create_model(
            model_name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay,
            features_only=True,
            in_chans=channels,
        )
    except (AttributeError, RuntimeError, AssertionError) as error:
        raise InputError(f"encoder {name!r} has no features of its stages: {error}") from error
    info = network.feature_info
    return Encoder(network, list(info.channels()), list(info.reduction()))


def fetch_weights(name: str, folder: Path) -> Path:
    """Download a network's pretrained weights into a folder, unless they are there already.

    Raises:
        InputError: If the network has no pretrained weights, or they cannot be downloaded.
    """
    source = find_source(name)
    if source.origin not in _LIBRARIES:
        raise InputError(f"network {name!r} has no pretrained weights: only timm's and torchvision's do")
    file_name = source.name if source.origin == "timm" else f"torchvision/{source.name}"
    if (file := find_file(folder, file_name)) is not None:
        return file
    with explain_errors(name, None):
        if source.origin == "timm":
            import timm

            network = timm.create_model(source.name, pretrained=True)
        else:
            import torchvision

            network = torchvision.models.get_model(source.name, weights="DEFAULT")
    return save_prefetched(file_name, network, folder)


class Source(NamedTuple):
    """The origin of a network's name."""

    origin: str
    """cnnlab, timm, torchvision or user."""
    name: str
    factory: Callable[..., nn.Module]
    """The function or class that builds the network."""


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
        return Source("timm", model_name, _build_timm)
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if prefix in ("", "torchvision") and model_name in classifiers:
        return Source("torchvision", model_name, _build_torchvision)
    if not prefix and "." in name:
        return Source("user", name, by_path(name))
    raise InputError(
        f"there is no network {name!r}: {nearest(model_name, [*NETWORKS, *timm.list_models(), *classifiers])} "
        "(or give the import path of your own, package.module.Class)"
    )


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


def _build_timm(
    name: str, num_classes: int, channels: int, weights: str | None, dropout: float | None = None, **kwargs: Any
) -> nn.Module:
    import timm

    if dropout is not None:
        kwargs["drop_rate"] = dropout
    kwargs["in_chans"] = channels
    if weights is None:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
    file = find_weights(name, weights)
    overlay = {"file": str(file), "custom_load": False} if file is not None else None
    with explain_errors(name, file):
        # With the pretraining's number of classes: with another one, timm accepts files that lack weights.
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    cast(Any, network).reset_classifier(num_classes)
    return network


def _timm_preprocessing(name: str) -> Preprocessing | None:
    import timm

    known = timm.get_pretrained_cfg(name)
    if known is None:
        return None
    interpolation = known.interpolation if known.interpolation in INTERPOLATIONS else "bicubic"
    height, width = known.input_size[1:]
    return Preprocessing((height, width), known.crop_pct, interpolation, list(known.mean), list(known.std))


def _build_torchvision(
    name: str, num_classes: int, channels: int, weights: str | None, dropout: float | None = None, **kwargs: Any
) -> nn.Module:
    """Build a torchvision network; with num_classes 0 it returns features, and num_features is their number."""
    import torchvision

    if channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, not {channels}: timm's networks take any number"
        )
    if name in ("googlenet", "inception_v3"):
        # With pretrained weights they would also standardize a second time.
        raise InputError(f"torchvision's {name} returns more than logits in training: use timm's inception_v3")
    if dropout is not None:
        kwargs["dropout"] = dropout
    if weights is None:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, **({"num_classes": num_classes} if num_classes else {}), **kwargs
        )
    else:
        file = find_weights(f"torchvision/{name}", weights)
        with explain_errors(name, file):
            if file is None:
                network = torchvision.models.get_model(name, weights="DEFAULT", **kwargs)
            else:
                network = torchvision.models.get_model(name, weights=None, **kwargs)
                network.load_state_dict(read_state_dict(file))
    if weights is None and num_classes:
        return network
    return _replace_classifier(name, network, num_classes)


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


def _torchvision_preprocessing(name: str) -> Preprocessing:
    import torchvision

    known = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    size = known.crop_size[0]
    return Preprocessing(
        (size, size), size / known.resize_size[0], known.interpolation.value, list(known.mean), list(known.std)
    )


_LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": _build_timm, "torchvision": _build_torchvision}
