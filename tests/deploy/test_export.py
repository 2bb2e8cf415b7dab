"""Networks to files that compute the same, or to no file at all."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from timm.layers import Conv2dSame, get_same_padding
from torch import nn

from cnnlab.deploy import export as exporting
from cnnlab.deploy.certificate import certificate_of, verify
from cnnlab.deploy.export import DifferenceError, Format, Pipeline, export, load_onnx
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.runtime import OnnxPredictor
from cnnlab.deploy.same_padding import same_padding
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform
from cnnlab.models.decoding import LabelDecoder, MaskDecoder
from cnnlab.models.factory import create_network
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize
from cnnlab.models.unet import UNet, pad_to_multiple
from cnnlab.outputs import Labels, Masks


def pixels(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Noise, each image brighter than the one before: a network tells them apart even untrained."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, channels, height, width, generator=generator)
    return (noise * 255 * torch.linspace(0.1, 1, count)[:, None, None, None]).to(torch.uint8)


def whole(network: nn.Module, channels: int = 3) -> Pipeline:
    return Pipeline(Standardize([0.4] * channels, [0.2] * channels), network, LabelDecoder())


def about(
    classes: int = 10, channels: int = 3, size: tuple[int, int] | None = None, **settings: object
) -> ModelMetadata:
    names = [f"class {i}" for i in range(classes)]
    return ModelMetadata(Labels(names), EvalTransform(channels, size), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("simple_cnn", 28),
        pytest.param("resnet18", 64, marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_a_file_computes_what_its_network_does_at_any_batch(tmp_path: Path, name: str, size: int, raw: bool) -> None:
    torch.manual_seed(0)
    # Else an untrained ResNet gives nearly the same for all images, and any file would pass.
    settings: dict[str, Any] = {"zero_init_last": False} if name == "resnet18" else {}
    network = create_network(name, 10, 3, **settings).eval()
    images = pixels(5, 3, size, size)
    if raw:
        inputs, pipeline = Standardize([0.4] * 3, [0.2] * 3)(images), Pipeline(None, network, None)
    else:
        inputs, pipeline = images, whole(network)
    certificate = export(pipeline, inputs, tmp_path / "model.onnx", about(raw=raw))
    assert set(certificate["differences"]) == {"1", "2", "5"}
    assert max(certificate["differences"].values()) < 1e-4
    with torch.inference_mode():
        expected = network(Standardize([0.4] * 3, [0.2] * 3)(images))
        expected = expected if raw else expected.softmax(dim=1)
    assert expected.std(dim=0).max() > 1e-3  # else nothing is compared
    for batch in (1, 2, 5):
        found = load_onnx(tmp_path / "model.onnx")(inputs[:batch].numpy())
        np.testing.assert_allclose(found["logits" if raw else "probabilities"], expected[:batch], atol=1e-4)


def test_a_unet_s_file_takes_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = Pipeline(Standardize([0.4] * 3, [0.2] * 3), UNet(num_classes=3, base=4), MaskDecoder())
    masks = ModelMetadata(Masks(["a", "b", "c"]), EvalTransform(3, None), dynamic_size=True)
    certificate = export(pipeline, pixels(5, 3, 48, 64), tmp_path / "model.onnx", masks)
    assert any("37x49" in name for name in certificate["differences"])
    for shape in ((48, 64), (17, 33), (1, 1), (100, 40)):
        images = pixels(2, 3, *shape)
        with torch.inference_mode():
            expected = pipeline(images)["probabilities"]
        found = load_onnx(tmp_path / "model.onnx")(images.numpy())["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-4)


class Padded(nn.Module):
    """Layers with TensorFlow's padding on images that are padded to a multiple, as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Conv2dSame(3, 3, kernel, stride=2) for kernel in (3, 5, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(pad_to_multiple(images, 8))
        return features.flatten(2).amax(dim=2)


