"""Migration of configurations and flags from earlier versions of cnnlab to current names."""

from __future__ import annotations

import copy
import sys
from typing import Any

_SLOTS = {"validation_masks": "validation_pictures"}
"""Callback slots that have been renamed."""
_CLASSES = {
    "cnnlab.callbacks.ValidationMasks": "cnnlab.callbacks.ValidationPictures",
    "cnnlab.callbacks.PredictedMasks": "cnnlab.callbacks.PredictionTable",
}
_FLAGS = {
    "--callbacks.validation_masks": "--callbacks.validation_pictures",
    # Masks are now written by the callback that writes the table.
    "--callbacks.masks": "--callbacks.predictions.files",
    "--callbacks.masks.overlays": "--callbacks.predictions.overlays",
    "--callbacks.masks.probabilities": "--callbacks.predictions.probabilities",
    "--callbacks.validation_masks.images": "--callbacks.validation_pictures.images",
    # Of cnnlab analyze.
    "--initialisation": "--initialization",
    "--normalisations": "--normalizations",
}


def modern_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a configuration of any version to current names; returns the same object if nothing has changed.

    >>> modern_config({"callbacks": {"masks": False, "validation_masks": True}})["callbacks"]["validation_pictures"]
    True
    """
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, dict) or not {"masks", *_SLOTS} & set(callbacks):
        return config
    config = copy.deepcopy(config)
    slots = {_SLOTS.get(name, name): _modern_class(value) for name, value in config["callbacks"].items()}
    masks = slots.pop("masks", True)
    table = slots.get("predictions", True)
    if masks is not True and table is not False:
        settings = {"files": False} if masks is False else dict(masks.get("init_args") or {})
        own = table.get("init_args") or {} if isinstance(table, dict) else {}
        slots["predictions"] = {"class_path": "cnnlab.callbacks.PredictionTable", "init_args": {**own, **settings}}
    return {**config, "callbacks": slots}


def _modern_class(value: Any) -> Any:
    if isinstance(value, dict) and value.get("class_path") in _CLASSES:
        return {**value, "class_path": _CLASSES[value["class_path"]]}
    return value


def modern_flags(arguments: list[str]) -> list[str]:
    """Replace the old names of flags in a command line, and print one line to stderr for each that was given.

    >>> modern_flags(["R", "--model.lr=1"])
    ['R', '--model.lr=1']
    """
    modern = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in _FLAGS:
            print(f"{name} is called {_FLAGS[name]} now", file=sys.stderr)
        modern.append(_FLAGS.get(name, name) + equals + value)
    return modern
