"""ClassTask and EncoderTask: the common bases of tasks with classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.loggers import Row
from cnnlab.outputs.table import distinct
from cnnlab.tasks.base import VisionTask
from cnnlab.tasks.steps import Stage


class ClassTask(VisionTask):
    """A task whose network has an output for each class.

    Args:
        num_classes: The number of classes.
        class_names: The classes' names in order; their numbers if None.
        **kwargs: See VisionTask.

    Raises:
        InputError: If the numbers of names and classes differ.
    """

    def __init__(self, num_classes: int = 10, class_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.num_classes = num_classes
        self.class_names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
        if len(self.class_names) != num_classes:
            raise InputError(f"there are {len(self.class_names)} class_names for {num_classes} classes")
        super().__init__(**kwargs)
        self.hparams["class_names"] = self.class_names

    @property
    def num_outputs(self) -> int:
        """One for each class."""
        return self.num_classes

    def result_tables(self, stage: Stage) -> dict[str, list[Row]]:
        """The confusion matrix, whose rows are the true classes, and each class's scores."""
        tables: dict[str, list[Row]] = {}
        matrix = self.tables.get(f"{stage}/confusion_matrix")
        if matrix is not None:
            columns = distinct(["truth \\ predicted", *self.class_names], "class")
            tables["confusion_matrix"] = [
                dict(zip(columns, [name, *row], strict=True))
                for name, row in zip(self.class_names, matrix.tolist(), strict=True)
            ]
        counts = self.class_counts(stage)
        if counts is not None:
            tables["classes"] = self.class_rows(counts)
        return tables

    def class_counts(self, stage: Stage) -> list[list[int]] | None:
        """For each class the numbers of correct, predicted and true samples or pixels; None if unknown."""
        matrix = self.tables.get(f"{stage}/confusion_matrix")
        if matrix is None:
            return None
        columns: list[Tensor] = [matrix.diagonal(), matrix.sum(dim=0), matrix.sum(dim=1)]
        return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def class_rows(self, counts: list[list[int]]) -> list[Row]:
        """A row for each class, from the result of class_counts(); None for undefined scores."""
        return [
            {"class": name, **precision_and_recall(*own), "f1": quotient(2 * own[0], own[1] + own[2]), "images": own[2]}
            for name, own in zip(self.class_names, counts, strict=True)
        ]


class EncoderTask(ClassTask):
    """A task whose network may have a timm network as its encoder, which pretrained weights are for.

    Args:
        **kwargs: See ClassTask; with network, encoder, channels and weights.

    Raises:
        InputError: If a head for classification is given.
    """

    @staticmethod
    @abstractmethod
    def create(name: str, num_classes: int, **kwargs: Any) -> nn.Module:
        """Create a network by name, with channels, encoder, weights, dropout and arguments of its own."""

    @staticmethod
    @abstractmethod
    def encoder_of(name: str, encoder: str | None) -> str | None:
        """The encoder of a network by name, where None is its usual one; None if it has none."""

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("head") is not None:
            raise InputError("model.head is for networks that classify images: leave it out")
        super().__init__(**kwargs)

    @property
    def backbone(self) -> str:
        """The encoder, which pretrained weights are for; the network itself if it has no encoder of its own."""
        network = str(self.hparams["network"])
        return self.encoder_of(network, self.hparams["encoder"]) or network

    def configure_network(self) -> nn.Module:
        """Create the network."""
        hparams = self.hparams
        settings = {name: hparams[name] for name in ("channels", "encoder", "weights", "dropout")}
        return self.create(hparams["network"], self.num_classes, **settings, **self.network_arguments())

    def network_arguments(self) -> dict[str, Any]:
        """The network's own arguments."""
        return dict(self.hparams["network_args"] or {})


def precision_and_recall(hits: int, predicted: int, true: int) -> Row:
    """Two scores of a class.

    >>> precision_and_recall(3, 4, 6)
    {'precision': 0.75, 'recall': 0.5}
    """
    return {"precision": quotient(hits, predicted), "recall": quotient(hits, true)}


def quotient(count: int, of: int) -> float | None:
    """A share with six digits; None if the total is 0."""
    return float(f"{count / of:.6g}") if of else None
