"""cnnlab infer: predict with an exported file. Nothing here needs torch."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnlab.deploy.certificate import verify
from cnnlab.deploy.runtime import PROVIDERS, ClassPrediction, MaskPrediction, OnnxPredictor
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, LazyImage, as_png, collect_images, mask_as_png, overlay_mask
from cnnlab.predictions import CLASSES, MASKS, class_row, mask_row
from cnnlab.writing import write_atomically, written_row_by_row


def infer(command: str, arguments: list[str]) -> None:
    """Predict images with an exported file, into a table; masks beside it for segmentation.

    Raises:
        InputError: If there is something to mend; also if some images could not be read, after all others were
            predicted.
    """
    asked = _parser().parse_args(arguments)
    model, out = Path(asked.model), Path(asked.out)
    if asked.verify:
        verify(model)
    if out.exists():
        raise InputError(f"--out {out} exists already, and is not overwritten: choose another, or remove it")
    predictor = OnnxPredictor(model, asked.providers, asked.threads)
    paths = collect_images(asked.paths)
    broken: list[str] = []
    with written_row_by_row(out) as file, _progress(len(paths)) as advance:
        writer = csv.writer(file, lineterminator="\n")
        segments = predictor.about.task == "segmentation"
        names = predictor.about.class_names
        writer.writerow([*(MASKS if segments else CLASSES), *names])

        def on_error(path: str, error: ImageError) -> None:
            broken.append(str(error))
            advance()

        common = os.path.commonpath([path.absolute().parent for path in paths])
        places = enumerate(paths)
        for found in predictor.predict(paths, asked.batch_size, on_error):
            # Those that cannot be read keep their places.
            index = next(place for place, path in places if str(path) == found.path)
            if isinstance(found, ClassPrediction):
                probabilities = found.probabilities.tolist()
                writer.writerow(class_row(index, found.path, "", found.labels, found.names, probabilities))
            else:
                mask = _write_mask(found, common, out, len(names), asked.overlays)
                writer.writerow(mask_row(index, found.path, mask.relative_to(out.parent), found.classes, len(names)))
            advance()
    print(f"{len(paths) - len(broken):,} images: {out}")
    if broken:
        lines = "\n".join(f"  {line}" for line in broken)
        raise InputError(f"{len(broken):,} of {len(paths):,} images could not be read, and are not in {out}:\n{lines}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnlab infer",
        allow_abbrev=False,
        description="Predict images with a file of cnnlab export or cnnlab quantize; torch is not needed for it.",
    )
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", default="predictions.csv", metavar="FILE", help="the table (predictions.csv)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once (32)")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help=f"of {', '.join(PROVIDERS)}: cuda or cpu")
    parser.add_argument("--threads", type=int, help="how many the CPU uses (all)")
    parser.add_argument("--verify", action="store_true", help="refuse a file that its certificate was not made for")
    parser.add_argument("--overlays", action="store_true", help="draw masks over the images, too")
    return parser


def _write_mask(found: MaskPrediction, common: str, out: Path, count: int, overlays: bool) -> Path:
    """masks/NAME.png beside the table; NAME is the image's path from the folder on that all have in common."""
    name = Path(found.path).absolute().relative_to(common)
    mask = out.parent / "masks" / f"{name}.png"
    write_atomically(mask, mask_as_png(found.classes, count))
    if overlays:
        from PIL import Image

        drawn = overlay_mask(LazyImage(found.path).read(), found.classes, count)
        write_atomically(out.parent / "overlays" / f"{name}.png", as_png(Image.fromarray(drawn)))
    return mask


@contextmanager
def _progress(count: int) -> Iterator[Any]:
    """A bar, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:  # What predicts needs no more than NumPy, Pillow and ONNX Runtime.
        yield lambda: None
        return

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("images", total=count)
        yield lambda: progress.advance(bar)
