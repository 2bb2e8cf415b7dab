"""Run cnnlab in a separate process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def run_cnnlab(*arguments: str) -> int:
    """Run ``cnnlab`` in a separate process, and return its exit status.

    The process receives SIGINT from the terminal, and SIGTERM from this function, so that it can save and stop.
    """
    process = subprocess.Popen([sys.executable, "-m", "cnnlab", *arguments])
    with _forward_sigterm(process):
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


@contextmanager
def _forward_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def forward(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    try:
        before = signal.signal(signal.SIGTERM, forward)
    except ValueError:  # Python sets signal handlers in the main thread only.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
