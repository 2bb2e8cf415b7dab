"""What an exported file says of itself: all that it takes to predict with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.outputs import Output, create_output

KEY = "cnnlab"
"""The metadata's key; its value is JSON."""


@dataclass(frozen=True)
class ModelMetadata:
    """What travels inside an exported file."""

    output: Output
    """The kind of its answers, and what they speak of."""
    transform: EvalTransform
    """How an image file becomes its input."""
    raw: bool = False
    """Whether it takes standardized floats and returns raw outputs, instead of uint8 pixels and decoded arrays."""
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

    @property
    def array_names(self) -> tuple[str, ...]:
        """The names of what the file returns, in order."""
        return self.output.raw_arrays if self.raw else self.output.arrays

    def to_json(self) -> str:
        """As text for a file's metadata."""
        named = {"output": self.output.metadata(), "transform": self.transform._asdict()}
        return json.dumps({**vars(self), **named}, ensure_ascii=False)

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
            content = _modern(json.loads(metadata[KEY]))
            transform = content["transform"]
            size = tuple(transform["size"]) if transform["size"] is not None else None
            transform = EvalTransform(**{**transform, "size": size})
            return cls(**{**content, "output": create_output(content["output"]), "transform": transform})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was exported by another version of cnnlab ({error}): export it again") from error


_KINDS = {"classification": "labels", "segmentation": "masks"}


def _modern(content: dict[str, Any]) -> dict[str, Any]:
    """What files of cnnlab before 0.2 say, as today's: they had a task, class names, an activation and a reading."""
    if "output" in content:
        return content
    kind = _KINDS[content.pop("task")]
    output: dict[str, Any] = {"kind": kind, "names": content.pop("class_names")}
    several = content.pop("activation", "softmax") == "sigmoid"
    if kind == "labels":
        output["multi_label"] = several
    transform = content.pop("reading")
    return {**content, "output": output, "transform": transform}
