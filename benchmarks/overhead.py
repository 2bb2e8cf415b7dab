"""What cnnlab adds to a training step: ``cnnlab fit``'s loop against the barest loop over the same tensors.

Same network, same fused optimizer, same batches, no augmentation. The two take turns; the figure is the ratio of the
medians of the seconds that a step takes.

    python benchmarks/overhead.py [--batch 128] [--steps 40] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from cnnlab.commands.arguments import plan, take_apart
from cnnlab.commands.training import VisionCLI
from cnnlab.data.in_memory import InMemoryDataModule


class RandomImages(InMemoryDataModule):
    """Noise in MNIST's form."""

    channels = 1
    mean = (0.5,)
    std = (0.25,)
    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self, size: int = 6400, batch_size: int = 128) -> None:
        super().__init__(val_size=128, batch_size=batch_size)
        self.size = size

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """The same noise each time."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (self.size + 128, 1, 28, 28), dtype=torch.uint8, generator=generator)
        return images, torch.randint(0, 10, (self.size + 128,), generator=generator)


def bare(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds a step of the barest loop."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    criterion = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for images, targets in batches:
        optimizer.zero_grad()
        criterion(network(images), targets).backward()
        optimizer.step()
    return (time.perf_counter() - start) / len(batches)


def main() -> None:
    """Take turns; print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from cnnlab.models import SimpleCNN

    seconds: dict[str, list[float]] = {"bare": [], "cnnlab": []}

    class Timer(Callback):
        """Seconds from the first step of each epoch to the end of its last."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                seconds["cnnlab"].append((time.perf_counter() - self.start) / (batch_idx + 1))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """The barest loop's turn, over the same batches."""
            trainer.train_dataloader.batch_sampler.set_epoch(trainer.current_epoch)
            batches = []
            for images, targets in trainer.train_dataloader:
                pixels = ((images.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
                batches.append((pixels, targets))
            network = SimpleCNN().to(memory_format=torch.channels_last)
            bare(network, batches[:3])
            seconds["bare"].append(bare(network, batches))

    class Timed(VisionCLI):
        """VisionCLI with the timer as one more callback."""

        def _slots(self, trial: bool = False) -> list[Callback]:
            return [*super()._slots(trial), Timer()]

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--model", "Classification", "--data", "RandomImages", "--run", f"{folder}/run"]
        flags += [f"--data.size={arguments.batch * arguments.steps}", f"--data.batch_size={arguments.batch}"]
        Timed(plan(take_apart("fit", [*flags, f"--trainer.max_epochs={arguments.rounds + 1}"])))
    for kind, found in seconds.items():
        found.pop(0)  # The first round warms up.
        print(f"{kind:7} {statistics.median(found) * 1000:.2f} ms a step, median of {len(found)} rounds")
    ratio = statistics.median(seconds["cnnlab"]) / statistics.median(seconds["bare"])
    print(f"cnnlab / bare: {ratio:.3f} (batch {arguments.batch}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
