"""What cnnlab adds to a training step: ``cnnlab fit``'s loop against the barest loop over the same tensors.

Same network, same fused optimizer, same batches, no augmentation. The two take turns, a step each; the figure is the
ratio of the medians of the seconds that a step takes. cnnlab's includes indexing the batch, standardizing it, metrics,
logging and all default callbacks; the barest loop gets the tensors ready.

    python benchmarks/overhead.py [--batch 128] [--steps 300]
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

from cnnlab.commands.arguments import parse_request, plan
from cnnlab.commands.training import VisionCLI
from cnnlab.data.in_memory import InMemoryDataModule
from cnnlab.models import SimpleCNN


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


class Alternate(Callback):
    """After each step of cnnlab's comes one of the barest loop's, over the same batch; each has its own clock."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds: dict[str, list[float]] = {"bare": [], "cnnlab": []}
        self.network = SimpleCNN().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)
        self.criterion = nn.CrossEntropyLoss()
        self.since = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The turn of the barest loop."""
        cnnlab = time.perf_counter() - self.since
        pixels, targets = pl_module.standardize(batch[0]).contiguous(memory_format=torch.channels_last), batch[1]
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.criterion(self.network(pixels), targets).backward()
        self.optimizer.step()
        bare = time.perf_counter() - start
        if batch_idx >= self.warmup:
            self.seconds["cnnlab"].append(cnnlab)
            self.seconds["bare"].append(bare)
        # What cnnlab does from here to the end of its next step is its own.
        self.since = time.perf_counter()


def main() -> None:
    """Take turns; print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    turns = Alternate(warmup=20)

    class Timed(VisionCLI):
        """VisionCLI with the turns as one more callback."""

        def _slots(self, trial: bool = False) -> list[Callback]:
            return [*super()._slots(trial), turns]

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--model", "Classification", "--data", "RandomImages", "--run", f"{folder}/run"]
        flags += [f"--data.size={arguments.batch * arguments.steps}", f"--data.batch_size={arguments.batch}"]
        Timed(plan(parse_request("fit", [*flags, "--trainer.max_epochs=1"])))
    medians = {kind: statistics.median(found) for kind, found in turns.seconds.items()}
    for kind, median in medians.items():
        print(f"{kind:7} {median * 1000:.2f} ms a step, median of {len(turns.seconds[kind])}")
    ratio = medians["cnnlab"] / medians["bare"]
    print(f"cnnlab / bare: {ratio:.3f} (batch {arguments.batch}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
