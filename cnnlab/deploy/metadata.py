"""The metadata of an exported file: everything needed to predict with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.outputs import Output, create_output
from cnnlab.writing import to_json

KEY = "cnnlab"
"""The metadata's key; its value is JSON."""


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata inside an exported file."""

    output: Output
    """The kind of its answers, with class names or the like."""
    transform: EvalTransform
    """The preprocessing from an image file to its input."""
    raw: bool = False
    """Whether it takes standardized floats and returns raw outputs, instead of uint8 pixels and decoded arrays."""
    mean: Sequence[float] = ()
    """Per channel, in 0..1: subtracted inside the network, or by the caller of a raw file."""
    std: Sequence[float] = ()
    """Per channel, in 0..1: divided by inside the network, or by the caller of a raw file."""
    dynamic_size: bool = False
    """Whether it takes images of any height and width."""
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint it was made from: file, sha256, step."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The library versions it was made with."""

    @property
    def array_names(self) -> tuple[str, ...]:
        """Return the names of the file's outputs, in order."""
        return self.output.raw_arrays if self.raw else self.output.arrays

    def to_json(self) -> str:
        """Return the metadata as text, to store in a file."""
        named = {"output": self.output.metadata(), "transform": self.transform._asdict()}
        return to_json({**vars(self), **named}, indent=None)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: object) -> ModelMetadata:
        """Read the metadata of a file.

        Args:
            metadata: The file's metadata.
            path: The file, for error messages.

        Raises:
            InputError: If there is no metadata of cnnlab, or if it is from another version.
        """
        if KEY not in metadata:
            raise InputError(
                f"{path} does not say how images are read and what its classes are: it is not cnnlab's; make one with "
                "cnnlab export"
            )
        try:
            content = _modern(json.loads(metadata[KEY]))
            transform = content["transform"]
            # JSON has no tuples.
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in transform.items()
            }
            transform = EvalTransform(**plain)
            return cls(**{**content, "output": create_output(content["output"]), "transform": transform})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was exported by another version of cnnlab ({error}): export it again") from error


_KINDS = {"classification": "labels", "segmentation": "masks"}


def _modern(content: dict[str, Any]) -> dict[str, Any]:
    """Convert metadata of cnnlab before 0.2, which had a task, class names, an activation and a reading, to today's."""
    if "output" in content:
        return content
    kind = _KINDS[content.pop("task")]
    output: dict[str, Any] = {"kind": kind, "names": content.pop("class_names")}
    several = content.pop("activation", "softmax") == "sigmoid"
    if kind == "labels":
        output["multi_label"] = several
    transform = content.pop("reading")
    return {**content, "output": output, "transform": transform}
