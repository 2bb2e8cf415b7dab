"""Commands that start commands, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def run_cnnlab(*arguments: str) -> int:
    """Run ``cnnlab`` in a process of its own; its exit status.

    A signal lets it save and stop, as it would by itself: Ctrl-C reaches it anyway, SIGTERM is handed on.
    """
    process = subprocess.Popen([sys.executable, "-m", "cnnlab", *arguments])
    with _handed_on(process):
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def hand_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    try:
        before = signal.signal(signal.SIGTERM, hand_on)
    except ValueError:  # Not in the main thread, where Python takes no handlers.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
