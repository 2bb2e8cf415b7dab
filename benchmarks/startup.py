"""How long the command line takes to answer, against what it cannot do without.

A run and an exported file are made first; of test, predict and infer it is the time to the first image.

    python benchmarks/startup.py [--rounds 5] [--network small_resnet]
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
from typing import Any

from lightning.pytorch import Callback

CNNLAB = [sys.executable, "-m", "cnnlab"]
IMPORT = "import torch, lightning"


class FirstImage(Callback):
    """Ends the process when the first batch is there."""

    def on_test_batch_start(self, *_: Any) -> None:
        """End."""
        os._exit(0)

    def on_predict_batch_start(self, *_: Any) -> None:
        """End."""
        os._exit(0)


def commands(folder: Path, network: str) -> dict[str, list[str]]:
    """What is timed."""
    run, image = folder / "run", folder / "digit.png"
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2")
    made = [*CNNLAB, "fit", "--config", "digits", "--model.network", network, *short, "--run", str(run)]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run([*CNNLAB, "export", str(run)], check=True, capture_output=True)
    from PIL import Image

    Image.new("L", (28, 28)).save(image)
    first = ["--trainer.callbacks+", "startup.FirstImage"]
    return {
        # Without the second in which Python takes them apart again.
        IMPORT: [sys.executable, "-c", "import os, torch, lightning.pytorch; os._exit(0)"],
        "cnnlab --help": [*CNNLAB, "--help"],
        "cnnlab export --help": [*CNNLAB, "export", "--help"],
        "cnnlab slurm status RUN": [*CNNLAB, "slurm", "status", str(run)],
        "cnnlab recipes": [*CNNLAB, "recipes"],
        "cnnlab fit, a folder that is not there": [*CNNLAB, "fit", "--config", "image_folder", "--data.root", "/none"],
        "cnnlab fit --help": [*CNNLAB, "fit", "--help"],
        "cnnlab test RUN": [*CNNLAB, "test", str(run), *first],
        "cnnlab predict RUN": [*CNNLAB, "predict", str(run), *first],
        "cnnlab infer MODEL.onnx": [*CNNLAB, "infer", str(run / "model.onnx"), str(image)],
    }


def main() -> None:
    """Take turns; print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", default="small_resnet")
    options = parser.parse_args()
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder), options.network)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(options.rounds + 1):
            for name, command in timed.items():
                start = time.perf_counter()
                subprocess.run(command, check=False, capture_output=True, env=environment)
                if turn:  # The first turn reads the files into memory.
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name:40} {median:6.2f} s {median / medians[IMPORT]:6.2f}")


if __name__ == "__main__":
    main()
