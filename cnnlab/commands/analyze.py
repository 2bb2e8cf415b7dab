"""cnnlab analyze."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cnnlab.analysis.catalog import catalog, efficientnet_family
from cnnlab.analysis.cost import LayerCost, NetworkCost, ReceptiveField, network_cost
from cnnlab.analysis.layers import convolutions, initialization, normalizations
from cnnlab.analysis.memory import OPTIMIZERS, PRECISIONS, TrainingMemory, training_memory
from cnnlab.analysis.meta import build_on_meta
from cnnlab.commands.options import CommandParser
from cnnlab.commands.tables import Record, add_format_options, show
from cnnlab.errors import InputError
from cnnlab.migration import modern_flags
from cnnlab.models.factory import NETWORKS, create_network
from cnnlab.models.registry import default_image_shape
from cnnlab.models.segmentation import SEGMENTERS, create_segmenter
from cnnlab.writing import to_json


def analyze(command: str, arguments: list[str]) -> None:
    """Show the cost and receptive field of a network's layers, or compare networks or kinds of layers.

    Raises:
        InputError: If options do not fit each other, a value is out of range, or the network cannot be analyzed.
    """
    options = _parser().parse_own(modern_flags(arguments))
    tables = [name for name in _TABLES if getattr(options, name)]
    if len(tables) + bool(options.compare) + (options.model is not None) != 1:
        raise InputError(f"give one of: a model, --compare A B, {', '.join(f'--{name}' for name in _TABLES)}")
    _check(options, f"--{tables[0]}" if tables else "--compare" if options.compare else "a model")
    if tables:
        title, records = _TABLES[tables[0]]
        show(title, records(), options)
    elif options.compare:
        show(f"{options.batch} images a training step", [_compare(name, options) for name in options.compare], options)
    elif options.initialization:
        _show_initialization(options)
    else:
        _show_network(options)


def _check(options: argparse.Namespace, subject: str) -> None:
    """Refuse values out of range and options that do not apply to the subject; set defaults."""
    defaults = {"batch": 32, "precision": "32-true", "optimizer": "adamw"}
    inapplicable = {
        "--compare": ["depth", "picture", "initialization"],
        "a model": ["depth", "picture", *defaults] if options.initialization else [],
    }.get(subject, ["size", "channels", "classes", "encoder", "depth", "picture", "initialization", *defaults])
    if given := [f"--{name}" for name in inapplicable if getattr(options, name) not in (None, False)]:
        raise InputError(f"{', '.join(given)} does not apply to {subject}: leave it out")
    for name in ("channels", "classes", "depth", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected 1 or more")
    if options.size is not None and (not 1 <= min(options.size) <= max(options.size) <= 65536 or len(options.size) > 2):
        given_size = " ".join(map(str, options.size))
        raise InputError(f"--size is {given_size}, expected a height, and perhaps a width, from 1 to 65536 pixels")
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _show_initialization(options: argparse.Namespace) -> None:
    """Show the initialization of the network's layers, measured with random images."""
    subject = _subject(options.model, options, with_values=True)
    images = torch.randn(4, *subject.image, generator=torch.Generator().manual_seed(0))
    records: list[Record] = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "scheme": layer.scheme,
            **{f"spread_of_{name}": getattr(layer, name) for name in ("weights", "activations", "gradients")},
        }
        for layer in initialization(subject.network, images)
    ]
    show(_title(subject), records, options)


