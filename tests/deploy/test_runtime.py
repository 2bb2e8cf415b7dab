"""Predicting with a file: the same pixels, the same predictions, bounded memory, and no torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cnnlab as package
from cnnlab.deploy.export import Pipeline, export
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.runtime import OnnxPredictor
from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, ImageError, LazyImage, preprocess
from cnnlab.models.decoding import LabelDecoder, MaskDecoder
from cnnlab.models.simple_cnn import SimpleCNN
from cnnlab.models.standardize import Standardize
from cnnlab.models.unet import UNet
from cnnlab.outputs import ClassPrediction, Labels, MaskPrediction, Masks

NAMES = ["a", "b", "c"]


def make(
    path: Path, reading: EvalTransform, kind: str = "labels", multi_label: bool = False, raw: bool = False
) -> Path:
    torch.manual_seed(0)
    is_label = kind == "labels"
    network = SimpleCNN(3, reading.channels) if is_label else UNet(3, reading.channels, base=2, depth=2)
    with torch.no_grad():
        # An untrained network hardly tells images apart.
        for parameter in network.parameters():
            parameter.mul_(2)
    mean, std = [0.4] * reading.channels, [0.2] * reading.channels
    standardize = Standardize(mean, std)
    about = ModelMetadata(
        Labels(NAMES, multi_label) if is_label else Masks(NAMES),
        reading,
        raw=raw,
        mean=mean,
        std=std,
        dynamic_size=reading.size is None,
    )
    images = torch.randint(0, 256, (5, reading.channels, *(reading.size or (32, 48))), dtype=torch.uint8)
    decoder = LabelDecoder(multi_label) if is_label else MaskDecoder()
    pipeline = Pipeline(None if raw else standardize, network, None if raw else decoder)
    export(pipeline, standardize(images) if raw else images, path, about)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = []
    for i in range(6):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 40 * (i + 1), (30 + i, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def test_files_pillow_s_images_arrays_and_folders_are_the_same(tmp_path: Path, images: list[Path]) -> None:
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, (28, 28), 0.9, "bicubic")))
    by_path = predictor(images)
    assert [found.path for found in by_path] == [str(path) for path in images]
    pillow = [Image.open(path) for path in images]
    arrays = [np.asarray(image) for image in pillow]
    for others in (
        predictor(pillow),
        predictor(arrays),
        predictor(tmp_path / "images"),
        predictor([tmp_path / "images"]),
    ):
        for one, other in zip(by_path, others, strict=True):
            np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert len({found.probabilities.tobytes() for found in by_path}) == len(images)
    first = predictor(images[0])[0]
    assert isinstance(first, ClassPrediction)
    assert first.names == [NAMES[first.labels[0]]]
    assert first.labels == [int(first.probabilities.argmax())]


def test_batches_change_nothing(tmp_path: Path, images: list[Path]) -> None:
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, (28, 28))))
    one, many = (list(predictor.predict(images, batch_size=size)) for size in (1, 4))
    for single, other in zip(one, many, strict=True):
        assert single.path == other.path
        np.testing.assert_allclose(single.probabilities, other.probabilities, atol=1e-6)
    with pytest.raises(InputError, match="batch_size"):
        list(predictor.predict(images, batch_size=0))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_raw_file_gives_the_same_probabilities(tmp_path: Path, images: list[Path], multi_label: bool) -> None:
    reading = EvalTransform(3, (28, 28))
    whole = OnnxPredictor(make(tmp_path / "whole.onnx", reading, multi_label=multi_label))
    raw = OnnxPredictor(make(tmp_path / "raw.onnx", reading, multi_label=multi_label, raw=True))
    for one, other in zip(whole(images), raw(images), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        if multi_label:
            assert isinstance(one, ClassPrediction)
            assert one.labels == np.flatnonzero(one.probabilities >= 0.5).tolist()


def test_masks_are_as_large_as_their_images(tmp_path: Path, images: list[Path]) -> None:
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, None, stretch=True), "masks"))
    for found, path in zip(predictor(images), images, strict=True):
        assert isinstance(found, MaskPrediction)
        height, width = LazyImage(path).size
        assert found.classes.shape == (height, width)
        assert found.probabilities is not None
        np.testing.assert_array_equal(found.classes, found.probabilities.argmax(axis=0))
    small = OnnxPredictor(make(tmp_path / "small.onnx", EvalTransform(3, (16, 24), stretch=True), "masks"))
    for found, path in zip(small(images), images, strict=True):
        assert isinstance(found, MaskPrediction)
        assert found.classes.shape == LazyImage(path).size
        assert found.probabilities is not None
        assert found.probabilities.shape == (3, 16, 24)


def test_a_file_reads_images_as_evaluation_does(tmp_path: Path, images: list[Path]) -> None:
    """Images were prepared otherwise after the export (Lightning-AI/pytorch-lightning#7279)."""
    reading = EvalTransform(1, (20, 28), 0.8, "lanczos")
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", reading))
    batch = np.stack([preprocess(LazyImage(path), reading) for path in images]).transpose(0, 3, 1, 2)
    expected = predictor.run(np.ascontiguousarray(batch))["probabilities"]
    np.testing.assert_allclose(np.stack([found.probabilities for found in predictor(images)]), expected, atol=1e-6)


def test_what_cannot_be_read_is_passed_over_where_that_is_wanted(tmp_path: Path, images: list[Path]) -> None:
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, (28, 28))))
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    mixed = [images[0], broken, tmp_path / "absent.png", images[1]]
    told: list[str] = []
    found = list(predictor.predict(mixed, on_error=lambda path, error: told.append(path)))
    assert [one.path for one in found] == [str(images[0]), str(images[1])]
    assert told == [str(broken), str(tmp_path / "absent.png")]
    with pytest.raises(ImageError, match=r"broken\.png"):
        predictor(mixed)
    with pytest.raises(ImageError, match="expected uint8"):
        predictor(np.zeros((4, 4, 3)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        predictor(tmp_path / "empty")


def test_no_more_than_two_batches_are_in_memory(tmp_path: Path, images: list[Path]) -> None:
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, (28, 28))))
    taken = given = most = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        for i in range(200):
            taken += 1
            yield images[i % len(images)]

    for _ in predictor.predict(endless(), batch_size=4):
        most = max(most, taken - given)
        given += 1
    assert given == 200
    assert most <= 8


