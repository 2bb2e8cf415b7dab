"""cnnlab models."""

from __future__ import annotations

import contextlib
from fnmatch import fnmatchcase

from cnnlab.analysis.catalog import catalog
from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.meta import build_on_meta
from cnnlab.commands.options import CommandParser
from cnnlab.commands.tables import Record, add_format_options, show
from cnnlab.errors import InputError, nearest
from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.registry import default_image_shape, list_networks, top1, weights_status

_MAX_COUNTED = 40
"""The largest number of networks whose costs are counted; of more, only the names are listed."""


def models(command: str, arguments: list[str]) -> None:
    """List networks with their cost, their accuracy and the source of their weights.

    Raises:
        InputError: If no name matches.
    """
    options = _parser().parse_own(arguments)
    pattern = options.pattern if any(sign in options.pattern for sign in "*?[") else f"*{options.pattern}*"
    known = list_networks()
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(f"no network's name fits {options.pattern!r}: {nearest(options.pattern, known)}")
    counted = len(names) <= _MAX_COUNTED or options.all
    if not counted and not options.json and not options.csv:
        print("\n".join(names))
        print(f"\n{len(names):,} networks, more than {_MAX_COUNTED}: names only; a narrower pattern or --all counts")
        return
    accuracies = {architecture.network: architecture.top1 for architecture in catalog().values()}
    records = [_record(name, counted, accuracies) for name in names]
    show(f"{len(names)} networks for --model.network", records, options)


def _record(name: str, counted: bool, accuracies: dict[str, float | None]) -> Record:
    """A network's figures; parameters and multiply-adds are None if not counted, or if it cannot be built."""
    image = default_image_shape(name)
    parameters = multiply_adds = None
    if counted:
        with contextlib.suppress(InputError):
            network = build_on_meta(lambda: create_network(name, 10 if name in NETWORKS else 1000, image[0]))
            cost = network_cost(network, image)
            parameters, multiply_adds = cost.parameters, cost.multiply_adds
    accuracy = top1(name)
    return {
        "network": name,
        "image": "x".join(map(str, image)),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "top1": accuracies.get(name) if accuracy is None else accuracy,
        "weights": weights_status(name),
    }


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab models",
        description="List networks that --model.network takes: cnnlab's own, timm's and torchvision's. top1 is "
        "torchvision's figure for its own weights; weights is here, to fetch, or none.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a part of the name, or a pattern with * and ?")
    parser.add_argument("--all", action="store_true", help=f"count the costs of more than {_MAX_COUNTED}, too")
    add_format_options(parser)
    return parser
