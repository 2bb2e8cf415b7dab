"""Configurations and flags of before names changed."""

from __future__ import annotations

from typing import Any

import pytest

from cnnlab.migration import modern_config

TABLE = "cnnlab.callbacks.PredictionTable"
MASKS = {"class_path": "cnnlab.callbacks.PredictedMasks", "init_args": {"overlays": False, "probabilities": True}}
PICTURES = {"class_path": "cnnlab.callbacks.ValidationMasks", "init_args": {"images": 2}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"masks": True, "validation_masks": False}, {"validation_pictures": False}),
        ({"masks": False}, {"predictions": {"class_path": TABLE, "init_args": {"files": False}}}),
        ({"masks": MASKS}, {"predictions": {"class_path": TABLE, "init_args": MASKS["init_args"]}}),
        (
            {"masks": MASKS, "predictions": {"class_path": TABLE, "init_args": {"pictures": 3}}},
            {
                "predictions": {
                    "class_path": TABLE,
                    "init_args": {"pictures": 3, "overlays": False, "probabilities": True},
                }
            },
        ),
        ({"masks": {"class_path": MASKS["class_path"]}}, {"predictions": {"class_path": TABLE, "init_args": {}}}),
        ({"masks": MASKS, "predictions": False}, {"predictions": False}),
        (
            {"validation_masks": PICTURES},
            {"validation_pictures": {**PICTURES, "class_path": "cnnlab.callbacks.ValidationPictures"}},
        ),
        ({"masks": True, "predictions": True, "ema": True}, {"predictions": True, "ema": True}),
    ],
)
def test_old_slots_become_today_s(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = repr(old)
    assert modern_config({"callbacks": old, "seed": 1}) == {"callbacks": new, "seed": 1}
    assert repr(old) == before


@pytest.mark.parametrize("config", [{}, {"callbacks": None}, {"callbacks": {"ema": True}}])
def test_what_is_modern_stays_the_same_object(config: dict[str, Any]) -> None:
    assert modern_config(config) is config
