import math
from typing import Any

import pytest
import torch

from cnnlab.errors import InputError
from cnnlab.tasks.schedules import SCHEDULES, check_schedule, create_schedules, factor


def rates(name: str, steps: int = 100, lr: float = 0.5, warmup: float | None = None, **args: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedules = create_schedules(name, optimizer, steps, warmup, "val/loss", "min", args)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for schedule in schedules:
            if schedule["interval"] == "step":
                schedule["scheduler"].step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [None, 0.2])
def test_rates_stay_between_zero_and_the_peak_and_reach_it(name: str, warmup: float | None) -> None:
    found = rates(name, warmup=warmup)
    assert max(found) == pytest.approx(0.5)
    assert min(found) >= 0
    if warmup:
        assert found[0] == pytest.approx(0.5 / 20)
        assert found[:20] == sorted(found[:20])


def test_cosine_follows_its_formula() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    assert rates("cosine") == pytest.approx(expected)
    assert rates("cosine", final=0.1)[-1] == pytest.approx(0.05, rel=0.01)


def test_onecycle_rises_for_thirty_percent_and_falls_to_nothing() -> None:
    found = rates("onecycle")
    assert found.index(max(found)) in (29, 30)
    assert found[-1] < 0.001


def test_step_falls_at_its_milestones() -> None:
    found = rates("step", milestones=[0.3, 0.6], gamma=0.5)
    assert [found[0], found[29], found[30], found[60]] == pytest.approx([0.5, 0.5, 0.25, 0.125])


def test_plateau_falls_when_the_metric_stalls_also_after_a_rise() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    args = {"patience": 1, "factor": 0.1}
    rise, plateau = create_schedules("plateau", optimizer, 10, 0.2, "val/loss", "min", args)
    assert plateau["monitor"] == "val/loss"
    for _ in range(4):
        optimizer.step()
        rise["scheduler"].step()
    for _ in range(4):
        plateau["scheduler"].step(1.0)
        rise["scheduler"].step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_the_last_step_of_a_long_run_is_still_in_range() -> None:
    assert factor("cosine", 10)(25) == pytest.approx(0.0)


def test_a_run_without_end_needs_a_constant_rate() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(InputError, match=r"max_epochs"):
        create_schedules("cosine", optimizer, math.inf, None, "val/loss", "min", {})
    assert create_schedules("constant", optimizer, math.inf, None, "val/loss", "min", {})


@pytest.mark.parametrize(
    ("name", "warmup", "args", "message"),
    [
        ("cosin", None, {}, "did you mean 'cosine'"),
        ("cosine", 1.0, {}, "warmup is 1.0"),
        ("cosine", None, {"finale": 1}, "finale"),
    ],
)
def test_wrong_settings_are_named(name: str, warmup: float | None, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_schedule(name, warmup, args)
