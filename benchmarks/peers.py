"""Whole epochs from image files: cnnlab beside timm's training script and fastai.

All train the same timm network with AdamW on the same JPEG files, with a random crop and a flip, and validate after
each epoch. What an epoch takes is the difference of two trainings of different length, divided by their difference in
epochs: so the start does not count, and nobody's own clock is trusted. The trainings take turns.

    python benchmarks/peers.py [--network resnet18] [--size 128] [--batch 32] [--train 960] [--val 96] [--epochs 3]
        [--workers 2] [--rounds 3] [--bf16] [--timm-train pytorch-image-models/train.py] [--fastai-python PYTHON]

timm's package does not hold its training script: clone its repository, and name the script. fastai may have a Python of
its own. A peer that is not there is named, and left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4
FASTAI = """
import sys
import torch
from fastai.vision.all import (
    CrossEntropyLossFlat, DataBlock, CategoryBlock, Flip, GrandparentSplitter, ImageBlock, Learner, Normalize,
    RandomResizedCrop, OptimWrapper, accuracy, get_image_files, imagenet_stats, parent_label,
)
from fastai.callback.fp16 import MixedPrecision, AMPMode
import timm
root, network, size, batch, workers, epochs, bf16 = sys.argv[1:]
block = DataBlock(
    (ImageBlock, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter("train", "val"),
    get_y=parent_label, item_tfms=RandomResizedCrop(int(size), min_scale=0.8),
    batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)],
)
data = block.dataloaders(root, bs=int(batch), num_workers=int(workers))
learner = Learner(
    data, timm.create_model(network, num_classes=len(data.vocab)), CrossEntropyLossFlat(), metrics=accuracy,
    opt_func=lambda parameters, **rates: OptimWrapper(parameters, torch.optim.AdamW),
    cbs=[MixedPrecision(amp_mode=AMPMode.BF16)] if bf16 == "1" else [],
)
with learner.no_bar(), learner.no_logging():
    learner.fit(int(epochs), 1e-4)
"""


def make(root: Path, train: int, val: int) -> None:
    """JPEG files of 400 x 533 pixels, with the detail of photographs, in folders of splits and classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            folder = root / split / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(draw.integers(0, 256, (50, 67, 3), dtype=np.uint8))
            small.resize((533, 400), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)


def commands(asked: argparse.Namespace, root: Path, out: Path, epochs: int) -> dict[str, list[str]]:
    """The command line of each peer that is there."""
    size, batch, workers = str(asked.size), str(asked.batch), str(asked.workers)
    found = {
        "cnnlab": [
            *(sys.executable, "-m", "cnnlab", "fit", "--config", "image_folder", "--data.root", str(root)),
            *("--model.network", asked.network, "--model.weights", "null", "--model.layer_decay", "null"),
            *("--data.size", size, "--data.batch_size", batch, "--data.num_workers", workers),
            *("--data.augment", "light", "--data.augment_args", "{}", "--trainer.max_epochs", str(epochs)),
            *("--trainer.precision", "bf16-mixed" if asked.bf16 else "32-true", "--run", str(out / "cnnlab")),
        ]
    }
    if asked.timm_train is not None:
        found["timm"] = [
            *(sys.executable, str(asked.timm_train), "--data-dir", str(root), "--model", asked.network),
            *("--num-classes", str(CLASSES), "--img-size", size, "--batch-size", batch, "--workers", workers),
            *("--epochs", str(epochs), "--warmup-epochs", "0", "--cooldown-epochs", "0", "--opt", "adamw"),
            *("--color-jitter", "0", "--scale", "0.8", "1", "--output", str(out / "timm"), "--val-split", "val"),
            *(("--amp", "--amp-dtype", "bfloat16") if asked.bf16 else ()),
            *(() if has_gpu() else ("--device", "cpu")),
        ]
    if has_fastai(asked.fastai_python):
        precision = "1" if asked.bf16 else "0"
        found["fastai"] = [
            *(asked.fastai_python, "-c", FASTAI, str(root), asked.network, size, batch, workers, str(epochs), precision)
        ]
    return found


def has_gpu() -> bool:
    """Whether there is a GPU."""
    import torch

    return torch.cuda.is_available()


def has_fastai(python: str) -> bool:
    """Whether fastai can be imported."""
    return subprocess.run([python, "-c", "import fastai.vision.all"], capture_output=True, check=False).returncode == 0


def seconds(command: list[str], folder: Path) -> float:
    """How long a training takes; what it has to say is shown if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} ...\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def main() -> None:
    """Take turns; print the medians and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    for name, default in (("size", 128), ("batch", 32), ("train", 960), ("val", 96), ("epochs", 3), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--timm-train", type=Path)
    parser.add_argument("--fastai-python", default=sys.executable)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "images", asked.train, asked.val)
        peers = list(commands(asked, folder / "images", folder, 1))
        for missing in {"timm", "fastai"} - set(peers):
            print(f"{missing} is not there, and left out (see --help)")
        epoch: dict[str, list[float]] = {peer: [] for peer in peers}
        for turn in range(asked.rounds):
            for peer in peers:
                times = []
                for epochs in (1, 1 + asked.epochs):
                    out = folder / f"{peer}-{turn}-{epochs}"
                    out.mkdir()
                    times.append(seconds(commands(asked, folder / "images", out, epochs)[peer], folder))
                epoch[peer].append((times[1] - times[0]) / asked.epochs)
    medians = {peer: statistics.median(found) for peer, found in epoch.items()}
    print(f"{'':10}{'s an epoch':>12}{'images/s':>10}{'to cnnlab':>11}")
    for peer, median in medians.items():
        images = (asked.train + asked.val) / median
        print(f"{peer:10}{median:12.2f}{images:10.1f}{median / medians['cnnlab']:11.2f}")


if __name__ == "__main__":
    main()
