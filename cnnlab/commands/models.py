"""cnnlab models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn

from cnnlab.analysis.catalog import catalog
from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.meta import build_on_meta
from cnnlab.commands.options import CommandParser
from cnnlab.commands.tables import Record, add_format_options, show
from cnnlab.errors import InputError, nearest
from cnnlab.models.detection import create_detector
from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.registry import (
    coco_map,
    default_image_shape,
    list_detectors,
    list_networks,
    top1,
    weights_status,
)

_COCO_CLASSES = 80
_MAX_COUNTED = 40
"""The largest number of networks whose costs are counted; of more, only the names are listed."""


def models(command: str, arguments: list[str]) -> None:
    """List networks with their cost, their accuracy and the source of their weights; for detection with --task.

    Raises:
        InputError: If no name matches.
    """
    options = _parser().parse_own(arguments)
    pattern = options.pattern if any(sign in options.pattern for sign in "*?[") else f"*{options.pattern}*"
    detection = options.task == "detection"
    known = list_detectors() if detection else list_networks()
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(f"no network's name fits {options.pattern!r}: {nearest(options.pattern, known)}")
    counted = len(names) <= _MAX_COUNTED or options.all
    if not counted and not options.json and not options.csv:
        print("\n".join(names))
        print(f"\n{len(names):,} networks, more than {_MAX_COUNTED}: names only; a narrower pattern or --all counts")
        return
    if detection:
        notes = [
            f"parameters and multiply-adds: for COCO's {_COCO_CLASSES} classes, and images of this size",
            "coco map: of boxes on val2017 in percent, from the metadata of torchvision's weights",
            "weights: torchvision's of COCO; for cnnlab's own networks, those of the backbone",
        ]
        show(f"{len(names)} networks for detection", [_detector_record(name) for name in names], options, notes)
        return
    accuracies = {architecture.network: architecture.top1 for architecture in catalog().values()}
    records = [_record(name, counted, accuracies) for name in names]
    show(f"{len(names)} networks for --model.network", records, options)


def _record(name: str, counted: bool, accuracies: dict[str, float | None]) -> Record:
    """A network's figures; parameters and multiply-adds are None if not counted, or if it cannot be built."""
    image = default_image_shape(name)
    parameters = multiply_adds = None
    if counted:
        classes = 10 if name in NETWORKS else 1000
        parameters, multiply_adds = _cost(lambda: create_network(name, classes, image[0]), image)
    accuracy = top1(name)
    return {
        "network": name,
        "image": "x".join(map(str, image)),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "top1": accuracies.get(name) if accuracy is None else accuracy,
        "weights": weights_status(name),
    }


def _detector_record(name: str) -> Record:
    """The figures of a network for detection."""
    image = default_image_shape(name)
    parameters, multiply_adds = _cost(lambda: create_detector(name, _COCO_CLASSES, image[0]), image)
    return {
        "network": name,
        "image": "x".join(map(str, image)),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "coco_map": coco_map(name),
        "weights": weights_status(name),
    }


def _cost(build: Callable[[], nn.Module], image: tuple[int, int, int]) -> tuple[int | None, int | None]:
    """Parameters and multiply-adds; each is None if it cannot be counted."""
    parameters = None
    with contextlib.suppress(InputError):
        network = build_on_meta(build)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return parameters, network_cost(network, image).multiply_adds
    return parameters, None


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab models",
        description="List networks that --model.network takes: cnnlab's own, timm's and torchvision's. top1 is "
        "torchvision's figure for its own weights; weights is here, to fetch, or none.",
    )
    parser.add_argument("--task", choices=["detection"], help="list the networks of this task instead")
    parser.add_argument("pattern", nargs="?", default="*", help="a part of the name, or a pattern with * and ?")
    parser.add_argument("--all", action="store_true", help=f"count the costs of more than {_MAX_COUNTED}, too")
    add_format_options(parser)
    return parser
