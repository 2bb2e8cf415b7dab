"""cnnlab recommend."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from cnnlab.analysis.recommendation import DEVICES, TASKS, Requirements, build_recommended, recommend
from cnnlab.commands.options import CommandParser
from cnnlab.commands.tables import add_format_options, show
from cnnlab.data.listing import list_folder
from cnnlab.data.mask_files import list_pairs
from cnnlab.data.objects import list_objects
from cnnlab.data.samples import Sample
from cnnlab.deploy.benchmark import timed
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, LazyImage
from cnnlab.writing import to_json

_MAX_SIZES = 200
"""The number of images whose sizes are read."""


def recommend_command(command: str, arguments: list[str]) -> None:
    """Recommend a network and a recipe, and print the command to type.

    Raises:
        InputError: If the number of images is not known, the data cannot be read, or a value is out of range.
    """
    options = _parser().parse_own(arguments)
    if options.data is not None:
        count, side = _count_images(Path(options.data), options.task)
        options.images = count if options.images is None else options.images
        options.size = side if options.size is None else options.size
    if options.images is None:
        raise InputError("give the number of images (--images N), or their folder (--data DIR)")
    requirements = Requirements(
        options.task,
        options.images,
        options.size,
        options.latency,
        options.memory,
        options.device,
        options.accuracy,
        options.data or "photos",
    )
    available = options.device == "cpu" or (options.device == "gpu" and torch.cuda.is_available())
    recommendation = recommend(
        requirements, (lambda name, size: _measure_latency(name, size, options)) if available else None
    )
    if options.json:
        print(to_json(recommendation._asdict()))
        return
    if options.csv:
        record = {
            name: "; ".join(value) if isinstance(value, tuple) else value
            for name, value in recommendation._asdict().items()
        }
        show("", [record], options)
        return
    size = f" of {options.size} pixels" if options.size else ""
    print(f"{options.task}, {options.images:,} images{size}: {recommendation.case}")
    for reason in recommendation.reasons:
        print(f"  - {reason}")
    if recommendation.alternatives:
        print(f"  - also possible: {', '.join(recommendation.alternatives)}")
    if recommendation.multiply_adds is not None:
        cost = f"{recommendation.multiply_adds / 1e9:.2f} G multiply-adds an image"
        print(f"  - {recommendation.network} takes {cost} (cnnlab analyze)")
    print(f"network  {recommendation.network}")
    print(f"command  {recommendation.command}")


def _count_images(root: Path, task: str) -> tuple[int, int | None]:
    """Count the training images, and take the median of their shorter sides in pixels; the longer ones for objects."""
    finds = task in ("detection", "instances")
    samples: Sequence[Sample]
    if finds:
        samples = list_objects(root, on_error="skip").samples
    else:
        samples = (list_folder(root) if task == "classification" else list_pairs(root)).samples
    training = [sample for sample in samples if sample.split in ("", "train")]
    if not training:
        raise InputError(f"{root} has no images for training: --data names the folder that --data.root would")
    sampled = training[:: max(1, len(training) // _MAX_SIZES)]
    sides = []
    for sample in sampled:
        with contextlib.suppress(ImageError):  # cnnlab data check lists the unreadable files.
            sides.append((max if finds else min)(LazyImage(sample.path).size))
    return len(training), int(median(sides)) if sides else None


def _measure_latency(name: str, size: int, options: argparse.Namespace) -> float:
    """Milliseconds for one image on this machine, in eager mode."""
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    network = build_recommended(name, options.task).eval().to(device).to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        synchronize = torch.cuda.synchronize if device.type == "cuda" else None
        return timed({name: lambda: network(image)}, 6, 3, synchronize)[name].median


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab recommend",
        description="Recommend a network and a recipe, with the reasons and the command to type.",
    )
    parser.add_argument("--task", default="classification", choices=TASKS, help="the task (classification)")
    parser.add_argument("--images", type=int, metavar="N", help="the number of training images")
    parser.add_argument("--data", metavar="DIR", help="their folder: counts them, and reads their sizes")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="the images' typical height or width")
    parser.add_argument("--latency", type=float, metavar="MS", help="the limit for one image; measured here")
    parser.add_argument("--memory", type=float, metavar="GB", help="the limit for a training step")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="the device that it will run on (cpu)")
    parser.add_argument("--accuracy", action="store_true", help="only accuracy counts")
    add_format_options(parser)
    return parser
