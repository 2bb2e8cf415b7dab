"""Values: one or more numbers for each image, in the units of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.imaging import Place
from cnnlab.outputs.base import Arrays, Output


class ValuePrediction(NamedTuple):
    """The values of an image."""

    path: str
    """The image's file, "" if it has none."""
    values: npt.NDArray[np.float32]
    """(V,), in their own units."""
    spreads: npt.NDArray[np.float32] | None
    """(V,) one standard deviation of each, in its own unit; None if the network does not predict it."""


class Values(Output):
    """Values (B, V), optionally with the standard deviation of each, (B, V).

    Args:
        names: The names of the values, such as their columns in a table.
        spread: Whether each has a standard deviation.
        mean: Each value's mean in training, in its own unit: the value of a raw output of 0.
        std: Each value's standard deviation in training, in its own unit: the scale of the raw outputs.
        lowest: The lowest of several ordered levels, if the raw outputs are logits of each higher level.
    """

    kind = "values"
    noun = "value"
    raw_arrays = ("outputs",)
    """Standardized values, or logits of levels."""

    def __init__(
        self,
        names: Sequence[str],
        spread: bool = False,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        lowest: int | None = None,
    ) -> None:
        super().__init__(names)
        self.spread = spread
        self.arrays = ("values", "spreads") if spread else ("values",)
        self.mean, self.std = list(mean), list(std)
        self.lowest = lowest

    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs (B, V), (B, 2V) with the logarithms of variances, or (B, levels - 1), to values and spreads."""
        outputs = raw["outputs"].astype(np.float32)
        if self.lowest is not None:
            above = np.exp(-np.logaddexp(0, -outputs))
            levels = np.arange(1, outputs.shape[1] + 1, dtype=np.float32)
            mean = above.sum(axis=1, keepdims=True)
            variance = (above * (2 * levels - 1)).sum(axis=1, keepdims=True) - mean**2
            chosen = self.lowest + (above >= 0.5).sum(axis=1, keepdims=True).astype(np.float32)
            return {"values": chosen, "spreads": np.sqrt(variance.clip(min=0))}
        count = len(self.names)
        mean, std = (np.array(one, dtype=np.float32) for one in (self.mean, self.std))
        arrays = {"values": outputs[:, :count] * std + mean}
        return arrays | ({"spreads": np.exp(outputs[:, count:] / 2) * std} if self.spread else {})

    def answers(self, arrays: Arrays, paths: Sequence[str], places: Sequence[Place | None]) -> list[ValuePrediction]:
        """Each image's values and spreads."""
        spreads = arrays["spreads"] if self.spread else [None] * len(paths)
        return [ValuePrediction(*one) for one in zip(paths, arrays["values"], spreads, strict=True)]

    @property
    def columns(self) -> list[str]:
        """For each value its truth, its prediction, and its spread if there is one."""
        spreads = ["spread "] if self.spread else []
        return [f"{before}{name}" for name in self.names for before in ("target ", "", *spreads)]

    def rows(
        self, answer: ValuePrediction, truth: npt.NDArray[Any] | None, files: Mapping[str, str]
    ) -> list[list[object]]:
        """One row; an unknown truth is empty."""
        row: list[object] = []
        for i, value in enumerate(answer.values.tolist()):
            row += [_number(None if truth is None else float(truth[i])), _number(value)]
            row += [] if answer.spreads is None else [_number(float(answer.spreads[i]))]
        return [row]

    def describe(self, answer: ValuePrediction, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """Truth, prediction, spread and error of each value."""
        facts: dict[str, Any] = {}
        alone = len(self.names) == 1
        for i, name in enumerate(self.names):
            before = "" if alone else f"{name}, "
            if truth is not None:
                facts[f"{before}truth"] = _number(float(truth[i]))
            facts[f"{before}predicted"] = _number(float(answer.values[i]))
            if answer.spreads is not None:
                facts[f"{before}spread"] = _number(float(answer.spreads[i]))
            if truth is not None:
                facts[f"{before}error"] = _number(float(answer.values[i]) - float(truth[i]))
        return facts

    def caption(self, answer: ValuePrediction, truth: npt.NDArray[Any] | None) -> str:
        """The first value with its spread, and the true one."""
        spread = "" if answer.spreads is None else f" ±{answer.spreads[0]:.2g}"
        predicted = f"{self.names[0]} {answer.values[0]:.3g}{spread}"
        return predicted if truth is None else f"{predicted}\nis {float(truth[0]):.3g}"

    def label(self, target: npt.NDArray[Any]) -> str:
        """Each value."""
        return "\n".join(f"{name} {float(value):.3g}" for name, value in zip(self.names, target, strict=True))

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """None if no value is a number."""
        return None if np.isnan(target).all() else target

    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """The first value."""
        return [0 for _ in truths]

    def certainty(self, arrays: Arrays, name: int) -> str:
        """The predicted value."""
        return f"{float(arrays['values'][0, name]):.3g}"


def _number(value: float | None) -> str:
    """A number as text in a table; empty if it is unknown.

    >>> _number(0.123456789), _number(None), _number(float("nan"))
    ('0.123457', '', '')
    """
    return "" if value is None or np.isnan(value) else f"{value:.6g}"
