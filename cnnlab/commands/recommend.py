"""cnnlab recommend."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from statistics import median

import torch

from cnnlab.analysis.recommendation import DEVICES, TASKS, Need, recommend, recommended
from cnnlab.commands.tables import add_format_options, show
from cnnlab.data.listing import list_folder
from cnnlab.data.mask_listing import list_pairs
from cnnlab.deploy.timing import timed
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, LazyImage

_MEASURED = 200
"""How many images' sizes are read."""


def recommend_command(command: str, arguments: list[str]) -> None:
    """Say which network and recipe to begin with, and the command to type.

    Raises:
        InputError: If there is something to mend.
    """
    asked = _parser().parse_args(arguments)
    if asked.data is not None:
        count, side = _counted(Path(asked.data), asked.task)
        asked.images = count if asked.images is None else asked.images
        asked.size = side if asked.size is None else asked.size
    if asked.images is None:
        raise InputError("say how many images there are (--images N), or where they lie (--data DIR)")
    need = Need(
        asked.task,
        asked.images,
        asked.size,
        asked.latency,
        asked.memory,
        asked.device,
        asked.accuracy,
        asked.data or "photos",
    )
    here = asked.device == "cpu" or (asked.device == "gpu" and torch.cuda.is_available())
    found = recommend(need, (lambda name, size: _milliseconds(name, size, asked)) if here else None)
    if asked.json:
        print(json.dumps(found._asdict(), indent=2))
        return
    if asked.csv:
        joined = {
            name: "; ".join(value) if isinstance(value, tuple) else value for name, value in found._asdict().items()
        }
        show("", [joined], asked)
        return
    size = f" of {asked.size} pixels" if asked.size else ""
    print(f"{asked.task}, {asked.images:,} images{size}: {found.case}")
    for reason in found.reasons:
        print(f"  - {reason}")
    if found.alternatives:
        print(f"  - also possible: {', '.join(found.alternatives)}")
    if found.multiply_adds is not None:
        print(f"  - {found.network} takes {found.multiply_adds / 1e9:.2f} G multiply-adds an image (cnnlab analyze)")
    print(f"network  {found.network}")
    if found.command is not None:
        print(f"command  {found.command}")


def _counted(root: Path, task: str) -> tuple[int, int | None]:
    """How many images there are for training, and their median height or width, whichever is smaller."""
    if task in ("detection", "instances"):
        raise InputError(f"cnnlab cannot read data for {task} yet: give --images N instead of --data")
    samples = list_folder(root).samples if task == "classification" else list_pairs(root)[0]
    training = [sample for sample in samples if sample.split in ("", "train")]
    if not training:
        raise InputError(f"{root} has no images for training: --data names the folder that --data.root would")
    some = training[:: max(1, len(training) // _MEASURED)]
    sides = []
    for sample in some:
        with contextlib.suppress(ImageError):  # cnnlab data check names them.
            sides.append(min(LazyImage(sample.path).size))
    return len(training), int(median(sides)) if sides else None


def _milliseconds(name: str, size: int, asked: argparse.Namespace) -> float:
    """What one image takes here, in eager mode."""
    device = torch.device("cuda" if asked.device == "gpu" else "cpu")
    network = recommended(name, asked.task).eval().to(device).to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        synchronize = torch.cuda.synchronize if device.type == "cuda" else None
        return timed({name: lambda: network(image)}, 6, 3, synchronize)[name].median


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnlab recommend",
        allow_abbrev=False,
        description="Say which network and recipe to begin with, why, and the command to type.",
    )
    parser.add_argument("--task", default="classification", choices=TASKS, help="what is to be told (classification)")
    parser.add_argument("--images", type=int, metavar="N", help="how many there are for training")
    parser.add_argument("--data", metavar="DIR", help="where they lie: counts them, and reads their sizes")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="the images' typical height or width")
    parser.add_argument("--latency", type=float, metavar="MS", help="what an image may take; measured here")
    parser.add_argument("--memory", type=float, metavar="GB", help="what a training step may take")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="what it is to run on (cpu)")
    parser.add_argument("--accuracy", action="store_true", help="nothing else counts")
    add_format_options(parser)
    return parser
