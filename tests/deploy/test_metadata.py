"""What files say of themselves, today's and those of before answers had kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cnnlab.deploy.metadata import KEY, ModelMetadata
from cnnlab.deploy.runtime import OnnxPredictor
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.outputs import Labels, Masks
from tests.deploy.test_runtime import NAMES, images, make

__all__ = ["images"]

OLD: dict[str, Any] = {
    "task": "classification",
    "class_names": NAMES,
    "reading": {"channels": 3, "size": [28, 28], "crop": 0.9, "interpolation": "bicubic", "stretch": False},
    "activation": "softmax",
    "raw": False,
    "mean": [0.4, 0.4, 0.4],
    "std": [0.2, 0.2, 0.2],
    "dynamic_size": False,
    "checkpoint": {"file": "best.ckpt", "sha256": "0" * 64, "step": 3},
    "versions": {"cnnlab": "0.1.0"},
}
"""What cnnlab 0.1.0 wrote."""
TRANSFORM = EvalTransform(3, (28, 28), 0.9, "bicubic")


def read(content: Any) -> ModelMetadata:
    return ModelMetadata.from_metadata({KEY: json.dumps(content)}, "model.onnx")


def test_today_s_comes_back_as_it_was() -> None:
    said = ModelMetadata(
        Masks(NAMES, 7), EvalTransform(1, None, stretch=True), mean=[0.5], std=[0.2], dynamic_size=True
    )
    again = ModelMetadata.from_metadata({KEY: said.to_json()}, "model.onnx")
    assert again.to_json() == said.to_json()
    assert again.transform == said.transform
    assert isinstance(again.output, Masks)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, Labels(NAMES)),
        ({"activation": "sigmoid"}, Labels(NAMES, multi_label=True)),
        ({"task": "segmentation"}, Masks(NAMES)),
    ],
)
def test_what_was_written_before_is_read(changed: dict[str, Any], expected: Labels | Masks) -> None:
    found = read({**OLD, **changed})
    assert type(found.output) is type(expected)
    assert vars(found.output) == vars(expected)
    assert found.transform == TRANSFORM
    assert (found.mean, found.checkpoint["step"]) == ([0.4, 0.4, 0.4], 3)


@pytest.mark.parametrize(
    "content", [[], {}, {**OLD, "task": "detection"}, {**OLD, "reading": {}}, {"output": {"kind": "boxes"}}]
)
def test_what_another_version_wrote_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match=r"model\.onnx was exported by another version of cnnlab \(.+\): export it"):
        read(content)


@pytest.mark.parametrize(("kind", "raw"), [("labels", False), ("labels", True), ("masks", False)])
def test_an_old_file_predicts_as_it_did(tmp_path: Path, images: list[Path], kind: str, raw: bool) -> None:
    path = make(tmp_path / "model.onnx", TRANSFORM, kind, raw=raw)
    expected = OnnxPredictor(path)(images)
    file = onnx.load(path)
    task = {"labels": "classification", "masks": "segmentation"}[kind]
    onnx.helper.set_model_props(file, {KEY: json.dumps({**OLD, "task": task, "raw": raw})})
    onnx.save(file, tmp_path / "old.onnx")
    for one, other in zip(OnnxPredictor(tmp_path / "old.onnx")(images), expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
