"""Labels: one class, or any number of them, for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.imaging import Place
from cnnlab.outputs.base import Arrays, Output


class ClassPrediction(NamedTuple):
    """The classes of an image."""

    path: str
    """The image's file, "" if it has none."""
    labels: list[int]
    """The numbers of its classes: one, or any number of them with multi-label data."""
    names: list[str]
    """The names of its classes."""
    probabilities: npt.NDArray[np.float32]
    """(K,), of each class."""


class Labels(Output):
    """The probabilities (B, K) of each image's classes.

    Args:
        names: The classes in order.
        multi_label: Whether an image may have any number of classes: those of at least 0.5 are predicted.
    """

    kind = "labels"
    arrays = ("probabilities",)
    shares = ("probability", "probability of the truth")

    def __init__(self, names: Sequence[str], multi_label: bool = False) -> None:
        super().__init__(names)
        self.multi_label = multi_label

    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Logits (B, K) to probabilities."""
        return {"probabilities": probabilities_of(raw["logits"], self.multi_label)}

    def answers(self, arrays: Arrays, paths: Sequence[str], places: Sequence[Place | None]) -> list[ClassPrediction]:
        """The most probable class of each image, or all of at least 0.5."""
        predictions = []
        for path, probabilities in zip(paths, arrays["probabilities"], strict=True):
            labels = (
                np.flatnonzero(probabilities >= 0.5).tolist() if self.multi_label else [int(probabilities.argmax())]
            )
            predictions.append(ClassPrediction(path, labels, [self.names[label] for label in labels], probabilities))
        return predictions

    @property
    def columns(self) -> list[str]:
        """Truth, prediction, its name, and each class's probability."""
        return ["target", "label", "name", *self.names]

    def rows(
        self, answer: ClassPrediction, truth: npt.NDArray[Any] | None, files: Mapping[str, str]
    ) -> list[list[object]]:
        """One row; several classes are separated by ";"."""
        target = "" if truth is None else ";".join(map(str, self._numbers(truth)))
        numbers = ";".join(map(str, answer.labels))
        return [[target, numbers, ";".join(answer.names), *(f"{value:.6g}" for value in answer.probabilities.tolist())]]

    def describe(self, answer: ClassPrediction, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """The true and the predicted classes, with their probabilities if there is one of each."""
        facts: dict[str, Any] = {} if truth is None else {"truth": self._named(self._numbers(truth))}
        facts["predicted"] = self._named(answer.labels)
        if not self.multi_label:
            facts["probability"] = round(float(answer.probabilities[answer.labels[0]]), 6)
            if truth is not None:
                facts["probability of the truth"] = round(float(answer.probabilities[int(truth)]), 6)
        return facts

    def caption(self, answer: ClassPrediction, truth: npt.NDArray[Any] | None) -> str:
        """The predicted classes, and the true ones if they differ."""
        predicted = self._named(answer.labels)
        if not self.multi_label:
            predicted += f" {answer.probabilities[answer.labels[0]]:.0%}"
        if truth is None or self.is_right(answer, truth):
            return predicted
        return f"{predicted}\nis {self._named(self._numbers(truth))}"

    def is_right(self, answer: ClassPrediction, truth: npt.NDArray[Any] | None) -> bool | None:
        """Whether the predicted classes equal the true ones."""
        return None if truth is None else answer.labels == self._numbers(truth)

    def label(self, target: npt.NDArray[Any]) -> str:
        """The class's name; for a mixture, the name and share of each class."""
        if not target.ndim:
            return self.names[int(target)]
        shares = {self.names[i]: float(target[i]) for i in np.flatnonzero(target).tolist()}
        return "\n".join(name if share == 1 else f"{name} {share:.0%}" for name, share in shares.items()) or "-"

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """None for class -1."""
        return None if not target.ndim and target < 0 else target

    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """The true class; with multi-label data the predicted one."""
        return [None if truth is None or truth.ndim else int(truth) for truth in truths]

    def group(self, truth: npt.NDArray[Any]) -> int | None:
        """The class; None with multi-label data."""
        return None if truth.ndim else int(truth)

    def certainty(self, arrays: Arrays, name: int) -> str:
        """The class's probability."""
        return f"{float(arrays['probabilities'][0, name]):.0%}"

    def _numbers(self, truth: npt.NDArray[Any]) -> list[int]:
        return [int(i) for i in np.flatnonzero(np.nan_to_num(truth))] if truth.ndim else [int(truth)]

    def _named(self, numbers: Sequence[int]) -> str:
        return "; ".join(self.names[number] for number in numbers) or "-"


def probabilities_of(logits: npt.NDArray[Any], sigmoid: bool) -> npt.NDArray[np.float32]:
    """Logits (B, K, ...) to probabilities: sigmoid of each class, or softmax over the classes."""
    if sigmoid:
        each: npt.NDArray[np.float32] = np.exp(-np.logaddexp(0, -logits))
        return each
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    together: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return together
