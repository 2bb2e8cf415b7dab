"""INT8: smaller, nearly as good, and what suffers most in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cnnlab.deploy.export import Pipeline, Predict, export, load_onnx
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.quantize import quantize_dynamic, quantize_static
from cnnlab.deploy.runtime import OnnxPredictor
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.models.decoding import LabelDecoder
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize
from cnnlab.outputs import Labels
from tests.conftest import patterns

ABOUT = ModelMetadata(Labels([str(i) for i in range(10)]), EvalTransform(1, (28, 28)), mean=[0.5], std=[0.5])


def images(count: int = 64) -> np.ndarray:
    return patterns(count, seed=3)[0][:, None]


def exported(network: nn.Module, path: Path) -> Pipeline:
    pipeline = Pipeline(Standardize([0.5], [0.5]), network, LabelDecoder())
    export(pipeline, torch.from_numpy(images()), path, ABOUT)
    return pipeline


class Bright(nn.Module):
    """Tells bars apart by where they are, in the second of three convolutions; its weights may have an outlier.

    The outlier meets a channel that is always 0, and makes nothing but the steps of 8 bits too large.
    """

    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.second = nn.Conv2d(2, 10, (28, 28))
        self.third = nn.Conv2d(10, 10, 1)
        with torch.no_grad():
            self.first.weight.fill_(1.0)
            self.first.bias = nn.Parameter(torch.tensor([0.0, -10.0]))
            self.second.weight.zero_()
            for label in range(10):
                self.second.weight[label, 0, 2 + 2 * label : 6 + 2 * label, 4:24] = 0.2
                self.second.weight[label, 0, :, 4:24] -= 0.03
            self.second.weight[:, 1, 0, 0] = outlier
            self.second.bias = nn.Parameter(torch.zeros(10))
            self.third.weight.copy_(torch.eye(10).view(10, 10, 1, 1))
            self.third.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.third(self.second(self.first(x).relu())).flatten(1)
        return logits


def float_kernels(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the convolutions' weights that are not quantized."""
    graph = onnx.load(path).graph
    floats = {one.name: tuple(one.dims) for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    return [floats[node.input[1]] for node in graph.node if node.op_type == "Conv" and node.input[1] in floats]


def accuracy(predict: Predict) -> float:
    pixels, labels = patterns(64, seed=3)
    return float((predict(pixels[:, None])["probabilities"].argmax(axis=1) == labels).mean())


def test_a_network_becomes_a_quarter_and_computes_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported(SimpleCNN(), tmp_path / "float.onnx")
    found = quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [images()], lambda predict: 1.0, 0.0)
    assert (found.layers, found.float_layers) == (5, [])
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * (tmp_path / "float.onnx").stat().st_size
    model = onnx.load(tmp_path / "int8.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 4
    # Standardization and softmax are as they were: 8 bits went in, and probabilities come out.
    consumers = {name: node.op_type for node in model.graph.node for name in node.input}
    assert consumers["images"] == "Cast"
    assert model.graph.node[-1].op_type == "Softmax"
    both = [load_onnx(tmp_path / name)(images())["probabilities"] for name in ("int8.onnx", "float.onnx")]
    difference = np.abs(both[0] - both[1])
    assert 0 < difference.max() < 0.05
    # It still says how images are read.
    assert OnnxPredictor(tmp_path / "int8.onnx").metadata.to_json() == ABOUT.to_json()
    assert {path.name for path in tmp_path.iterdir()} >= {"float.onnx", "int8.onnx"}
    assert not (tmp_path / "prepared.onnx").exists()


def test_the_layer_that_hurts_most_is_left_in_float(tmp_path: Path) -> None:
    exported(Bright(3000.0), tmp_path / "float.onnx")
    assert accuracy(load_onnx(tmp_path / "float.onnx")) == 1.0
    everything = quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [images()], accuracy, 1.0)
    assert everything.drop > 0.5
    found = quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [images()], accuracy, 0.01)
    assert found.drop <= 0.01
    assert accuracy(load_onnx(tmp_path / "int8.onnx")) == found.metric
    assert len(found.float_layers) == 1
    # And what takes its output: else ONNX Runtime quantizes its weights when it opens the file.
    assert float_kernels(tmp_path / "int8.onnx") == [(10, 2, 28, 28), (10, 10, 1, 1)]
    # Nothing is left over where nothing hurts.
    exported(Bright(1.0), tmp_path / "float.onnx")
    assert (
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [images()], accuracy, 0.01).float_layers == []
    )


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_calibrations(tmp_path: Path, calibration: str) -> None:
    exported(Bright(1.0), tmp_path / "float.onnx")
    found = quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", [images(16), images(5)], accuracy, 0.5, calibration=calibration
    )
    assert found.metric >= 0.5
    with pytest.raises(InputError, match="choose from 'entropy'"):
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [images(16)], accuracy, 0.5, calibration="x")


def test_dynamic_quantisation_is_for_linear_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported(SimpleCNN(), tmp_path / "float.onnx")
    assert quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx") == "part"
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert "Conv" in kinds
    assert "ConvInteger" not in kinds
    assert "MatMulInteger" in kinds
    exported(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), tmp_path / "linear.onnx")
    assert quantize_dynamic(tmp_path / "linear.onnx", tmp_path / "int8.onnx") == "all"
    exported(Bright(1.0), tmp_path / "conv.onnx")
    with pytest.raises(InputError, match="take static"):
        quantize_dynamic(tmp_path / "conv.onnx", tmp_path / "int8.onnx")