def _show_network(options: argparse.Namespace) -> None:
    subject = _subject(options.model, options)
    cost = network_cost(subject.network, subject.image)
    layers = cost.layers if options.depth is None else cost.fold(options.depth)
    memory = training_memory(subject.network, subject.image, options.batch, options.precision, options.optimizer)
    picture = options.picture
    picture_line = [] if picture in (None, "none") else [f"picture  {_draw(cost, subject, Path(picture))}"]
    if options.json:
        report = {
            "network": subject.name,
            "image": subject.image,
            **{name: getattr(cost, name) for name in ("parameters", "trainable", "multiply_adds", "activation_bytes")},
            "training": {"batch": options.batch, "precision": options.precision, **memory._asdict()},
            "layers": [_row(layer) | _receptive_field(layer.receptive_field) for layer in layers],
        }
        print(to_json(report))
        return
    records = [_row(layer) for layer in layers]
    show(_title(subject), records, options, [*_totals(cost), _memory_line(memory, options), *picture_line])


def _row(layer: LayerCost) -> Record:
    fields = layer.receptive_field.fields
    return {
        "layer": layer.name or "(itself)",
        "kind": layer.kind,
        "output": "x".join(map(str, layer.output)),
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "activations_MB": layer.activation_bytes / 1e6,
        "sees": str(layer.receptive_field),
        "jump": None if fields is None else fields[0].jump,
        "center": None if fields is None else fields[0].center,
    }


def _receptive_field(receptive_field: ReceptiveField) -> Record:
    """The receptive field for programs, along rows and columns."""
    fields = receptive_field.fields or ()
    return {
        "pixels": [field.size for field in fields],
        "jump": [field.jump for field in fields],
        "center": [field.center for field in fields],
        "whole_image": receptive_field.whole_image,
        "unknown": receptive_field.unknown,
    }


def _totals(cost: NetworkCost) -> list[str]:
    last = cost.last_map
    sees = f"; the last feature map ({last.name}) sees {last.receptive_field} pixels" if last is not None else ""
    unknown = dict.fromkeys(layer.receptive_field.unknown for layer in cost.layers if layer.receptive_field.unknown)
    return [
        "",
        f"parameters     {cost.parameters:,}, {cost.trainable:,} of them trainable; {4e-6 * cost.parameters:,.1f} MB",
        f"multiply-adds  {cost.multiply_adds:,} an image",
        f"activations    {cost.activation_bytes / 1e6:,.1f} MB an image, kept for the backward pass in float32",
        f"sees           windows of pixels; + the whole image besides; all: nothing but the whole image{sees}",
        *(f"?              not known after {operation}" for operation in unknown),
    ]


def _memory_line(memory: TrainingMemory, options: argparse.Namespace) -> str:
    parts = {"weights": memory.parameters, "gradients": memory.gradients, options.optimizer: memory.optimizer}
    details = ", ".join(
        f"{name} {size / 1e6:,.0f}" for name, size in {**parts, "activations": memory.activations}.items()
    )
    return f"training       {memory.peak / 1e6:,.0f} MB for {options.batch} images, {options.precision} ({details})"


def _compare(name: str, options: argparse.Namespace) -> Record:
    subject = _subject(name, options)
    cost = network_cost(subject.network, subject.image)
    memory = training_memory(subject.network, subject.image, options.batch, options.precision, options.optimizer)
    return {
        "network": name,
        "image": "x".join(map(str, subject.image)),
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "activations_MB": cost.activation_bytes / 1e6,
        "training_MB": memory.peak / 1e6,
        "sees": "" if cost.last_map is None else str(cost.last_map.receptive_field),
    }


class _Subject(NamedTuple):
    """The network to analyze, and the shape of its images."""

    name: str
    network: nn.Module
    image: tuple[int, int, int]


def _subject(name: str, options: argparse.Namespace, with_values: bool = False) -> _Subject:
    """Load a run's network, or build one by its name."""
    if name and Path(name).exists() and _is_run(Path(name)):
        return _load_run_network(name, options)
    image = default_image_shape(name, options.channels)
    classes = (
        (21 if name in SEGMENTERS else 10 if name in NETWORKS else 1000) if options.classes is None else options.classes
    )
    if options.encoder is not None and name not in SEGMENTERS:
        raise InputError(f"{name} takes no --encoder: {', '.join(SEGMENTERS)} do")

    def build() -> nn.Module:
        if name in SEGMENTERS:
            return create_segmenter(name, classes, image[0], encoder=options.encoder)
        network = create_network(name, classes, image[0])
        if not isinstance(network, nn.Module):
            raise InputError(f"{name} returns {type(network).__name__}, expected a torch.nn.Module")
        return network

    size = image[1:] if options.size is None else (options.size[0], options.size[-1])
    return _Subject(name, build() if with_values else build_on_meta(build), (image[0], *size))


