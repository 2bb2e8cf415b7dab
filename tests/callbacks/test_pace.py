import time
from types import SimpleNamespace
from typing import Any

import pytest

from cnnlab.callbacks.pace import Pace


def test_pictures_take_a_small_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 4 s after each epoch of 10 s would take 29 % of a run."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace, drawn = Pace(), []
    pace.start()
    for epoch in range(500):
        trainer: Any = SimpleNamespace(current_epoch=epoch, max_epochs=500, should_stop=False)
        now[0] += 10
        if pace.allows(trainer):
            drawn.append(epoch)
            with pace.timed():
                now[0] += 4
    assert drawn[:3] == [0, 1, 2]  # The first ones cost little, whatever their share is.
    assert drawn[-1] == 499
    assert 4 * len(drawn) == pytest.approx(10 + 0.02 * now[0], abs=8)
    stopped: Any = SimpleNamespace(current_epoch=400, max_epochs=-1, should_stop=True)
    assert pace.allows(stopped)


def test_the_time_of_a_picture_that_fails_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()

    def fail() -> None:
        with pace.timed():
            now[0] += 60
            raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        fail()
    assert not pace.allows(SimpleNamespace(current_epoch=3, max_epochs=9, should_stop=False))  # type: ignore[arg-type]
