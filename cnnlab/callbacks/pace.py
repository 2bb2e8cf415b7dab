"""How much of a run's time pictures may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

_FREE = 10.0
_SHARE = 0.02


class Pace:
    """Keeps the time for pictures small: ten seconds of a run, and beyond these a fiftieth of its time."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The run begins."""
        self._began, self._spent = time.monotonic(), 0.0

    def allows(self, trainer: Trainer) -> bool:
        """Whether there is time for another picture; there always is after the first and the last epoch."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        allowed = _FREE + _SHARE * (time.monotonic() - self._began)
        return ends or trainer.current_epoch == 0 or self._spent <= allowed

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time that a picture takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - start
