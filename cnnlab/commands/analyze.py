"""cnnlab analyze."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cnnlab.analysis.catalogue import catalogue
from cnnlab.analysis.convolutions import convolutions
from cnnlab.analysis.cost import LayerCost, NetworkCost, Sight, network_cost
from cnnlab.analysis.initialisation import initialisation
from cnnlab.analysis.memory import OPTIMIZERS, PRECISIONS, TrainingMemory, training_memory
from cnnlab.analysis.normalisation import normalisations
from cnnlab.analysis.scaling import family
from cnnlab.analysis.skeleton import made_on_meta
from cnnlab.commands.tables import Record, add_format_options, show
from cnnlab.errors import InputError
from cnnlab.models.directory import usual_image
from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.segmentation import SEGMENTERS, create_segmenter


def analyze(command: str, arguments: list[str]) -> None:
    """Show what a network costs and sees, layer by layer, or compare several, or kinds of layers.

    Raises:
        InputError: If there is something to mend.
    """
    asked = _parser().parse_args(arguments)
    tables = [name for name in _TABLES if getattr(asked, name)]
    if len(tables) + bool(asked.compare) + (asked.model is not None) != 1:
        raise InputError(f"give one of: a model, --compare A B, {', '.join(f'--{name}' for name in _TABLES)}")
    _check(asked, f"--{tables[0]}" if tables else "--compare" if asked.compare else "a model")
    if tables:
        title, records = _TABLES[tables[0]]
        show(title, records(), asked)
    elif asked.compare:
        show(f"{asked.batch} images a training step", [_compared(name, asked) for name in asked.compare], asked)
    elif asked.initialisation:
        _beginning(asked)
    else:
        _one(asked)


def _check(asked: argparse.Namespace, subject: str) -> None:
    """Refuse numbers that are none, and options that say nothing about the subject; fill in what was not given."""
    step = {"batch": 32, "precision": "32-true", "optimizer": "adamw"}
    unfit = {
        "--compare": ["depth", "picture", "initialisation"],
        "a model": ["depth", "picture", *step] if asked.initialisation else [],
    }.get(subject, ["size", "channels", "classes", "encoder", "depth", "picture", "initialisation", *step])
    if given := [f"--{name}" for name in unfit if getattr(asked, name) not in (None, False)]:
        raise InputError(f"{', '.join(given)} says nothing here ({subject}): leave it out")
    for name in ("channels", "classes", "depth", "batch"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected 1 or more")
    if asked.size is not None and (not 1 <= min(asked.size) <= max(asked.size) <= 65536 or len(asked.size) > 2):
        given_size = " ".join(map(str, asked.size))
        raise InputError(f"--size is {given_size}, expected a height, and perhaps a width, from 1 to 65536 pixels")
    for name, value in step.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)


def _beginning(asked: argparse.Namespace) -> None:
    """How the network's layers begin, with its own random weights and random images."""
    subject = _subject(asked.model, asked, with_numbers=True)
    images = torch.randn(4, *subject.image, generator=torch.Generator().manual_seed(0))
    records: list[Record] = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "scheme": layer.scheme,
            **{f"spread_of_{name}": getattr(layer, name) for name in ("weights", "activations", "gradients")},
        }
        for layer in initialisation(subject.network, images)
    ]
    show(_title(subject), records, asked)


def _one(asked: argparse.Namespace) -> None:
    subject = _subject(asked.model, asked)
    cost = network_cost(subject.network, subject.image)
    layers = cost.layers if asked.depth is None else cost.folded(asked.depth)
    memory = training_memory(subject.network, subject.image, asked.batch, asked.precision, asked.optimizer)
    picture = asked.picture
    if picture is None:
        picture = "none" if asked.json or asked.csv else f"{Path(subject.name).name}-layers.png"
    drawn = [] if picture == "none" else [f"picture  {_drawn(cost, subject, Path(picture))}"]
    if asked.json:
        whole = {
            "network": subject.name,
            "image": subject.image,
            **{name: getattr(cost, name) for name in ("parameters", "trainable", "multiply_adds", "activation_bytes")},
            "training": {"batch": asked.batch, "precision": asked.precision, **memory._asdict()},
            "layers": [_row(layer) | _sight(layer.sight) for layer in layers],
        }
        print(json.dumps(whole, indent=2))
        return
    records = [_row(layer) for layer in layers]
    show(_title(subject), records, asked, [*_totals(cost), _memory(memory, asked), *drawn])


