"""cnnlab models."""

from __future__ import annotations

import argparse
import contextlib
from fnmatch import fnmatchcase

from cnnlab.analysis.catalogue import catalogue
from cnnlab.analysis.cost import network_cost
from cnnlab.analysis.skeleton import made_on_meta
from cnnlab.commands.tables import Record, add_format_options, show
from cnnlab.errors import InputError, nearest
from cnnlab.models.directory import list_networks, top1, usual_image, weights_of
from cnnlab.models.factory import NETWORKS, create_network

_MOST = 40
"""How many networks are made to be counted; others are named."""


def models(command: str, arguments: list[str]) -> None:
    """List networks: what they cost, how good they are, and whether their weights are here.

    Raises:
        InputError: If no name fits.
    """
    asked = _parser().parse_args(arguments)
    pattern = asked.pattern if any(sign in asked.pattern for sign in "*?[") else f"*{asked.pattern}*"
    known = list_networks()
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(f"no network's name fits {asked.pattern!r}: {nearest(asked.pattern, known)}")
    counts = len(names) <= _MOST or asked.all
    if not counts and not asked.json and not asked.csv:
        print("\n".join(names))
        print(f"\n{len(names):,} networks, more than {_MOST}: names only (a narrower pattern, or --all, counts them)")
        return
    accuracies = {found.network: found.top1 for found in catalogue().values()}
    records = [_record(name, counts, accuracies) for name in names]
    show(f"{len(names)} networks for --model.network", records, asked)


def _record(name: str, counts: bool, accuracies: dict[str, float | None]) -> Record:
    """A network's figures; without them where they are not wanted, or where it cannot be made."""
    image = usual_image(name)
    parameters = multiply_adds = None
    if counts:
        with contextlib.suppress(InputError):
            network = made_on_meta(lambda: create_network(name, 10 if name in NETWORKS else 1000, image[0]))
            cost = network_cost(network, image)
            parameters, multiply_adds = cost.parameters, cost.multiply_adds
    accuracy = top1(name)
    return {
        "network": name,
        "image": "x".join(map(str, image)),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "top1": accuracies.get(name) if accuracy is None else accuracy,
        "weights": weights_of(name),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnlab models",
        allow_abbrev=False,
        description="List networks that --model.network takes: cnnlab's own, timm's and torchvision's. top1 is "
        "torchvision's figure for its own weights; weights says whether there are any, and whether they are here.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a part of the name, or with * and ?")
    parser.add_argument("--all", action="store_true", help=f"count more than {_MOST}, too")
    add_format_options(parser)
    return parser