def test_tensorflow_s_padding_takes_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector's export for any size took many minutes: each layer's size was a longer expression."""
    torch.manual_seed(0)
    pipeline, written = whole(Padded()), []
    program = exporting._program

    def keep(*arguments: Any) -> Any:
        written.append(program(*arguments))
        return written[-1]

    monkeypatch.setattr(exporting, "_program", keep)
    export(pipeline, pixels(5, 3, 48, 64), tmp_path / "model.onnx", about(classes=3, dynamic_size=True))
    longest = max(len(str(node.meta["val"].shape)) for node in written[0].graph.nodes if "conv2d" in node.name)
    assert longest < 80
    for shape in ((48, 64), (17, 33), (1, 1), (100, 41)):
        images = pixels(2, 3, *shape)
        with torch.inference_mode():
            expected = pipeline(images)["probabilities"]
        found = load_onnx(tmp_path / "model.onnx")(images.numpy())["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_padding_in_whole_numbers_is_timm_s() -> None:
    for side, kernel, stride, dilation in itertools.product(range(1, 20), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2)):
        assert same_padding(side, kernel, stride, dilation) == get_same_padding(side, kernel, stride, dilation)


def test_an_example_of_one_image_freezes_no_batch(tmp_path: Path) -> None:
    """A batch that the example froze to 1 (pytorch/pytorch#148886, lightly-train#752)."""
    example = pixels(1, 1, 28, 28)
    exporting.FORMATS["onnx"].write(whole(SimpleCNN(), 1), example, tmp_path / "model.onnx", about(channels=1), None)
    for batch in (1, 2, 5):
        found = load_onnx(tmp_path / "model.onnx")(pixels(batch, 1, 28, 28).numpy())
        assert found["probabilities"].shape == (batch, 10)


def test_a_network_in_training_mode_is_exported_in_eval_mode_and_stays_as_it_was(tmp_path: Path) -> None:
    """A file with dropout inside, of a network that was exported while it was training."""
    network = SimpleCNN(dropout=0.9).train()
    network.compile()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    certificate = export(whole(network, 1), pixels(5, 1, 28, 28), tmp_path / "model.onnx", about(channels=1))
    assert max(certificate["differences"].values()) < 1e-5
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Dropout" not in kinds
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """The exporter needed onnxscript, and said so late (anomalib#3050)."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}.*cnnlab\[deploy\]"):
        export(whole(SimpleCNN(), 1), pixels(5, 1, 28, 28), tmp_path / "model.onnx", about(channels=1))


@pytest.mark.parametrize("shift", [2e-4, float("nan")])
def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """A file that predicts something else, and nobody is told (ultralytics#24893)."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older one")
    certificate_of(path).write_text("its certificate")
    honest = exporting.FORMATS["onnx"]

    def load(file: Path) -> exporting.Predict:
        predict = honest.load(file)

        def wrong(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
            found = predict(images)
            found["probabilities"][-1] += np.float32(shift) if len(images) == 5 else 0
            return found

        return wrong

    monkeypatch.setitem(exporting.FORMATS, "onnx", Format(honest.suffix, honest.write, load))
    with pytest.raises(DifferenceError, match=r"model\.onnx is not written.*--tolerance"):
        export(whole(SimpleCNN(), 1), pixels(5, 1, 28, 28), path, about(channels=1))
    assert path.read_bytes() == b"an older one"
    assert certificate_of(path).read_text() == "its certificate"
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.json"}


class Picky(nn.Module):
    """Decides by the values of its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.sum() > 0:
            return images.mean(dim=(2, 3))
        return images.amax(dim=(2, 3))


def test_a_network_that_cannot_be_exported_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Picky cannot be exported.*depend on the values"):
        export(whole(Picky()), pixels(5, 3, 8, 8), tmp_path / "model.onnx", about(3))
    assert not list(tmp_path.iterdir())


def test_the_file_says_all_that_it_takes_to_predict(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    said = ModelMetadata(
        Labels(["Ä", '"; drop', "<b>"]),
        EvalTransform(1, (28, 20), 0.9, "bicubic"),
        mean=[0.4],
        std=[0.2],
        checkpoint={"file": "best.ckpt", "sha256": "0" * 64, "step": 3},
        versions={"cnnlab": "1"},
    )
    export(whole(SimpleCNN(3), 1), pixels(5, 1, 28, 20), path, said)
    found = OnnxPredictor(path).metadata
    assert found.output.metadata() == said.output.metadata()
    assert replace(found, output=said.output) == said
    assert [one.name for one in onnx.load(path).graph.input] == ["images"]
    assert [one.name for one in onnx.load(path).graph.output] == ["probabilities"]
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_certificate_belongs_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    certificate = export(whole(SimpleCNN(), 1), pixels(5, 1, 28, 28), path, about(channels=1))
    assert verify(path) == certificate
    assert certificate["checker"] == "passed"
    assert certificate["files"]["model.onnx"]["bytes"] == path.stat().st_size
    # One bit of one weight.
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="sha256 is another"):
        verify(path)
    certificate_of(path).unlink()
    with pytest.raises(InputError, match="no certificate"):
        verify(path)
    path.rename(tmp_path / "other.onnx")
    certificate_of(tmp_path / "other.onnx").write_text(json.dumps(certificate))
    with pytest.raises(InputError, match=r"certificate of model\.onnx"):
        verify(tmp_path / "other.onnx")


@pytest.mark.parametrize("kind", ["pt2", "openvino"])
def test_other_formats_compute_the_same(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("openvino") if kind == "openvino" else None
    torch.manual_seed(0)
    path = tmp_path / f"model{exporting.FORMATS[kind].suffix}"
    pipeline = whole(SimpleCNN(), 1)
    certificate = export(pipeline, pixels(5, 1, 28, 28), path, about(channels=1), kind)
    assert max(certificate["differences"].values()) < 1e-5
    assert verify(path) == certificate
    images = pixels(3, 1, 28, 28)
    found, expected = exporting.FORMATS[kind].load(path)(images.numpy()), pipeline(images)
    assert set(found) == set(expected) == {"probabilities"}
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
    if kind == "openvino":
        path.with_suffix(".bin").write_bytes(b"other weights")
        with pytest.raises(InputError, match=r"model\.bin is not the file"):
            verify(path)


def test_a_signal_after_openvino_reaches_its_handler(tmp_path: Path) -> None:
    """OpenVINO's stacks for signal handlers, put back in the wrong order, end the process at the next signal."""
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    export(whole(SimpleCNN(), 1), pixels(5, 1, 28, 28), path, about(channels=1), "openvino")
    program = f"""
import signal
from pathlib import Path
from cnnlab.deploy.export import load_openvino
first = load_openvino(Path({str(path)!r}))
second = load_openvino(Path({str(path)!r}))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["handled"]
