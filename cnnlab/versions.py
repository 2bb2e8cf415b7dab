"""The versions that matter for a bug report, read without importing what they are of."""

from __future__ import annotations

import platform
from importlib import metadata

import cnnlab

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "jsonargparse",
    "numpy",
    "pillow",
    "wandb",
    "onnx",
    "onnxruntime",
)


def versions() -> dict[str, str]:
    """Name to version, "not installed" for extras that are absent."""
    found = {"cnnlab": cnnlab.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "platform": platform.platform()}