def _row(layer: LayerCost) -> Record:
    fields = layer.sight.fields
    return {
        "layer": layer.name or "(itself)",
        "kind": layer.kind,
        "output": "x".join(map(str, layer.output)),
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "activations_MB": layer.activation_bytes / 1e6,
        "sees": str(layer.sight),
        "jump": None if fields is None else fields[0].jump,
        "centre": None if fields is None else fields[0].start,
    }


def _sight(sight: Sight) -> Record:
    """What programs want to know of it, for rows and columns."""
    fields = sight.fields or ()
    return {
        "pixels": [field.size for field in fields],
        "jump": [field.jump for field in fields],
        "centre": [field.start for field in fields],
        "whole_image": sight.whole_image,
        "unknown": sight.unknown,
    }


def _totals(cost: NetworkCost) -> list[str]:
    last = cost.last_map
    sees = f"; the last feature map ({last.name}) sees {last.sight} pixels" if last is not None else ""
    unknown = dict.fromkeys(layer.sight.unknown for layer in cost.layers if layer.sight.unknown)
    return [
        "",
        f"parameters     {cost.parameters:,}, {cost.trainable:,} of them trainable; {4e-6 * cost.parameters:,.1f} MB",
        f"multiply-adds  {cost.multiply_adds:,} an image",
        f"activations    {cost.activation_bytes / 1e6:,.1f} MB an image, kept for the backward pass in float32",
        f"sees           windows of pixels; + the whole image besides; all: nothing but the whole image{sees}",
        *(f"?              cannot be said after {operation}" for operation in unknown),
    ]


def _memory(memory: TrainingMemory, asked: argparse.Namespace) -> str:
    parts = {"weights": memory.parameters, "gradients": memory.gradients, asked.optimizer: memory.optimizer}
    said = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in {**parts, "activations": memory.activations}.items())
    return f"training       {memory.peak / 1e6:,.0f} MB for {asked.batch} images, {asked.precision} ({said})"


def _compared(name: str, asked: argparse.Namespace) -> Record:
    subject = _subject(name, asked)
    cost = network_cost(subject.network, subject.image)
    memory = training_memory(subject.network, subject.image, asked.batch, asked.precision, asked.optimizer)
    return {
        "network": name,
        "image": "x".join(map(str, subject.image)),
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "activations_MB": cost.activation_bytes / 1e6,
        "training_MB": memory.peak / 1e6,
        "sees": "" if cost.last_map is None else str(cost.last_map.sight),
    }


class _Subject(NamedTuple):
    """What is analysed."""

    name: str
    network: nn.Module
    image: tuple[int, int, int]


def _subject(name: str, asked: argparse.Namespace, with_numbers: bool = False) -> _Subject:
    """A run's network, or one by its name."""
    if name and Path(name).exists() and _is_run(Path(name)):
        return _of_run(name, asked)
    image = usual_image(name, asked.channels)
    classes = (
        (21 if name in SEGMENTERS else 10 if name in NETWORKS else 1000) if asked.classes is None else asked.classes
    )
    if asked.encoder is not None and name not in SEGMENTERS:
        raise InputError(f"{name} takes no --encoder: {', '.join(SEGMENTERS)} do")

    def make() -> nn.Module:
        if name in SEGMENTERS:
            return create_segmenter(name, classes, image[0], encoder=asked.encoder)
        network = create_network(name, classes, image[0])
        if not isinstance(network, nn.Module):
            raise InputError(f"{name} makes {type(network).__name__}, expected a torch.nn.Module")
        return network

    size = image[1:] if asked.size is None else (asked.size[0], asked.size[-1])
    return _Subject(name, make() if with_numbers else made_on_meta(make), (image[0], *size))


def _is_run(place: Path) -> bool:
    """Whether this is a run or a checkpoint, and not a folder that happens to be called like a network."""
    from cnnlab.run import Run  # It takes a second to import, which a network's name does not need.

    return place.is_file() or Run(place).config.is_file() or Run(place).checkpoints.is_dir()


