"""What lies between two epochs: checkpoints, pictures, tables, and the wait for the first batch.

Trains a network on generated photographs by the command line, and prints for each epoch the seconds of its steps, of
its validation, and of the rest until the next epoch's first step. The first epoch is left out.

    python benchmarks/between.py [--network resnet50] [--size 64] [--train 320] [--val 64] [--epochs 6]
        [--batch-size 32] [--workers 2] [--option=--callbacks.gradcam=false ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback
from PIL import Image

RESULT = "BETWEEN_RESULT"


class Clock(Callback):
    """Writes down when steps and validations begin and end."""

    def __init__(self) -> None:
        self._moments: list[tuple[str, float]] = []

    def _note(self, name: str) -> None:
        self._moments.append((name, time.perf_counter()))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the first."""
        if batch_idx == 0:
            self._note("first step")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the last."""
        if batch_idx + 1 == trainer.num_training_batches:
            self._note("steps end")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Note it, but for the sanity check."""
        if not trainer.sanity_checking:
            self._note("validation")

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note it: what callbacks do after this is no validation."""
        if not trainer.sanity_checking:
            self._note("validated")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the times."""
        Path(os.environ[RESULT]).write_text(json.dumps(self._moments))


def epochs(moments: list[tuple[str, float]]) -> list[dict[str, float]]:
    """The seconds of each epoch's parts, but for the first and the last."""
    found, start = [], 0
    for place, (name, _) in enumerate(moments):
        if name == "first step" and place:
            part = dict(moments[start:place])
            validation = part["validated"] - part["validation"]
            between = moments[place][1] - part["steps end"] - validation
            steps = part["steps end"] - part["first step"]
            found.append({"steps": steps, "validation": validation, "between": between})
            start = place
    return found[1:]


def make(root: Path, counts: dict[str, int]) -> None:
    """Photographs of two classes."""
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            path = root / split / ("a", "b")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    for name, default in {"size": 64, "train": 320, "val": 64, "epochs": 6, "batch-size": 32, "workers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--option", action="append", default=[], help="further arguments of cnnlab fit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, root = Path(folder) / "moments.json", Path(folder) / "photos"
        make(root, {"train": options.train, "val": options.val})
        command = [
            *(sys.executable, "-m", "cnnlab", "fit", "--config", "image_folder", "--data.root", str(root)),
            *("--model.network", options.network, "--model.weights", "null", "--model.layer_decay", "null"),
            *("--data.size", f"[{options.size}, {options.size}]", "--data.batch_size", str(options.batch_size)),
            *("--data.num_workers", str(options.workers), "--trainer.max_epochs", str(options.epochs)),
            *("--trainer.callbacks+", "between.Clock", "--run", str(Path(folder) / "run"), *options.option),
        ]
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, RESULT: str(result), "PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        found = epochs(json.loads(result.read_text()))
    print("seconds an epoch" + "".join(f"{name:>14}" for name in found[0]))
    for place, values in enumerate(found, start=2):
        print(f"{place:16}" + "".join(f"{value:14.2f}" for value in values.values()))
    print(f"{'median':>16}" + "".join(f"{statistics.median(row[name] for row in found):14.2f}" for name in found[0]))


if __name__ == "__main__":
    main()
