"""Time and peak memory of cross-entropy + Dice: cnnlab's against the plain version with one-hot masks.

The plain one is what tutorials write: torch's cross-entropy, plus Dice from softmax and F.one_hot. Both go forwards and
backwards over the same logits, by turns; the times are medians. Memory is what a step allocates at its peak beyond the
logits and targets, the logits' gradient included: from the profiler's memory events on the CPU, from the allocator on a
GPU.

    python benchmarks/dice.py [--shape 4 21 512 512] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.losses import CrossEntropyDice

IGNORED = 255
Loss = Callable[[Tensor, Tensor], Tensor]


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """Half cross-entropy, half Dice, with one-hot masks; pixels are ignored by multiplying with 0."""
    logits = logits.float()
    valid = (target != IGNORED)[:, None]
    masks = F.one_hot(target.masked_fill(target == IGNORED, 0), logits.shape[1]).permute(0, 3, 1, 2).float() * valid
    probabilities = logits.softmax(dim=1) * valid
    overlap = (probabilities * masks).sum(dim=(2, 3))
    dice = (2 * overlap + 1) / (probabilities.sum(dim=(2, 3)) + masks.sum(dim=(2, 3)) + 1)
    return 0.5 * F.cross_entropy(logits, target, ignore_index=IGNORED) + 0.5 * (1 - dice).mean()


def seconds(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """How long forward and backward take."""
    logits.grad = None
    _wait()
    start = time.perf_counter()
    torch.autograd.backward(loss(logits, target))
    _wait()
    return time.perf_counter() - start


def peak_bytes(loss: Loss, logits: Tensor, target: Tensor) -> int:
    """The most that forward and backward allocate at once."""
    logits.grad = None
    return peak_bytes_of(lambda: torch.autograd.backward(loss(logits, target)))


def peak_bytes_of(call: Callable[[], object]) -> int:
    """The most that a call allocates at once, beyond what there was."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Take turns; print both and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[4, 21, 512, 512], help="batch, classes, height, width")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, classes, height, width = options.shape
    print(f"{batch} x {classes} x {height} x {width} on {device}, {torch.get_num_threads()} threads")
    print("| logits | plain | cnnlab | time | plain | cnnlab | peak memory |\n|---|---|---|---|---|---|---|")
    losses: dict[str, Loss] = {"plain": plain, "cnnlab": CrossEntropyDice()}
    for kind in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        logits = torch.randn(batch, classes, height, width, device=device).to(kind).requires_grad_()
        target = torch.randint(0, classes, (batch, height, width), device=device)
        target[torch.rand(target.shape, device=device) < 0.1] = IGNORED
        values = [loss(logits, target).item() for loss in losses.values()]
        torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
        times: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(options.rounds):
            for name, loss in losses.items():
                times[name].append(seconds(loss, logits, target))
        peaks = {name: peak_bytes(loss, logits, target) for name, loss in losses.items()}
        medians = {name: statistics.median(found) for name, found in times.items()}
        taken = [f"{medians[name] * 1000:.0f} ms" for name in losses] + [f"{medians['cnnlab'] / medians['plain']:.2f}"]
        held = [f"{peaks[name] / 2**20:.0f} MiB" for name in losses] + [f"{peaks['cnnlab'] / peaks['plain']:.2f}"]
        print("| " + " | ".join([str(kind).removeprefix("torch."), *taken, *held]) + " |", flush=True)


if __name__ == "__main__":
    main()
