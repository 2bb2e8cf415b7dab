"""Kinds of answers: their columns, files, images, descriptions and metadata in exported files. No torch."""

from collections.abc import Mapping
from typing import Any

from cnnlab.errors import InputError
from cnnlab.outputs.base import Arrays, Output
from cnnlab.outputs.boxes import Boxes, BoxPrediction
from cnnlab.outputs.instances import InstancePrediction, Instances
from cnnlab.outputs.labels import ClassPrediction, Labels
from cnnlab.outputs.masks import MaskPrediction, Masks
from cnnlab.outputs.table import AnswerWriter
from cnnlab.outputs.values import ValuePrediction, Values

OUTPUTS: dict[str, type[Output]] = {kind.kind: kind for kind in (Boxes, Instances, Labels, Masks, Values)}
"""The kinds by name."""


def create_output(metadata: Mapping[str, Any]) -> Output:
    """Create an output from the result of Output.metadata().

    Raises:
        InputError: If there is no such kind, or if it does not accept these values.
    """
    settings = {name: value for name, value in metadata.items() if name != "kind"}
    try:
        return OUTPUTS[metadata["kind"]](**settings)
    except (KeyError, TypeError) as error:
        raise InputError(f"this cnnlab knows no answers such as {dict(metadata)}: {error}") from error


__all__ = [
    "OUTPUTS",
    "AnswerWriter",
    "Arrays",
    "BoxPrediction",
    "Boxes",
    "ClassPrediction",
    "InstancePrediction",
    "Instances",
    "Labels",
    "MaskPrediction",
    "Masks",
    "Output",
    "ValuePrediction",
    "Values",
    "create_output",
]
