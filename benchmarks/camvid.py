"""Mean IoU on CamVid's test split (11 classes, 240x180 pixels): a U-Net from scratch, and one on pretrained features.

Both train for no more than 40 minutes on two cores, through ``cnnlab fit`` and ``cnnlab test``, which writes iou.csv.
The weights are EfficientNet-Lite0's of ImageNet (see lite0.py).

    python benchmarks/camvid.py --data camvid-small [--out camvid] [--networks scratch pretrained]

What is in --out already is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.lite0 import fetch_weights

CLASSES = [
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
]
RECIPES = {
    "scratch": ["--config", "segmentation", "--model.network_args.base", "16", "--trainer.max_epochs", "40"],
    "pretrained": ["--config", "segmentation_pretrained"],
}


def scores(run: Path, arguments: list[str]) -> dict[str, str]:
    """Train and test, unless that is done; the IoU of each class, their mean, the pixels' accuracy, the minutes."""
    minutes = run / "minutes.txt"
    if not minutes.is_file():
        started = time.monotonic()
        _cnnlab("fit", *arguments, "--run", str(run), "--resume", "auto")
        minutes.write_text(f"{(time.monotonic() - started) / 60:.0f}")
    _cnnlab("test", str(run), "--model.flips", "true")
    with (run / "iou.csv").open(newline="") as file:
        found = {row["class"]: f"{float(row['iou']):.3f}" for row in csv.DictReader(file)}
    results = json.loads((run / "test.json").read_text())
    found["mean IoU"] = f"**{results['test/mean_iou']:.3f}**"
    found["pixel accuracy"] = f"{results['test/pixel_accuracy']:.3f}"
    found["minutes of training"] = minutes.read_text()
    return found


def _cnnlab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cnnlab", *arguments], check=True)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with images/SPLIT and masks/SPLIT")
    parser.add_argument("--out", type=Path, default=Path("camvid"))
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    options = parser.parse_args()
    fetch_weights(options.out / "weights")
    data = ["--data.root", options.data, "--data.ignore_index", "11", "--data.class_names", json.dumps(CLASSES)]
    weights = {"pretrained": ["--model.weights", str(options.out / "weights")]}
    found = {
        name: scores(options.out / name, [*RECIPES[name], *data, *weights.get(name, [])]) for name in options.networks
    }
    print("| class | " + " | ".join(found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for row in next(iter(found.values())):
        print(f"| {row} | " + " | ".join(column[row] for column in found.values()) + " |")


if __name__ == "__main__":
    main()
