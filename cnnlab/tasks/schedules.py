"""Learning-rate schedules by name: a factor in 0..1 of each group's rate, over the whole run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from cnnlab.errors import InputError, nearest

Factor = Callable[[float], float]


def _constant() -> Factor:
    return lambda progress: 1.0


def _cosine(final: float = 0.0) -> Factor:
    return lambda progress: final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def _step(milestones: list[float] | None = None, gamma: float = 0.1) -> Factor:
    marks = [0.5, 0.75] if milestones is None else milestones
    return lambda progress: gamma ** sum(progress >= mark for mark in marks)


_FACTORS: dict[str, Callable[..., Factor]] = {
    "constant": _constant,
    "cosine": _cosine,
    # Smith and Topin 2018, "Super-convergence": a long rise, then down to zero. Momentum is not changed.
    "onecycle": _cosine,
    "step": _step,
}
SCHEDULES = (*_FACTORS, "plateau")
_DEFAULT_WARMUP = {"onecycle": 0.3}


def check_schedule(name: str, warmup: float | None, args: dict[str, Any]) -> None:
    """Raise InputError if there is no such schedule, or if it does not take these arguments."""
    if name not in SCHEDULES:
        raise InputError(f"there is no schedule {name!r}: {nearest(name, SCHEDULES)}")
    if warmup is not None and not 0 <= warmup < 1:
        raise InputError(f"warmup is {warmup}, expected a share of the run, from 0 up to (not including) 1")
    try:
        if name == "plateau":
            inspect.signature(ReduceLROnPlateau).bind(None, **args)
        else:
            _FACTORS[name](**args)
    except TypeError as error:
        raise InputError(f"schedule {name!r} does not take these schedule_args: {error}") from error


def factor(name: str, total_steps: int, warmup: float | None = None, **args: Any) -> Callable[[int], float]:
    """The factor of each step's learning rate.

    Args:
        name: constant; cosine (``final``: the last factor, 0); onecycle (cosine with a rise over 30 % of the run);
            step (``milestones``: shares of the run after the warm-up, 0.5 and 0.75; ``gamma``: 0.1).
        total_steps: The run's optimizer steps.
        warmup: The share of the run in which the factor rises linearly from near 0; the schedule's default if None.
        **args: The schedule's arguments.

    Returns:
        A function of the step (0 is the first) with values in 0..1.

    >>> [round(factor("cosine", 4)(step), 2) for step in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    >>> [factor("constant", 8, warmup=0.5)(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    shape = _FACTORS[name](**args)
    rise = round((_DEFAULT_WARMUP.get(name, 0.0) if warmup is None else warmup) * total_steps)

    def at(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return shape(min(1.0, (step - rise) / max(1, total_steps - rise)))

    return at


def linear_rise(step: int, steps: int) -> float:
    """The factor of plateau's warm-up after a number of steps: from 1 / steps to 1, as in torch's LinearLR.

    >>> [linear_rise(step, 4) for step in (0, 2, 4, 9)]
    [0.25, 0.625, 1.0, 1.0]
    """
    return 1 / steps + (1 - 1 / steps) * min(1.0, step / steps)


def create_schedules(
    name: str,
    optimizer: Optimizer,
    total_steps: float,
    warmup: float | None,
    monitor: str,
    mode: str,
    args: dict[str, Any],
) -> list[dict[str, Any]]:
    """Create the schedulers of factor(), or plateau, in the form that Lightning's configure_optimizers returns.

    Plateau multiplies the rate by ``factor`` (0.1) when the monitored metric, of which lower ("min") or higher ("max")
    values are better, has not improved for ``patience`` (10) validations. It takes torch's other arguments.

    Raises:
        InputError: If the schedule depends on the run's length and the run has none.
    """
    if not math.isfinite(total_steps) and (name != "constant" or warmup):
        raise InputError(
            f"schedule {name!r} spans the whole run, and this run has no end: give --trainer.max_epochs or "
            "--trainer.max_steps, or choose 'constant' without warm-up"
        )
    if name != "plateau":
        steps = int(total_steps) if math.isfinite(total_steps) else 1
        return [{"scheduler": LambdaLR(optimizer, factor(name, steps, warmup, **args)), "interval": "step"}]
    schedules: list[dict[str, Any]] = []
    if warmup:
        # LinearLR multiplies the current rate, so the warm-up keeps plateau's reductions.
        rise = max(1, round(warmup * total_steps))
        schedules.append({"scheduler": LinearLR(optimizer, 1 / rise, 1.0, rise), "interval": "step"})
    plateau = ReduceLROnPlateau(optimizer, mode=mode, **args)  # type: ignore[arg-type]
    schedules.append({"scheduler": plateau, "interval": "epoch", "monitor": monitor})
    return schedules