def _of_run(name: str, asked: argparse.Namespace) -> _Subject:
    from cnnlab.commands.loading import load_cnnlab_run

    if given := [f"--{option}" for option in ("channels", "classes", "encoder") if getattr(asked, option) is not None]:
        raise InputError(f"{', '.join(given)}: {name} is a run, which has its own; leave it out")
    task, data, _, _ = load_cnnlab_run(name, [])
    size = (asked.size[0], asked.size[-1]) if asked.size is not None else data.eval_transform().size
    if size is None:
        raise InputError(f"{name} takes images of any size: say which with --size")
    return _Subject(name, task.network, (data.channels, *size))


def _drawn(cost: NetworkCost, subject: _Subject, path: Path) -> Path:
    from cnnlab.figures import layers_chart

    if path.suffix != ".png":
        raise InputError(f"--picture {path}: expected a file that ends with .png, or none")
    try:
        layers_chart(cost, _title(subject), path)
    except OSError as error:
        raise InputError(f"--picture {path} cannot be written: {error}") from error
    return path


def _title(subject: _Subject) -> str:
    return f"{subject.name}: images of {'x'.join(map(str, subject.image))}"


def _convolutions() -> list[Record]:
    return [
        {
            "convolution": kind.name,
            "parameters": kind.parameters,
            "multiply_adds": kind.multiply_adds,
            "of_standard": kind.relative,
            "output": "x".join(map(str, kind.output)),
        }
        for kind in convolutions()
    ]


def _normalisations() -> list[Record]:
    return [
        {
            "norm": kind.name,
            "mean_over": kind.axes,
            "means": kind.statistics,
            "parameters": kind.parameters,
            "depends_on_batch": kind.depends_on_batch,
            "same_in_evaluation": kind.same_in_evaluation,
        }
        for kind in normalisations()
    ]


def _scaling() -> list[Record]:
    return [
        {
            "network": scaled.name,
            **{f"{name}_by_formula": round(value, 2) for name, value in scaled.formula._asdict().items()},
            **{f"{name}_released": value for name, value in scaled.released._asdict().items()},
            "parameters": scaled.parameters,
            "multiply_adds": scaled.multiply_adds,
            "of_B0": scaled.relative,
            "2^phi": scaled.expected,
        }
        for scaled in family()
    ]


def _architectures() -> list[Record]:
    return [
        {
            "architecture": found.name,
            "year": str(found.year),
            "network": found.network,
            "parameters": found.parameters,
            "multiply_adds": found.multiply_adds,
            "top1": found.top1,
            "idea": found.idea,
            "top1_from": found.source,
        }
        for found in catalogue().values()
    ]


_TABLES: dict[str, tuple[str, Callable[[], list[Record]]]] = {
    "convolutions": ("convolutions from 64 to 128 channels of 56x56, kernel 3", _convolutions),
    "normalisations": ("normalisation of 8 images with 32 channels of 14x14", _normalisations),
    "scaling": ("EfficientNet: 1.2^phi, 1.1^phi and 1.15^phi, and what was released", _scaling),
    "architectures": ("architectures", _architectures),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnlab analyze",
        allow_abbrev=False,
        description="Show what a network costs and what its units see of the image, layer by layer, without computing "
        "anything: parameters, multiply-adds, what training keeps, receptive fields.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL|RUN",
        nargs="?",
        help="a network's name (cnnlab models), package.Class of your own, unet, or a run",
    )
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help="totals of several, side by side")
    for name, (title, _) in _TABLES.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"compare {title}")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS", help="the images' height, and width if another"
    )
    parser.add_argument(
        "--initialisation", action="store_true", help="how a MODEL's layers begin: weights, signals, gradients"
    )
    parser.add_argument("--channels", type=int, help="of the images (3; 1 for the networks made for digits)")
    parser.add_argument("--classes", type=int, help="of the classifier (1000; 10 of cnnlab's own; 21 of segmentation)")
    parser.add_argument("--encoder", help="of unet and deeplabv3plus: a timm network")
    parser.add_argument("--depth", type=int, help="show so many levels of names, and add up what is below")
    parser.add_argument("--batch", type=int, help="images a training step (32)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of training (32-true)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="of training (adamw)")
    parser.add_argument("--picture", metavar="FILE", help="where to draw it (MODEL-layers.png; none for nowhere)")
    add_format_options(parser)
    return parser
