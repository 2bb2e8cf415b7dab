"""One GPU: how fast ``cnnlab fit`` trains, beside the barest compiled loop and timm's training step.

All three train the same network, in bfloat16, channels_last, compiled, on the same images, which lie on the GPU: what
is compared is the loop, not the reading. With --files also: the same training from so many JPEG files, which readers
decode and augment; its first epoch is left out. The figures are medians of --rounds times --steps steps: images a
second, and which share that is of the barest loop's and of the GPU's matrix throughput (what a product of two 8192 x
8192 matrices in bfloat16 reaches on it; a step's operations are counted by torch). With --cifar also: CIFAR-10 from
memory, and whether it reaches 94 %, in which time.

    python -m benchmarks.gpu [--networks resnet50 convnext_tiny] [--batch 256] [--size 224] [--files 12000]
        [--cifar DIR]

Without a GPU it says so, and measures nothing; --device cpu runs it all the same, to see that it works.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import CLASSES, make
from cnnlab.data import ImageFolder
from cnnlab.data.in_memory import InMemoryDataModule
from cnnlab.models.factory import create_network
from cnnlab.tasks import Classification


class SameBatch(Dataset[Any]):
    """The same images again and again, where they are."""

    def __init__(self, images: Tensor, targets: Tensor, count: int) -> None:
        self.batch = (images, targets)
        self.count = count

    def __len__(self) -> int:
        """The number of steps."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The batch."""
        return self.batch


class Clock(Callback):
    """Seconds of each turn of so many steps."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device
        self.seconds: list[float] = []
        self.since = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock where a turn ends; the first one compiles, and does not count."""
        if (batch_idx + 1) % self.steps == 0:
            wait(self.device)
            now = time.perf_counter()
            if batch_idx + 1 > self.steps:
                self.seconds.append(now - self.since)
            self.since = now


class EpochClock(Clock):
    """Seconds of so many steps, from the first to the last step of each epoch but the first."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock after the first and the last step."""
        if batch_idx == 0:
            wait(self.device)
            self.since = time.perf_counter()
        elif batch_idx + 1 == trainer.num_training_batches and trainer.current_epoch:
            wait(self.device)
            self.seconds.append((time.perf_counter() - self.since) / batch_idx * self.steps)


