"""Images a second on one core, from a JPEG file to a training tensor: cnnlab against the steps one after the other.

The steps are torchvision's on PIL images: crop, flip, rotation, jitter, affine, ToTensor, Normalize, erasing. timm's
pipeline does fewer (crop, flip, jitter, erasing). All take turns, several times; ratios are of medians. Faster
must not mean weaker: the images' statistics stand beside the figures.

    python benchmarks/augmentation.py [--folder PHOTOS]

All images are 400x533: those of a folder are enlarged to that, without one they are generated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import v2

from cnnlab.data.annotations import FixedTarget
from cnnlab.data.augmentation import InputSpec
from cnnlab.data.presets import create_augmentation
from cnnlab.imaging import LazyImage, list_images
from cnnlab.models import Standardize
from cnnlab.random import uniform

SIZE = 224
BATCH = 32
MEAN = [0.5, 0.5, 0.5]


def photographs(source: Path | None, folder: Path, count: int) -> list[Path]:
    """JPEG files of 400x533 (width x height)."""
    generator = np.random.default_rng(0)
    originals = list_images(source) if source is not None else []
    paths = []
    for i in range(count):
        if originals:
            image = Image.open(originals[i * len(originals) // count]).convert("RGB")
        else:
            image = Image.fromarray(generator.integers(0, 255, (40, 30, 3), dtype=np.uint8))
        path = folder / f"{i:03}.jpg"
        image.resize((400, 533), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def ours(preset: str) -> Callable[[list[Path]], Tensor]:
    """cnnlab: what a batch of the loader is, standardized as the task does."""
    augmentation = create_augmentation(preset)
    label, spec = FixedTarget(torch.tensor(0)), InputSpec((SIZE, SIZE), 3, torch.tensor(MEAN) * 255, 0.875, "bilinear")
    standardize = Standardize(MEAN, MEAN)
    epoch = 0

    def run(paths: list[Path]) -> Tensor:
        nonlocal epoch
        epoch += 1
        count = len(paths)
        numbers = uniform(0, np.full(count, epoch), np.arange(count), augmentation.draws).tolist()
        images = [augmentation(LazyImage(path), label, spec, row)[0] for path, row in zip(paths, numbers, strict=True)]
        standardized: Tensor = standardize(torch.stack(images))
        return standardized

    return run


def sequential(*steps: v2.Transform) -> Callable[[list[Path]], Tensor]:
    """torchvision: one step after the other, on PIL images, then a normalized tensor."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, MEAN)]
    before = [step for step in steps if not isinstance(step, v2.RandomErasing)]
    after = [step for step in steps if isinstance(step, v2.RandomErasing)]
    pipeline = v2.Compose([*before, *to_tensor, *after])
    return lambda paths: torch.stack([pipeline(Image.open(path).convert("RGB")) for path in paths])


def timms() -> Callable[[list[Path]], Tensor]:
    """Timm's training transform, with the standard preset's amounts where it has them."""
    pipeline = create_transform(
        SIZE, is_training=True, scale=(0.8, 1.0), color_jitter=(0.2, 0.2, 0.2, 0.1), auto_augment=None, re_prob=0.2,
        mean=tuple(MEAN), std=tuple(MEAN), interpolation="bilinear",
    )  # fmt: skip
    return lambda paths: torch.stack([pipeline(Image.open(path).convert("RGB")) for path in paths])


def describe(images: Tensor) -> str:
    """Brightness, contrast and colorfulness, and how much images of one batch of draws differ from the next."""
    levels = images * 0.5 + 0.5
    colorfulness = (levels.amax(dim=1) - levels.amin(dim=1)).mean()
    detail = (levels[..., 1:] - levels[..., :-1]).abs().mean()
    gray = ((levels - 0.5).abs().amax(dim=1) < 0.003).float().mean()
    return (
        f"mean {levels.mean():.3f}  std {levels.std():.3f}  colorfulness {colorfulness:.3f}  detail {detail:.4f}  "
        f"filled {gray:.3f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="photographs to enlarge; generated ones if absent")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    crop = v2.RandomResizedCrop(SIZE, scale=(0.8, 1.0))
    flip = v2.RandomHorizontalFlip()
    gray = [127, 127, 127]
    contestants = {
        "cnnlab standard": ours("standard"),
        "torchvision standard": sequential(
            crop,
            flip,
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR, fill=gray),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
            v2.RandomAffine(0, translate=(0.1, 0.1), fill=gray),
            v2.RandomErasing(0.2),
        ),
        "timm (no rotation, no shift)": timms(),
        "cnnlab light": ours("light"),
        "torchvision light": sequential(crop, flip),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(options.folder, Path(folder), options.images)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        results = {}
        for _ in range(options.rounds):
            for name, run in contestants.items():
                started = time.perf_counter()
                batches = [run(paths[first : first + BATCH]) for first in range(0, len(paths), BATCH)]
                seconds[name].append((time.perf_counter() - started) / len(paths))
                results[name] = torch.cat(batches)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:30} {1 / value:6.0f} images/s   {describe(results[name])}")
    print(f"standard: {median['torchvision standard'] / median['cnnlab standard']:.2f} times torchvision")
    print(f"standard: {median['timm (no rotation, no shift)'] / median['cnnlab standard']:.2f} times timm")
    print(f"light:    {median['torchvision light'] / median['cnnlab light']:.2f} times torchvision")


if __name__ == "__main__":
    main()
