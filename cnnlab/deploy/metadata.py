"""What an exported file says of itself: all that it takes to predict with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform

KEY = "cnnlab"
"""The metadata's key; its value is JSON."""


@dataclass(frozen=True)
class ModelMetadata:
    """What travels inside an exported file."""

    task: Literal["classification", "segmentation"]
    """What it tells: the classes of images, or of pixels."""
    class_names: Sequence[str]
    """The classes, in the order of its output."""
    reading: EvalTransform
    """How an image file becomes its input."""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """What makes probabilities of logits; sigmoid where an image may have several classes."""
    raw: bool = False
    """Whether it takes standardised floats and returns logits, instead of uint8 pixels and probabilities."""
    mean: Sequence[float] = ()
    """Per channel, in 0..1: inside the network, or what a raw one expects to have been subtracted."""
    std: Sequence[float] = ()
    """Per channel, in 0..1: inside the network, or what a raw one expects to have been divided by."""
    dynamic_size: bool = False
    """Whether it takes images of any height and width."""
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint that it was made from: file, sha256, step."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions that it was made with."""

    def to_json(self) -> str:
        """As text for a file's metadata."""
        return json.dumps({**asdict(self), "reading": self.reading._asdict()}, ensure_ascii=False)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: object) -> ModelMetadata:
        """Read what a file says.

        Args:
            metadata: The file's metadata.
            path: The file, for the errors.

        Raises:
            InputError: If it says nothing, or something else.
        """
        if KEY not in metadata:
            raise InputError(
                f"{path} does not say how images are read and what its classes are: it is not cnnlab's; make one with "
                "cnnlab export"
            )
        try:
            said = json.loads(metadata[KEY])
            reading = said["reading"]
            size = tuple(reading["size"]) if reading["size"] is not None else None
            return cls(**{**said, "reading": EvalTransform(**{**reading, "size": size})})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was exported by another version of cnnlab ({error}): export it again") from error