def wait(device: torch.device) -> None:
    """Until the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turns(step: Callable[[], object], options: argparse.Namespace) -> list[float]:
    """Seconds of each turn; the first one compiles, and does not count."""
    device = torch.device(options.device)
    seconds = []
    for _ in range(options.rounds + 1):
        wait(device)
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def bare(name: str, images: Tensor, targets: Tensor, options: argparse.Namespace) -> list[float]:
    """The least that a training loop can do."""
    network = create_network(name, 1000, 3).to(options.device).to(memory_format=torch.channels_last).train()
    compiled: Any = torch.compile(network)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16):
            loss = F.cross_entropy(compiled(images), targets)
        torch.autograd.backward(loss)
        optimizer.step()

    return turns(step, options)


def timms(name: str, images: Tensor, targets: Tensor, options: argparse.Namespace) -> list[float]:
    """What timm's training script does in a step: its loss, its optimizer, its order."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    network = create_network(name, 1000, 3).to(options.device).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05)
    criterion = cast(Any, LabelSmoothingCrossEntropy)(0.1)
    compiled: Any = torch.compile(network)

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16):
            loss = criterion(compiled(images), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return turns(step, options)


def fitted(name: str, images: Tensor, targets: Tensor, options: argparse.Namespace) -> list[float]:
    """The task of cnnlab in Lightning's trainer, standardization and metrics included."""
    pixels = (images * 255).to(torch.uint8)
    clock = Clock(options.steps, images.device)
    count = options.steps * (options.rounds + 1)
    loader = DataLoader(SameBatch(pixels, targets, count), batch_size=None)
    trainer_of(options, 1, clock).fit(Classification(name, 1000, compile=True), loader)
    return clock.seconds


def from_files(name: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """The same from image files."""
    clock = EpochClock(options.steps, torch.device(options.device))
    data = ImageFolder(str(folder), size=options.size, batch_size=options.batch)
    task = Classification(name, data.num_classes, compile=True)
    trainer_of(options, options.rounds + 1, clock, limit_val_batches=0).fit(task, datamodule=data)
    return clock.seconds


def trainer_of(options: argparse.Namespace, epochs: int, clock: Callback, **kwargs: Any) -> Trainer:
    """Lightning's trainer without anything beside the steps."""
    return Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=epochs,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **kwargs,
    )


def operations(name: str, images: Tensor) -> float:
    """Floating-point operations of a training step, a multiplication and an addition counted as two."""
    network = create_network(name, 1000, 3).to(images.device)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(network(images).sum())
    return float(counter.get_total_flops())


def matrix_throughput(device: torch.device, side: int) -> float:
    """Operations a second of a product of square matrices in bfloat16."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        wait(device)
        found.append(10 * 2 * side**3 / (time.perf_counter() - start))
    return max(found)


class Cifar10(InMemoryDataModule):
    """CIFAR-10 (Krizhevsky 2009), from torchvision's files."""

    channels = 3
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
    std: Sequence[float] = (0.2470, 0.2435, 0.2616)
    class_names: Sequence[str] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def __init__(self, root: str, batch_size: int = 512) -> None:
        super().__init__(val_size=1000, translate=0.1, batch_size=batch_size)
        self.root = root

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images of a part."""
        import torchvision

        source = torchvision.datasets.CIFAR10(self.root, train=train)
        return torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets)


def cifar(root: Path, options: argparse.Namespace) -> None:
    """Train for --cifar_epochs; say how long that took, and whether 94 % of the test set are right."""
    data = Cifar10(str(root))
    task = Classification(
        "small_resnet",
        10,
        mean=data.mean,
        std=data.std,
        lr=5e-3,
        schedule="onecycle",
        label_smoothing=0.1,
        compile=True,
    )
    settings: dict[str, Any] = {
        "accelerator": "gpu" if options.device == "cuda" else "cpu",
        "devices": 1,
        "precision": "bf16-mixed",
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(max_epochs=options.cifar_epochs, **settings)
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    accuracy = trainer.test(task, datamodule=data, verbose=False)[0]["test/accuracy"]
    reached = "reached" if accuracy >= 0.94 else "not reached"
    print(f"CIFAR-10: {accuracy:.2%} on the test set after {seconds:.0f} s; 94 % is {reached}")


def compare(name: str, files: Path | None, peak: float, options: argparse.Namespace) -> None:
    """Print a row of the table for each loop.

    Args:
        name: The network.
        files: The folder of image files; None to leave them out.
        peak: The GPU's operations a second.
        options: The command line's.
    """
    images = torch.rand(options.batch, 3, options.size, options.size, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(1000, (options.batch,), device=options.device)
    loops = {kind: partial(run, name, images, targets, options) for kind, run in LOOPS.items()}
    if files is not None:
        loops["cnnlab fit from files"] = partial(from_files, name, files, options)
    work = operations(name, images[:2]) / 2
    barest = None
    for kind, run in loops.items():
        torch._dynamo.reset()
        speed = options.batch * options.steps / statistics.median(run())
        barest = barest or speed
        print(f"| {name} | {kind} | {speed:.1f} | {speed / barest:.3f} | {speed * work / peak:.1%} |", flush=True)


LOOPS = {"barest": bare, "timm's step": timms, "cnnlab fit": fitted}


def main() -> None:
    """Measure, where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "convnext_tiny"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--files", type=int, default=0, help="image files to train on, besides")
    parser.add_argument("--cifar", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--cifar_epochs", type=int, default=30)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here (torch sees no CUDA device): nothing was measured.")
        return
    device = torch.device(options.device)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU: these are no figures of a GPU")
    peak = matrix_throughput(device, options.matrix)
    print(f"matrix product: {peak / 1e12:.2f} TFLOP/s\n\n| network | loop | images/s | of the barest | of the GPU |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as files:
        if options.files:
            make(Path(files), options.files, CLASSES)
        for name in options.networks:
            compare(name, Path(files) if options.files else None, peak, options)
    if options.cifar is not None:
        cifar(options.cifar, options)


if __name__ == "__main__":
    main()
