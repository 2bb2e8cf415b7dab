"""How a training starts with many image files: the time to its fifth step, and its memory.

Makes folders of 1,000 classes with links to a few real images, and trains a small network on them in a process of its
own. Files of a million names take some minutes to make; they are kept in --folder.

    python benchmarks/scale.py [--counts 1000 10000 100000 1000000] [--workers 2] [--folder DIR] [--archive]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback
from PIL import Image

from cnnlab.archives.pack import pack_files
from cnnlab.image_files import LeftOut, files_below

CLASSES = 1000
LINKS = 30_000
"""Links to one file; file systems allow some ten thousands."""
STEPS = 5
RESULT = "SCALE_RESULT"
START = "SCALE_START"


class Meter(Callback):
    """Writes time and memory at the fifth step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Measure."""
        if trainer.global_step == STEPS:
            seconds = time.time() - float(os.environ[START])
            found = {"seconds": seconds, "main": memory("self"), "workers": [memory(pid) for pid in children()]}
            Path(os.environ[RESULT]).write_text(json.dumps(found))


def memory(process: int | str) -> dict[str, float]:
    """Resident and private memory of a process, in bytes."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    lines = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return {"resident": lines["Rss"], "private": lines["Private_Dirty"] + lines["Private_Clean"]}


def children() -> list[int]:
    """The processes that this one has started."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def make(folder: Path, count: int) -> Path:
    """A folder with so many images in 1,000 classes."""
    root = folder / f"images-{count}"
    if (root / ".whole").exists():
        return root
    draw = np.random.default_rng(0)
    source = root / ".source"
    source.mkdir(parents=True, exist_ok=True)
    for number in range(-(-count // LINKS)):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(source / f"{number}.jpg")
    for kind in range(CLASSES):
        (root / f"class{kind:04d}").mkdir(exist_ok=True)
    for number in range(count):
        link = root / f"class{number % CLASSES:04d}" / f"img_{number // CLASSES:07d}_{number:07d}.jpg"
        link.unlink(missing_ok=True)
        link.hardlink_to(source / f"{number // LINKS}.jpg")
    (root / ".whole").touch()
    return root


def pack(root: Path) -> Path:
    """The same images in one tar, with an index."""
    out = root.with_name(f"{root.name}-tar")
    if not out.exists():
        files = files_below(root, LeftOut())
        pack_files(files, lambda path: Path(path).read_bytes(), out, 1 << 50, "tar", lambda: None)
    return out


def measure(root: Path, workers: int) -> dict[str, Any]:
    """Train a few steps, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            *(sys.executable, "-m", "cnnlab", "fit", "--config", "image_folder", "--data.root", str(root)),
            *("--model.network", "resnet10t", "--model.weights", "null", "--model.layer_decay", "null"),
            *("--data.size", "[32, 32]", "--data.batch_size", "16", "--data.num_workers", str(workers)),
            *("--trainer.max_steps", str(STEPS), "--trainer.limit_val_batches", "2"),
            *("--trainer.callbacks+", "scale.Meter", "--run", str(Path(folder) / "run")),
        ]
        environment = {
            **os.environ,
            RESULT: str(result),
            START: str(time.time()),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        start = time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        manifests = Path(folder).glob("run/manifest*")
        whole = {"whole": time.time() - start, "manifest": sum(path.stat().st_size for path in manifests)}
        found: dict[str, Any] = json.loads(result.read_text())
        return found | whole


def main() -> None:
    """Measure each count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--archive", action="store_true", help="one tar instead of the files; its index is made before")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cnnlab-scale")
    options = parser.parse_args()
    columns = ("images", "fifth step", "whole run", "main process", "a worker's own", "manifest")
    print("".join(f"{name:>16}" for name in columns))
    for count in options.counts:
        root = make(options.folder, count)
        found = measure(pack(root) if options.archive else root, options.workers)
        private = max((worker["private"] for worker in found["workers"]), default=0)
        sizes = (found["main"]["resident"], private, found["manifest"])
        times = "".join(f"{found[name]:14.1f} s" for name in ("seconds", "whole"))
        print(f"{count:16,}{times}" + "".join(f"{size / 2**20:12.1f} MiB" for size in sizes), flush=True)


if __name__ == "__main__":
    main()
