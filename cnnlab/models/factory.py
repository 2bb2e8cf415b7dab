"""Networks by name: cnnlab's own, timm's, torchvision's, and the user's by import path."""

from __future__ import annotations

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
from cnnlab.models.weights import are_wanted, explained, find_in, find_weights, read_state_dict, save_prefetched

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "simple_cnn": SimpleCNN,
    "small_resnet": SmallResNet,
}
"""cnnlab's own, each called with num_classes, channels and further keyword arguments."""


def create_network(
    name: str,
    num_classes: int,
    channels: int,
    dropout: float | None = None,
    weights: str | None = None,
    head: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a network that returns logits (B, num_classes).

    Args:
        name: A name in NETWORKS; else a timm model; else a torchvision model; else the import path of a callable of
            the user's (``package.module.Class``) that takes num_classes and channels. ``timm/`` or ``torchvision/``
            before the name says whose it is.
        num_classes: The number of classes.
        channels: The images' channels.
        dropout: Dropout rate before the classifier, 0..1; the network's own if None.
        weights: Pretrained weights for all but the classifier, of timm's and torchvision's networks: see
            weights.find_weights; random ones if None.
        head: A new head on such a network: linear or mlp (see transfer.TransferModel); its own classifier if None.
        **kwargs: Handed to the network.

    Raises:
        InputError: If there is no such network, if it does not take these arguments, or if its weights cannot be had.
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
            kwargs["dropout"] = dropout
        return made(name, source.make, num_classes=num_classes, channels=channels, **kwargs)
    make = _LIBRARIES[source.origin]
    wanted = weights if are_wanted(weights) else None
    if head is None:
        return made(name, make, source.name, num_classes, channels, wanted, dropout=dropout, **kwargs)
    backbone = made(name, make, source.name, 0, channels, wanted, **kwargs)
    # Some of timm's have a layer more between the features and the classifier.
    features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return TransferModel(backbone, cast(int, features), num_classes, "mlp" if head == "mlp" else "linear", dropout)


def create_classifier(name: str, num_classes: int, channels: int, weights: str) -> nn.Module:
    """Make a timm or torchvision network with all of its weights, its own classifier included.

    Args:
        name: See create_network.
        num_classes: How many classes it must have been trained for.
        channels: The images' channels.
        weights: See weights.find_weights.

    Raises:
        InputError: If it was trained for other classes, or if its weights cannot be had.
    """
    source = find_source(name)
    if source.origin not in _LIBRARIES:
        raise InputError(f"network {name!r} has no pretrained weights: only timm's and torchvision's do")
    ours = source.origin == "timm"
    file = find_weights(source.name if ours else f"torchvision/{source.name}", weights)
    if file is None and (known := _pretrained_classes(source)) != num_classes:
        raise InputError(
            f"the pretrained {name} tells {known:,} classes apart, and there are {num_classes}: fine-tune it on them "
            "first (cnnlab fit --model.network ...), and name that run"
        )
    with explained(name, file):
        if ours:
            import timm

            overlay = {"file": str(file), "custom_load": False, "num_classes": num_classes} if file else None
            settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
            return timm.create_model(source.name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
        import torchvision

        if file is None:
            whole: nn.Module = torchvision.models.get_model(source.name, weights="DEFAULT")
            return whole
        network: nn.Module = _torchvision(source.name, num_classes, channels, None)
        network.load_state_dict(read_state_dict(file))
        return network


def _pretrained_classes(source: Source) -> int:
    if source.origin == "timm":
        import timm

        return int(getattr(timm.get_pretrained_cfg(source.name), "num_classes", 0))
    import torchvision

    return len(torchvision.models.get_model_weights(source.name)["DEFAULT"].meta["categories"])


def preprocessing(name: str, channels: int) -> Preprocessing | None:
    """What a network's own pretraining expects of its images; None where nobody says.

    Args:
        name: See create_network.
        channels: The images' channels; for one channel mean and std are the means of the colours'.
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
    """A network that returns the features of its stages."""

    network: nn.Module
    """Standardised images (B, C, H, W) to a list of features, the largest first."""
    widths: list[int]
    """The features' channels."""
    strides: list[int]
    """How much smaller than the image they are."""


def timm_name(name: str) -> str:
    """The name that timm knows an encoder by, without ``timm/`` before it.

    Raises:
        InputError: If timm has no such network.
    """
    import timm

    source = find_source(name)
    if source.origin != "timm":
        raise InputError(f"encoder {name!r} is not timm's: {nearest(name, timm.list_models())}")
    return source.name


def create_features(name: str, channels: int, weights: str | None = None) -> Encoder:
    """Make a timm network that returns the features of its stages.

    Args:
        name: A timm model, perhaps with ``timm/`` before it.
        channels: The images' channels.
        weights: Pretrained weights: see weights.find_weights; random ones if None.

    Raises:
        InputError: If there is no such network, if it has no such features, or if its weights cannot be had.
    """
    import timm

    bare = timm_name(name)
    wanted = weights if are_wanted(weights) else None
    if wanted is not None:
        # Whole, to be sure that nothing is missing: timm lets any names pass where only features are wanted.
        _timm(bare, 0, channels, wanted)
    file = find_weights(bare, wanted) if wanted is not None else None
    overlay = {"file": str(file), "custom_load": False} if file is not None else None
    try:
        network: Any = timm.create_model(
            bare,
            pretrained=wanted is not None,
            pretrained_cfg_overlay=overlay,
            features_only=True,
            in_chans=channels,
        )
    except (AttributeError, RuntimeError, AssertionError) as error:
        raise InputError(f"encoder {name!r} has no features of its stages: {error}") from error
    info = network.feature_info
    return Encoder(network, list(info.channels()), list(info.reduction()))


def fetch_weights(name: str, folder: Path) -> Path:
    """Put a network's pretrained weights into a folder, from its library's hub where they are not there yet.

    Raises:
        InputError: If the network has none, or if they cannot be had.
    """
    source = find_source(name)
    if source.origin not in _LIBRARIES:
        raise InputError(f"network {name!r} has no pretrained weights: only timm's and torchvision's do")
    file_name = source.name if source.origin == "timm" else f"torchvision/{source.name}"
    if (found := find_in(folder, file_name)) is not None:
        return found
    with explained(name, None):
        if source.origin == "timm":
            import timm

            network = timm.create_model(source.name, pretrained=True)
        else:
            import torchvision

            network = torchvision.models.get_model(source.name, weights="DEFAULT")
    return save_prefetched(file_name, network, folder)


class Source(NamedTuple):
    """Whose network a name stands for."""

    origin: str
    """cnnlab, timm, torchvision or user."""
    name: str
    make: Callable[..., nn.Module]


def find_source(name: str) -> Source:
    """Whose network a name stands for.

    Raises:
        InputError: If there is no such network.
    """
    if name in NETWORKS:
        return Source("cnnlab", name, NETWORKS[name])
    # These two take a second each to import: not before a name asks for them.
    import timm
    import torchvision

    origin, _, bare = name.rpartition("/")
    if origin in ("", "timm") and timm.is_model(bare):
        return Source("timm", bare, _timm)
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if origin in ("", "torchvision") and bare in classifiers:
        return Source("torchvision", bare, _torchvision)
    if not origin and "." in name:
        return Source("user", name, by_path(name))
    raise InputError(
        f"there is no network {name!r}: {nearest(bare, [*NETWORKS, *timm.list_models(), *classifiers])} "
        "(or give the import path of your own, package.module.Class)"
    )


def made(name: str, make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Call what makes a network.

    Raises:
        InputError: If it does not take these arguments; the message names the network.
    """
    try:
        return make(*args, **kwargs)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"network {name!r} cannot be made with these arguments: {error}") from error


def _timm(
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
    with explained(name, file):
        # With the pretraining's own classes, since timm lets any names pass with others: nothing may be missing.
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


def _torchvision(
    name: str, num_classes: int, channels: int, weights: str | None, dropout: float | None = None, **kwargs: Any
) -> nn.Module:
    """A torchvision network; without classes one that returns features, their number in num_features."""
    import torchvision

    if channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, not {channels}: timm's networks take any number"
        )
    if name in ("googlenet", "inception_v3"):
        # They also standardise a second time, but only with pretrained weights.
        raise InputError(f"torchvision's {name} returns more than logits in training: take timm's inception_v3")
    if dropout is not None:
        kwargs["dropout"] = dropout
    if weights is None:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, **({"num_classes": num_classes} if num_classes else {}), **kwargs
        )
    else:
        file = find_weights(f"torchvision/{name}", weights)
        with explained(name, file):
            if file is None:
                network = torchvision.models.get_model(name, weights="DEFAULT", **kwargs)
            else:
                network = torchvision.models.get_model(name, weights=None, **kwargs)
                network.load_state_dict(read_state_dict(file))
    if weights is None and num_classes:
        return network
    return _with_classes(name, network, num_classes)


def _with_classes(name: str, network: nn.Module, num_classes: int) -> nn.Module:
    """Replace the classifier's last layer, or remove it where there are no classes."""
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not last or not last[-1].startswith(("fc", "classifier", "head", "heads")):
        raise InputError(f"torchvision's {name} has no linear classifier to replace: take a network of timm's")
    features = cast(nn.Linear, network.get_submodule(last[-1])).in_features
    network.set_submodule(last[-1], nn.Linear(features, num_classes) if num_classes else nn.Identity())
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


_LIBRARIES: dict[str, Callable[..., nn.Module]] = {"timm": _timm, "torchvision": _torchvision}
