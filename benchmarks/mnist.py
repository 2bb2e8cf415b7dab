"""cnnlab against a plain hand-written loop on MNIST: speed, time to 99.0 %, accuracy after 10 epochs.

The loop is what a tutorial writes: SimpleCNN, a DataLoader with two workers and ToTensor + Normalize for each sample,
batch 128, Adam 1e-3, a cosine over 10 epochs, loss.item() in each step. cnnlab runs recipes through the command line's
own class: mnist_fast for speed, mnist for the accuracy after 10 epochs. All train on the same machine with the same
number of threads, taking turns; the test set is read after each epoch with the clock stopped.

    python benchmarks/mnist.py --root DIR [--seeds 3] [--target 0.99] [--recipes mnist_fast mnist]

DIR holds MNIST/raw. The last lines are the ratios of the first recipe to the loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Clock:
    """A stop watch that can be paused."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Let it run."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause it."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


def test_accuracy(predict: Any, images: Tensor, targets: Tensor) -> float:
    """The share of test images that a function from images to logits gets right."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(targets), 1000):
            right += int((predict(images[start : start + 1000]).argmax(1) == targets[start : start + 1000]).sum())
    return right / len(targets)


def test_set(root: str) -> tuple[Tensor, Tensor]:
    """The 10,000 test images (N, 1, 28, 28) uint8 and their classes."""
    from cnnlab.data import MNIST

    data = MNIST(root=root)
    data.prepare_data()
    return data.load(train=False)


def plain_loop(root: str, seed: int, epochs: int) -> dict[str, Any]:
    """The hand-written loop, all 60,000 training images."""
    from torchvision import datasets, transforms

    from cnnlab.models import SimpleCNN

    torch.manual_seed(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_set = datasets.MNIST(root, train=True, transform=transform)
    loader = DataLoader(train_set, batch_size=128, shuffle=True, num_workers=2)
    network = SimpleCNN()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    criterion = nn.CrossEntropyLoss()
    images, targets = test_set(root)
    clock, history = Clock(), []
    for _ in range(epochs):
        clock.start()
        network.train()
        total = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        clock.stop()
        network.eval()
        accuracy = test_accuracy(lambda x: network((x / 255 - 0.1307) / 0.3081), images, targets)
        history.append({"seconds": clock.seconds, "accuracy": accuracy})
    return {"history": history, "images": len(train_set) * epochs}


def with_cnnlab(root: str, seed: int, recipe: str) -> dict[str, Any]:
    """``cnnlab fit --config RECIPE``, with a callback that reads the test set while the clock stands still."""
    from lightning.pytorch import Callback

    from cnnlab.commands import training
    from cnnlab.commands.arguments import parse_request, plan

    images, targets = test_set(root)
    clock, history = Clock(), []

    class Watch(Callback):
        """Starts with the training, validation included; pauses for the test set."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            clock.start()

        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            """Where averaged weights are in place, as they are for validation."""
            if trainer.sanity_checking:
                return
            clock.stop()
            pl_module.eval()
            accuracy = test_accuracy(pl_module, images, targets)
            history.append({"seconds": clock.seconds, "accuracy": accuracy})
            clock.start()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            clock.stop()

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config", recipe, "--data.root", root, "--run", f"{folder}/run", "--seed_everything", str(seed)]

        class Watched(training.VisionCLI):
            """VisionCLI with the watch as one more callback."""

            def _slots(self, trial: bool = False) -> list[Callback]:
                return [*super()._slots(trial), Watch()]

        cli = Watched(plan(parse_request("fit", flags)))
    return {"history": history, "images": cli.trainer.global_step * cli.datamodule.batch_size}


def worker(arguments: argparse.Namespace) -> None:
    """One training in a process of its own; prints its result as the last line."""
    torch.set_num_threads(arguments.threads)
    if arguments.worker == "loop":
        result = plain_loop(arguments.root, arguments.seed, arguments.epochs)
    else:
        result = with_cnnlab(arguments.root, arguments.seed, arguments.worker)
    print(json.dumps(result))


def seconds_to(result: dict[str, Any], target: float) -> float:
    """When the target was first reached, or infinity."""
    return next((point["seconds"] for point in result["history"] if point["accuracy"] >= target), float("inf"))


def main() -> None:
    """Take turns; print the figures and the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="of the loop")
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--recipes", nargs="+", default=["mnist_fast", "mnist"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("loop", *arguments.recipes)}
    for seed in range(arguments.seeds):
        for kind, found in results.items():
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker", kind, "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{kind} failed:\n{done.stderr}")
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
            points = [f"{point['seconds']:.0f}s {point['accuracy']:.2%}" for point in found[-1]["history"]]
            print(f"{kind:10} seed {seed}: {'  '.join(points)}", flush=True)
    rates = {k: [r["images"] / r["history"][-1]["seconds"] for r in found] for k, found in results.items()}
    times = {k: [seconds_to(r, arguments.target) for r in found] for k, found in results.items()}
    final = {k: [r["history"][-1]["accuracy"] for r in found] for k, found in results.items()}
    for kind in results:
        print(
            f"{kind:10} median: {statistics.median(rates[kind]):,.0f} images/s, {arguments.target:.1%} after "
            f"{statistics.median(times[kind]):.0f} s, {statistics.mean(final[kind]):.2%} at the end (mean)"
        )
    first = arguments.recipes[0]
    faster = statistics.median(rates[first]) / statistics.median(rates["loop"])
    sooner = statistics.median(times["loop"]) / statistics.median(times[first])
    print(f"images a second, {first} / loop: {faster:.2f}")
    print(f"time to {arguments.target:.1%}, loop / {first}: {sooner:.2f}")


if __name__ == "__main__":
    main()
