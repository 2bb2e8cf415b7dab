"""Accuracy of a small network trained alone, and of the same one taught by a large one, several seeds each.

MNIST: configs/distillation.yaml's network of 8,762 parameters, alone and taught by configs/mnist.yaml's. Photographs:
MobileNetV3-small from scratch, alone and taught by a fine-tuned EfficientNet-Lite0 (ImageNet's weights; see lite0.py).
All but the teacher is the same; trained and tested through ``cnnlab fit`` and ``cnnlab test``.

    python benchmarks/distillation.py --mnist data [--photos clothing-128] [--out distillation] [--seeds 0 1 2 3 4]

What is in --out already is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.finetuning import accuracy
from benchmarks.lite0 import fetch_weights


def compare(name: str, student: Sequence[str], teacher: Path, out: Path, seeds: Sequence[int]) -> None:
    """Train and test what is missing, and print the table."""
    found: dict[str, list[float]] = {"alone": [], "taught": []}
    for seed in seeds:
        for kind, task in (
            ("alone", ["--model", "Classification"]),
            ("taught", ["--model", "Distillation", "--model.teacher", str(teacher)]),
        ):
            # The task comes after the recipe, whose settings it keeps.
            run = out / f"{name}-{kind}-{seed}"
            found[kind].append(accuracy(run, [*student, *task, "--seed_everything", str(seed)])[0])
    print(f"| {name} | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---" * (len(seeds) + 2) + "|")
    for kind, values in found.items():
        print(f"| {kind} | " + " | ".join(f"{v:.2%}" for v in values) + f" | **{statistics.fmean(values):.2%}** |")
    gains = [taught - alone for alone, taught in zip(found["alone"], found["taught"], strict=True)]
    print(f"\ntaught minus alone: {', '.join(f'{gain:+.2%}' for gain in gains)}\n")


def main() -> None:
    """Train the teachers, then the students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="the folder that holds MNIST/raw")
    parser.add_argument("--photos", type=Path, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, default=Path("distillation"))
    parser.add_argument("--epochs", type=int, default=10, help="of the students on MNIST")
    parser.add_argument("--photo_epochs", type=int, default=30, help="of the students on photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    if options.mnist is not None:
        root = ["--trainer.precision", "32-true", "--data.root", str(options.mnist)]
        teacher = options.out / "mnist-teacher"
        print(f"teacher: {accuracy(teacher, ['--config', 'mnist', *root])[0]:.2%}")
        student = ["--config", "distillation", *root, "--trainer.max_epochs", str(options.epochs)]
        compare("mnist", student, teacher, options.out, options.seeds)
    if options.photos is not None:
        root = ["--trainer.precision", "32-true", "--data.root", str(options.photos), "--data.size", "128"]
        teacher = options.out / "photos-teacher"
        weights = options.out / "weights"
        fetch_weights(weights)
        pretrained = ["--config", "image_folder", *root, "--model.weights", str(weights)]
        print(f"teacher: {accuracy(teacher, pretrained)[0]:.2%}")
        student = ["--config", "from_scratch", "--model.network", "mobilenetv3_small_100", *root]
        student += ["--trainer.max_epochs", str(options.photo_epochs)]
        compare("photos", student, teacher, options.out, options.seeds)


if __name__ == "__main__":
    main()
