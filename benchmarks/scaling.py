"""What more processes bring: throughput, the share of communication, memory; and what larger worlds should cost.

Each process has one thread (on the CPU) or one GPU, and a batch of its own. By turns, on all processes at the same
time: the step of the bare network; of the network in DDP without the exchange of gradients (no_sync); of DDP as it is;
and the exchange by itself, an all-reduce of as many bytes as the gradients have. Medians of the first process.

The model on paper. A step computes for t_c seconds, and exchanges G bytes of gradients with a ring all-reduce, each
process sending 2 (N - 1) / N of them at B bytes a second, in 2 (N - 1) messages of latency a (Patarasuk and Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", section 2):

    t(N) = t_c + (1 - o) t_x(N),    t_x(N) = 2 (N - 1) / N G / B + 2 (N - 1) a

o is the share of the exchange that is hidden behind the backward pass (Li et al. 2020, "PyTorch Distributed", section
3.2.3); below 0 where exchanging takes processors away from computing, as on the CPU. B and o are fitted to what was
measured with the most processes, at a = --latency: that row agrees by construction, and the others are predictions.
The last columns are for another network between the processes, of --bandwidth, with nothing hidden.

    python -m benchmarks.scaling [--network resnet18] [--processes 1 2] [--batch 16] [--size 64]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.dice import peak_bytes_of
from cnnlab.deploy.benchmark import timed
from cnnlab.models.factory import create_network

WORLDS = (1, 2, 4, 8, 16, 64)


def measure(rank: int, world: int, port: int, options: argparse.Namespace, out: str) -> None:
    """Measure on one of the processes; the first one writes what it found."""
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    network = create_network(options.network, 10, 3).to(device).to(memory_format=torch.channels_last).train()
    wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True)
    images = torch.rand(options.batch, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (options.batch,), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    flat = torch.zeros(gradients // 4, device=device)

    def step(model: nn.Module) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(model(images), targets))
        optimizer.step()

    def without_exchange() -> None:
        with wrapped.no_sync():
            step(wrapped)

    calls = {
        "bare": lambda: step(network),
        "no_sync": without_exchange,
        "ddp": lambda: step(wrapped),
        "exchange": lambda: dist.all_reduce(flat),
    }
    found: dict[str, Any] = {
        name: timing.median / 1000
        for name, timing in timed(
            calls, options.repetitions, rounds=10, synchronize=torch.cuda.synchronize if cuda else None
        ).items()
    }
    found |= {"memory": peak_bytes_of(lambda: step(wrapped)), "gradients": gradients, "processes": world}
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def exchange(world: int, gradients: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce of so many bytes.

    >>> exchange(2, 10**9, 1e9, 0.0), exchange(4, 10**9, 1e9, 0.5)
    (1.0, 4.5)
    """
    return 2 * (world - 1) / world * gradients / bandwidth + 2 * (world - 1) * latency


def main() -> None:
    """Measure each number of processes; print them, and the model beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16, help="images per process")
    parser.add_argument("--size", type=int, default=64, help="their height and width")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds for a message")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second, of the world on paper")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"There is no GPU here: {os.cpu_count()} processors, gloo, one thread for each process.\n")
    measured = {}
    for world in options.processes:
        with socket.socket() as free, tempfile.NamedTemporaryFile() as file:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            cast(Any, spawn)(measure, (world, port, options, file.name), nprocs=world)
            measured[world] = json.loads(Path(file.name).read_text())
    print(
        "| processes | images/s | efficiency | DDP over none | communication | memory, MB |\n|---|---|---|---|---|---|"
    )
    first = measured[min(measured)]
    for world, found in measured.items():
        speed = world * options.batch / found["ddp"]
        print(
            f"| {world} | {speed:.1f} | {first['bare'] / found['ddp']:.2f} | {found['ddp'] / found['bare']:.3f} | "
            f"{1 - found['no_sync'] / found['ddp']:.1%} | {found['memory'] / 1e6:.0f} |"
        )
    most = max(measured)
    if most == 1:
        return
    found = measured[most]
    gradients = found["gradients"]
    alone = found["exchange"] - 2 * (most - 1) * options.latency
    bandwidth = 2 * (most - 1) / most * gradients / alone
    hidden = 1 - max(0.0, found["ddp"] - found["no_sync"]) / found["exchange"]
    print(
        f"\nGradients: {gradients / 1e6:.1f} MB. Fitted to {most} processes: B = {bandwidth / 1e9:.2f} GB/s, o = "
        f"{hidden:.2f}.\n\n| processes | measured, ms | model here, ms | at {options.bandwidth / 1e9:g} GB/s, ms | "
        "its efficiency |\n|---|---|---|---|---|"
    )
    for world in WORLDS:
        here = found["no_sync"] + (1 - hidden) * exchange(world, gradients, bandwidth, options.latency)
        there = found["no_sync"] + exchange(world, gradients, options.bandwidth, options.latency)
        own = f"{1000 * measured[world]['ddp']:.1f}" if world in measured else ""
        print(f"| {world} | {own} | {1000 * here:.1f} | {1000 * there:.1f} | {found['no_sync'] / there:.3f} |")


if __name__ == "__main__":
    main()