def _is_run(place: Path) -> bool:
    """Whether this is a run or a checkpoint, and not a folder with the name of a network."""
    from cnnlab.run import Run  # Its import takes a second, which a network's name does not need.

    return place.is_file() or Run(place).config.is_file() or Run(place).checkpoints.is_dir()


def _load_run_network(name: str, options: argparse.Namespace) -> _Subject:
    from cnnlab.commands.loading import load_cnnlab_run

    if given := [
        f"--{option}" for option in ("channels", "classes", "encoder") if getattr(options, option) is not None
    ]:
        raise InputError(f"{', '.join(given)}: {name} is a run, which has its own; leave it out")
    task, data, _, _ = load_cnnlab_run(name, [])
    size = (options.size[0], options.size[-1]) if options.size is not None else data.eval_transform().size
    if size is None:
        raise InputError(f"{name} takes images of any size: give one with --size")
    return _Subject(name, task.network, (data.channels, *size))


def _draw(cost: NetworkCost, subject: _Subject, path: Path) -> Path:
    from cnnlab.figures import layers_chart

    if path.suffix != ".png":
        raise InputError(f"--picture {path}: expected a file that ends with .png, or none")
    if path.exists():
        raise InputError(f"--picture {path} exists already, and is not overwritten: choose another, or remove it")
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


def _normalizations() -> list[Record]:
    return [
        {
            "norm": kind.name,
            "mean_over": kind.axes,
            "means": kind.statistics,
            "parameters": kind.parameters,
            "depends_on_batch": kind.depends_on_batch,
            "same_in_evaluation": kind.same_in_evaluation,
        }
        for kind in normalizations()
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
        for scaled in efficientnet_family()
    ]


def _architectures() -> list[Record]:
    return [
        {
            "architecture": one.name,
            "year": str(one.year),
            "network": one.network,
            "parameters": one.parameters,
            "multiply_adds": one.multiply_adds,
            "top1": one.top1,
            "idea": one.idea,
            "top1_from": one.source,
        }
        for one in catalog().values()
    ]


_TABLES: dict[str, tuple[str, Callable[[], list[Record]]]] = {
    "convolutions": ("convolutions from 64 to 128 channels of 56x56, kernel 3", _convolutions),
    "normalizations": ("normalization of 8 images with 32 channels of 14x14", _normalizations),
    "scaling": ("EfficientNet: 1.2^phi, 1.1^phi and 1.15^phi, and what was released", _scaling),
    "architectures": ("architectures", _architectures),
}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab analyze",
        description="Show the cost and the receptive field of a network, layer by layer and without computation: "
        "parameters, multiply-adds, activations that training keeps, receptive fields.",
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
        "--initialization",
        action="store_true",
        help="how a MODEL's layers are initialized: weights, signals, gradients",
    )
    parser.add_argument("--channels", type=int, help="of the images (3; 1 for networks for digits)")
    parser.add_argument("--classes", type=int, help="of the classifier (1000; 10 of cnnlab's own; 21 of segmentation)")
    parser.add_argument("--encoder", help="of unet and deeplabv3plus: a timm network")
    parser.add_argument("--depth", type=int, help="levels of names to show; layers below are summed")
    parser.add_argument("--batch", type=int, help="images per training step (32)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of training (32-true)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="of training (adamw)")
    parser.add_argument("--picture", metavar="FILE", help="draw a chart of the layers into this file (.png)")
    add_format_options(parser)
    return parser
