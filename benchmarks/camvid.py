"""IoU on CamVid's test split (11 classes, 240x180 pixels) of a U-Net from scratch, and of one on pretrained features.

Both train through ``cnnlab fit``, and the table says for how long; scored are the masks that ``cnnlab predict``
writes. The weights are EfficientNet-Lite0's of ImageNet (see lite0.py). The settings are the best of short trials.

    python benchmarks/camvid.py --data camvid-small [--out camvid] [--networks scratch pretrained]

What is in --out already is not trained again; remove what was stopped half-way, so that its minutes are right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.lite0 import fetch_weights

CLASSES = [
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
]
IGNORED = 11
# About the inverse root of each class's share of the pixels.
WEIGHTS = [0.6, 0.5, 2.5, 0.5, 1.1, 0.8, 4.0, 2.2, 1.1, 3.0, 3.5]
SHARED = [
    *("--trainer.precision", "32-true"),
    *("--model.loss_args.class_weights", json.dumps(WEIGHTS)),
    *("--data.augment", "light", "--data.augment_args", '{"scale": [0.5, 1.0]}'),
]
RECIPES = {
    "scratch": [
        *("--config", "segmentation", "--model.network_args.base", "16", *SHARED),
        *("--model.lr", "2.0e-3", "--trainer.max_epochs", "50"),
    ],
    "pretrained": [
        *("--config", "segmentation_pretrained", "--model.network_args", '{"stride": 2, "decoder": 8}', *SHARED),
        *("--model.layer_decay", "null", "--model.lr", "3.0e-3"),
        # The encoder knows objects as large as ImageNet's, and these are small.
        *("--data.size", "[224, 288]"),
    ],
}
# Training's crops, 0.75 of the area in the mean, are enlarged to the size, and the encoder does better on whole images
# that are enlarged as much (Touvron et al. 2019, arXiv:1906.06423); the U-Net from scratch does not.
PREDICTION = {"pretrained": ["--data.size", "[256, 320]"]}


def scores(run: Path, data: Path, training: list[str], prediction: list[str]) -> dict[str, str]:
    """Train and predict, unless that is done; each class's IoU in the test split, the mean, the minutes of training."""
    minutes = run / "minutes.txt"
    if not minutes.is_file():
        started = time.monotonic()
        _cnnlab("fit", *training, "--run", str(run))
        minutes.write_text(f"{(time.monotonic() - started) / 60:.0f}")
    _cnnlab("predict", str(run), "--model.flips", "true", *prediction)
    counts = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    # At the images' own size, whatever the network has seen.
    for path in sorted((data / "masks" / "test").iterdir()):
        with Image.open(path) as mask, Image.open(run / "masks" / f"{path.stem}.jpg.png") as predicted:
            truth, found = np.asarray(mask), np.asarray(predicted)
        known = truth != IGNORED
        pairs = truth[known].astype(np.int64) * len(CLASSES) + found[known]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    hits = counts.diagonal()
    iou = hits / (counts.sum(axis=0) + counts.sum(axis=1) - hits)
    return {
        **{name: f"{value:.3f}" for name, value in zip(CLASSES, iou, strict=True)},
        "mean IoU": f"**{iou.mean():.3f}**",
        "pixel accuracy": f"{hits.sum() / counts.sum():.3f}",
        "minutes of training": minutes.read_text(),
    }


def _cnnlab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cnnlab", *arguments], check=True)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with images/SPLIT and masks/SPLIT")
    parser.add_argument("--out", type=Path, default=Path("camvid"))
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options = parser.parse_args()
    fetch_weights(options.out / "weights")
    shared = {"root": str(options.data), "ignore_index": str(IGNORED), "class_names": json.dumps(CLASSES)}
    data = [part for name, value in shared.items() for part in (f"--data.{name}", value)]
    weights = {"pretrained": ["--model.weights", str(options.out / "weights")]}
    found = {
        name: scores(
            options.out / name,
            options.data,
            [*RECIPES[name], *data, *weights.get(name, [])],
            PREDICTION.get(name, []),
        )
        for name in options.networks
    }
    print("| class | " + " | ".join(found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for row in next(iter(found.values())):
        print(f"| {row} | " + " | ".join(column[row] for column in found.values()) + " |")


if __name__ == "__main__":
    main()
