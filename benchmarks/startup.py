"""How long the command line takes to answer, against what it cannot do without.

python benchmarks/startup.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch, lightning": [sys.executable, "-c", "import torch, lightning.pytorch"],
    "cnnlab --help": [sys.executable, "-m", "cnnlab", "--help"],
    "cnnlab fit --help": [sys.executable, "-m", "cnnlab", "fit", "--help"],
}


def main() -> None:
    """Take turns; print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:  # The first turn reads the files into memory.
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name:25} {median:.2f} s")
    ratio = medians["cnnlab fit --help"] / medians["import torch, lightning"]
    print(f"cnnlab fit --help / import torch, lightning: {ratio:.2f}")


if __name__ == "__main__":
    main()
