"""What grows with the number of images, whatever they are: an epoch's order, and the sum of what processes have read.

python benchmarks/size.py [--images 1000000 10000000 100000000] [--processes 2 4]
"""

from __future__ import annotations

import argparse
import os
import socket
import time

import torch
import torch.distributed as dist
from torch import multiprocessing

from cnnlab.data.contents import ContentHashes
from cnnlab.data.samplers import TrainSampler

BATCH = 256
BATCHES = 200
MOST_GATHERED = 10_000_000


def order(images: int) -> tuple[float, float]:
    """Seconds to an epoch's first batch, and for each of the next ones."""
    start = time.perf_counter()
    batches = iter(TrainSampler(images, BATCH, seed=0))
    next(batches)
    first = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return first - start, (time.perf_counter() - first) / BATCHES


def _reduce(rank: int, processes: int, port: int, images: list[int]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for count in images:
        table = torch.zeros_like(ContentHashes(count).table)
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
        start = time.perf_counter()
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
        if rank == 0:
            size = table.numel() / 2**20
            print(f"{processes:12} {count:14,} {size:10.0f} MiB {time.perf_counter() - start:12.3f} s", flush=True)
    dist.destroy_process_group()


def free_port() -> int:
    """A port that no program uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    asked = parser.parse_args()
    print(f"{'images':>14} {'first batch':>14} {'each other':>14}")
    for count in asked.images:
        first, each = order(count)
        print(f"{count:14,} {first:12.3f} s {1e6 * each:11.0f} us", flush=True)
    print(f"{'processes':>12} {'images':>14} {'their hashes':>14} {'summed in':>14}")
    for processes in asked.processes:
        gathered = [count for count in asked.images if count <= MOST_GATHERED]
        multiprocessing.spawn(_reduce, (processes, free_port(), gathered), nprocs=processes)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    main()