def test_files_that_are_not_cnnlab_s_and_providers_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        OnnxPredictor(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match="cannot be opened"):
        OnnxPredictor(tmp_path / "text.onnx")
    path = make(tmp_path / "model.onnx", EvalTransform(3, (28, 28)))
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        OnnxPredictor(path, ["cud"])
    with pytest.raises(InputError, match="this ONNX Runtime has no TensorrtExecutionProvider"):
        OnnxPredictor(path, ["tensorrt", "cpu"])
    import onnx

    strange = onnx.load(path)
    del strange.metadata_props[:]
    onnx.save(strange, tmp_path / "strange.onnx")
    with pytest.raises(InputError, match="is not cnnlab's"):
        OnnxPredictor(tmp_path / "strange.onnx")
    onnx.helper.set_model_props(strange, {"cnnlab": '{"task": "other"}'})
    onnx.save(strange, tmp_path / "strange.onnx")
    with pytest.raises(InputError, match="another version"):
        OnnxPredictor(tmp_path / "strange.onnx")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which says how large a process is")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """A thousand images, whose pixels as the network takes them would be 150 MB."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.jpg")
        Image.fromarray(generator.integers(0, 255, (400, 533, 3)).astype(np.uint8)).save(paths[-1])
    predictor = OnnxPredictor(make(tmp_path / "model.onnx", EvalTransform(3, (224, 224))))

    def resident() -> float:
        found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1000

    sizes = {}
    for count, _ in enumerate(predictor.predict(paths[i % 20] for i in range(1000)), start=1):
        if count in (200, 1000):
            sizes[count] = resident()
    assert sizes[1000] - sizes[200] < 40


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """The Python of a virtual environment that has NumPy, Pillow, ONNX Runtime and nothing else."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    theirs = next((folder / "lib").glob("python*/site-packages"))
    for pattern in ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime"):
        for found in ours.glob(pattern):
            (theirs / found.name).symlink_to(found)
    (theirs / "cnnlab").symlink_to(Path(package.__file__).parent)
    return folder / "bin" / "python"


def test_predicting_takes_no_torch(tmp_path: Path, images: list[Path], without_torch: Path) -> None:
    path = make(tmp_path / "model.onnx", EvalTransform(3, (28, 28)))
    expected = OnnxPredictor(path)(images)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    absent = subprocess.run([without_torch, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert absent.returncode
    done = subprocess.run(
        [without_torch, "-m", "cnnlab", "infer", path, tmp_path / "images", "--out", tmp_path / "found.csv"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert not done.returncode, done.stderr
    lines = (tmp_path / "found.csv").read_text().splitlines()
    assert lines[0] == "index,path,target,label,name,a,b,c"
    assert [line.split(",")[4] for line in lines[1:]] == [
        one.names[0] for one in expected if isinstance(one, ClassPrediction)
    ]
