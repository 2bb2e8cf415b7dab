"""Reading images from archives, beside reading them from files: rates, the time of an index, and memory.

Small JPEG files are packed into a tar and a stored zip. Each way is read in the same random order, in turns; the median
of the rates counts. Then an archive of many members is listed in new processes, without an index and with one.

    python benchmarks/archives.py [--count 20000] [--members 100000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cnnlab.archives.pack import pack_files
from cnnlab.image_files import LeftOut, files_below
from cnnlab.imaging import LazyImage

ROUNDS = 5
LISTING = """
import sys, time, resource
from pathlib import Path
from cnnlab import tree
def memory():
    text = Path("/proc/self/smaps_rollup").read_text()
    kinds = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return kinds["Private_Clean"] + kinds["Private_Dirty"], kinds["Rss"]
tree.read_bytes  # What is imported does not count.
before, start = memory(), time.perf_counter()
tree.is_dir(sys.argv[1])
seconds, after = time.perf_counter() - start, memory()
print(seconds, *(b - a for a, b in zip(before, after)))
"""


def make(folder: Path, count: int) -> Path:
    """A folder with so many small JPEG files in 100 classes."""
    root = folder / f"images-{count}"
    if root.exists():
        return root
    draw = np.random.default_rng(0)
    aside = root.with_suffix(".part")
    for number in range(count):
        path = aside / f"class{number % 100:03d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((48, 48)).save(path)
    return aside.rename(root)


def pack(root: Path, form: str) -> Path:
    """The folder as one archive."""
    out = root.with_name(f"{root.name}-{form}")
    if not out.exists():
        files = files_below(root, LeftOut())
        pack_files(files, lambda path: Path(path).read_bytes(), out, 1 << 40, form, lambda: None)
    return out / f"shard-00000.{form}"


def rate(root: Path, names: list[str], decode: bool) -> float:
    """Images a second."""
    start = time.perf_counter()
    for name in names:
        image = LazyImage(f"{root}/{name}")
        if decode:
            image.read()
    return len(names) / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cnnlab-archives")
    options = parser.parse_args()
    root = make(options.folder, options.count)
    ways = {"files": root, "tar": pack(root, "tar"), "zip": pack(root, "zip")}
    names = [name for name, _ in files_below(root, LeftOut())]
    np.random.default_rng(1).shuffle(names)
    print(f"{'images/s':>12}{'header':>12}{'of files':>12}{'decoded':>12}{'of files':>12}")
    medians = {}
    for decode in (False, True):
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, place in ways.items():
                found[way].append(rate(place, names, decode))
        medians[decode] = {way: float(np.median(rates)) for way, rates in found.items()}
    for way in ways:
        cells = (f"{medians[d][way]:12,.0f}{medians[d][way] / medians[d]['files']:12.3f}" for d in (False, True))
        print(f"{way:>12}{''.join(cells)}")
    large = make(options.folder, options.members)
    print(f"{'archive':>12}{'index':>12}{'seconds':>12}{'private':>16}{'resident':>16}")
    for form in ("tar", "zip"):
        archive = pack(large, form)
        archive.with_name(f".{archive.name}.index").unlink(missing_ok=True)
        for state in ("made", "read"):
            done = subprocess.run(
                [sys.executable, "-c", LISTING, str(archive)], check=True, capture_output=True, text=True
            )
            seconds, private, resident = map(float, done.stdout.split())
            each = "".join(f"{count / options.members:12.1f} B" for count in (private, resident))
            print(f"{form:>12}{state:>12}{seconds:12.3f}  {each} a member")


if __name__ == "__main__":
    main()
