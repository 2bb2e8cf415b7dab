"""cnnlab explain."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cnnlab import tree
from cnnlab.batch import Batch
from cnnlab.callbacks.gradcam import draw_explanation, shrunk
from cnnlab.commands.loading import load_run
from cnnlab.commands.messages import summary
from cnnlab.commands.options import CommandParser
from cnnlab.data import VisionDataModule
from cnnlab.errors import InputError
from cnnlab.figures import contact_sheet, scatter
from cnnlab.imaging import collect_images
from cnnlab.interpret import METHODS, default_layer, embeddings, feature_maps, filters, get_layer, project
from cnnlab.pictures import numpy_targets
from cnnlab.report import picture_page
from cnnlab.results import source_of
from cnnlab.run import Run
from cnnlab.tasks import VisionTask
from cnnlab.writing import write_atomically

_MOST = 64
"""The maximum number of filters or channels to draw."""
_SWITCHED = {"filters.png": "filters", "tsne.png": "tsne", "explain.html": "html"}
"""Files that an option switches on."""


def explain(command: str, arguments: list[str]) -> None:
    """Draw the regions that matter to a run's best network.

    Raises:
        InputError: If the run cannot be loaded or explained, an image or a layer does not exist, --number is below 1,
            or --tsne is given for images without one class each.
    """
    asked = _parser().parse_own(arguments)
    if asked.number < 1:
        raise InputError(f"--number is {asked.number}, expected 1 or more")
    task, data, run, _ = load_run(asked.run)
    if not isinstance(task, VisionTask) or task.kind is None or not isinstance(data, VisionDataModule):
        raise InputError(
            f"{type(task).__name__} on {type(data).__name__} cannot be explained: both must be cnnlab's, and the task "
            "must have a kind of answers"
        )
    if asked.tsne or not asked.images:
        data.prepare_data()
        data.setup("validate")
    images, names, truths = _images(asked.images, asked.number, data)
    images = [shrunk(image[None], task)[0] for image in images]
    source, name = source_of(asked.images) if asked.images else ("", "")
    results = run.results_of(source, name) if source else run
    folder = Path(asked.out) if asked.out is not None else results.explanations
    folder.mkdir(parents=True, exist_ok=True)
    if source and asked.out is None:
        write_atomically(results.folder / "source.txt", source.encode())
    made = ["gradcam.png", *(f"features-{layer.replace('/', '_')}.png" for layer in asked.features or [])]
    made += [name for name, wanted in _SWITCHED.items() if getattr(asked, wanted)]
    with Run(folder).replacing("explain", list(map(glob.escape, made))):
        drawn = _draw(asked, task, data, images, names, truths, folder, run.folder.name)
    summary(f"run {run.folder}", drawn)


def _draw(
    asked: argparse.Namespace,
    task: VisionTask,
    data: VisionDataModule,
    images: list[Tensor],
    names: list[str],
    truths: list[Any],
    folder: Path,
    title: str,
) -> dict[str, Path]:
    """Draw all that was asked for, and return the files by their headings."""
    drawn = {"Grad-CAM": _cams(asked, task, images, names, truths, folder)}
    if asked.filters:
        drawn["filters"] = _filters(task, asked.layer, folder)
    for layer in asked.features or []:
        drawn[f"features of {layer}"] = _features(task, images[0], layer, folder)
    if asked.tsne:
        drawn["t-SNE"] = _embedding(task, data, folder)
    if asked.html:
        page = folder / "explain.html"
        picture_page(f"What {title} looks at", drawn, page)
        drawn["page"] = page
    return drawn


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab explain",
        description="Draw what the best network of a run looks at, into RUN/explain.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image files, or folders of them; else validation's")
    parser.add_argument("--number", type=int, default=8, help="how many validation images (8)")
    parser.add_argument("--method", default="gradcam", choices=list(METHODS))
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME", help="the class or value to look for; else the predicted one"
    )
    parser.add_argument("--layer", help="whose activations; else the last one before the pooling")
    parser.add_argument("--filters", action="store_true", help="the kernels of the first convolution (or of --layer)")
    parser.add_argument("--features", nargs="+", metavar="LAYER", help="the first image's activations of these layers")
    parser.add_argument("--tsne", action="store_true", help="2,000 validation images by their features (t-SNE)")
    parser.add_argument("--html", action="store_true", help="one page with all of it")
    parser.add_argument("--out", metavar="DIR", help="instead of RUN/explain, or RUN/results/NAME/explain for IMAGES")
    return parser


def _images(asked: list[str], number: int, data: VisionDataModule) -> tuple[list[Tensor], list[str], list[Any]]:
    """Return images (C, H, W), their names, and their classes if known."""
    if not asked:
        places = np.linspace(0, len(data.val_set) - 1, min(number, len(data.val_set))).round().astype(int).tolist()
        batches = [Batch.of(data.val_set.__getitems__([place])) for place in places]
        truths = [numpy_targets(batch.targets)[0] for batch in batches]
        return [batch.images[0] for batch in batches], [f"validation {place}" for place in places], truths
    paths = collect_images(asked)
    for path in paths:
        if not tree.is_file(path):
            raise InputError(f"there is no image {path}")
    return [data.read_image(str(path)) for path in paths], [path.name for path in paths], [None] * len(paths)


def _cams(
    asked: argparse.Namespace, task: VisionTask, images: list[Tensor], names: list[str], truths: list[Any], folder: Path
) -> Path:
    output = task.output
    wanted = output.to_explain([None])[0] if asked.wanted is None else output.index_of(asked.wanted)
    layer = asked.layer or default_layer(task.network, task.standardize(images[0][None]))
    get_layer(task.network, layer)
    method = METHODS[asked.method](task, f"network.{layer}", task.decode.scores)
    pictures, titles = [], []
    for image, name, truth in zip(images, names, truths, strict=True):
        pixels, heat, label, certainty = draw_explanation(method, task, image[None], wanted)
        known = None if truth is None else output.known(truth)
        titles += [
            name if known is None or output.dense else f"{name}\n{output.label(known)}",
            f"{label}\n{certainty}",
        ]
        pictures += [np.moveaxis(pixels, -1, 0), np.moveaxis(heat, -1, 0)]
    path = folder / "gradcam.png"
    contact_sheet(
        pictures, titles, path, f"{type(method).__name__}, layer {layer}", columns=4 if len(images) > 1 else 2
    )
    return path


def _filters(task: VisionTask, layer: str | None, folder: Path) -> Path:
    kernels = filters(task.network, layer)[:_MOST]
    # If a kernel has other than 1 or 3 channels, their mean is drawn.
    shown = kernels if kernels.shape[1] in (1, 3) else kernels.mean(dim=1, keepdim=True)
    path = folder / "filters.png"
    contact_sheet(
        list(shown.numpy()), [str(i) for i in range(len(shown))], path, f"Filters of {layer or 'the first layer'}"
    )
    return path


def _features(task: VisionTask, image: Tensor, layer: str, folder: Path) -> Path:
    get_layer(task.network, layer)
    maps = feature_maps(task, image[None], [f"network.{layer}"])[f"network.{layer}"][0, :_MOST]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    stretched = (maps - low) / (high - low).clamp(min=1e-12)
    path = folder / f"features-{layer.replace('/', '_')}.png"
    titles = [str(i) for i in range(len(maps))]
    contact_sheet(list(stretched[:, None].numpy()), titles, path, f"{layer}, {len(maps)} channels of the first image")
    return path


def _embedding(task: VisionTask, data: VisionDataModule, folder: Path) -> Path:
    data.num_workers = 0
    groups: list[int] = []
    _groups(task, Batch.of(data.val_set.__getitems__([0])))

    def batches() -> Iterator[Tensor]:
        for batch in map(Batch.of, data.val_dataloader()):
            groups.extend(_groups(task, batch))
            yield batch.images

    found = embeddings(task, batches())
    path = folder / "tsne.png"
    heading = f"{len(found)} validation images by their features, t-SNE"
    scatter(project(found), np.array(groups[: len(found)]), task.output.names, path, heading)
    return path


def _groups(task: VisionTask, batch: Batch) -> list[int]:
    groups = [task.output.group(target) for target in numpy_targets(batch.targets)]
    if None in groups:
        raise InputError("--tsne is for images of one class each")
    return [group for group in groups if group is not None]
