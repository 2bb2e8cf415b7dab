"""Predict with an exported file, with only NumPy, Pillow and ONNX Runtime.

For example:

    from cnnlab.deploy.runtime import OnnxPredictor

    for answer in OnnxPredictor("model.onnx").predict(["a.jpg", "b.jpg"]):
        print(answer.path, answer.names, answer.probabilities.max())
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab import tree
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageError, InMemoryImage, Pixels, Place, collect_images, preprocess

Source = str | Path | Image.Image | npt.NDArray[np.uint8]
"""An image: a file, a Pillow image, or an array (H, W), (H, W, 1) or (H, W, 3)."""

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""ONNX Runtime's providers by short names."""
_BY_ITSELF = ("cuda", "cpu")
"""The default choice; the other providers need settings, or long preparations."""


_OTHER_FORMATS = {".xml": "OpenVINO", ".bin": "OpenVINO", ".pt2": "torch.export", ".ckpt": "cnnlab test and predict"}
"""What reads other files, by the end of their names."""


class _Opened(NamedTuple):
    path: str
    pixels: Pixels
    place: Place


class OnnxPredictor:
    """Predicts images with an exported file, which contains the preprocessing and the classes.

    Args:
        path: A file made by ``cnnlab export`` or ``cnnlab quantize``.
        providers: Names in PROVIDERS, in order of preference; if None, CUDA if it is available, else the CPU.
        threads: The number of CPU threads; as many as this process may use if None.
        conf: The least score of objects, 0..1; all objects if None.

    Raises:
        InputError: If ONNX Runtime or a provider is missing, or if the file does not exist or is not cnnlab's; if conf
            is out of range, or if the answers have no scores of objects.
    """

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        conf: float | None = None,
    ) -> None:
        self.path = Path(path)
        self.session = session(self.path, providers, threads)
        self.metadata = ModelMetadata.from_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        """The file's metadata."""
        self.output = self.metadata.output if conf is None else self.metadata.output.limited(conf)
        """The kind of the answers."""
        self._predict = session_predict(self.session)

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Map pixels (B, C, H, W), 0..255, to named arrays, such as probabilities (B, K), or (B, K, H, W) of pixels."""
        if not self.metadata.raw:
            return self._predict(images)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.metadata.mean, self.metadata.std))
        return self.metadata.output.decode(self._predict((images / np.float32(255) - mean) / std))

    def __call__(self, images: Source | Iterable[Source]) -> list[Any]:
        """Predict an image, a folder of images, or several.

        Raises:
            InputError: If an image cannot be read.
        """
        return list(self.predict([images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else images))

    def predict(
        self,
        images: Iterable[Source],
        batch_size: int = 32,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Any]:
        """Predict images one after the other, with at most two batches of them in memory.

        Args:
            images: The images in order; a folder stands for all images in it.
            batch_size: The number of images in a batch, 1 or more.
            on_error: Called with the path of an image that cannot be read, and the error; if None, the error is raised.

        Yields:
            The answer to each image in order, such as outputs.ClassPrediction; none for an image that cannot be read.

        Raises:
            InputError: If batch_size is below 1, or if an image cannot be read and on_error is None.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected 1 or more")
        batch: list[_Opened] = []
        for opened in self._read_ahead(_each(images), batch_size, on_error):
            if batch and (len(batch) == batch_size or batch[0].pixels.shape != opened.pixels.shape):
                yield from self._answers(batch)
                batch = []
            batch.append(opened)
        if batch:
            yield from self._answers(batch)

    def _read_ahead(
        self, images: Iterator[Source], count: int, on_error: Callable[[str, ImageError], None] | None
    ) -> Iterator[_Opened]:
        with ThreadPoolExecutor(cpu_count()) as pool:
            waiting: deque[tuple[Source, Future[_Opened]]] = deque()
            try:
                while True:
                    for image in islice(images, count - len(waiting)):
                        waiting.append((image, pool.submit(self._open, image)))
                    if not waiting:
                        return
                    image, future = waiting.popleft()
                    try:
                        opened = future.result()
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(str(image) if isinstance(image, (str, Path)) else "", error)
                        continue
                    yield opened
            finally:
                for _, future in waiting:
                    future.cancel()

    def _open(self, image: Source) -> _Opened:
        transform, path = self.metadata.transform, str(image) if isinstance(image, (str, Path)) else ""
        picture = transform.open(image) if isinstance(image, (str, Path)) else InMemoryImage(image, transform.tones)
        return _Opened(path, preprocess(picture, transform), transform.place(picture.size))

    def _answers(self, batch: list[_Opened]) -> list[Any]:
        stacked = np.stack([opened.pixels for opened in batch]).transpose(0, 3, 1, 2)
        arrays = self.run(np.ascontiguousarray(stacked))
        return self.output.answers(arrays, [one.path for one in batch], [one.place for one in batch])


def cpu_count() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_predict(opened: Any) -> Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """Return a session as a function of images that returns its outputs by name."""
    images_name, names = opened.get_inputs()[0].name, [output.name for output in opened.get_outputs()]
    return lambda images: dict(zip(names, opened.run(None, {images_name: images}), strict=True))


def session(path: Path, providers: Sequence[str] | None = None, threads: int | None = None) -> Any:
    """Open a file with ONNX Runtime.

    Args:
        path: See OnnxPredictor.
        providers: See OnnxPredictor.
        threads: See OnnxPredictor.

    Raises:
        InputError: See OnnxPredictor.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is missing: pip install 'cnnlab[deploy]' (or onnxruntime alone)") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder: name an ONNX file, such as {path / 'model.onnx'} (cnnlab export RUN)")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if (other := _OTHER_FORMATS.get(path.suffix)) is not None:
        raise InputError(f"{path} is a file for {other}, and ONNX Runtime reads ONNX: cnnlab export RUN makes one")
    available = onnxruntime.get_available_providers()
    chosen = [PROVIDERS[name] for name in _BY_ITSELF] if providers is None else list(map(_provider, providers))
    for name in chosen if providers is not None else []:
        if name not in available:
            raise InputError(f"this ONNX Runtime has no {name}: it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors only: it warns about its optimizations.
    # By itself it would take all processors of the machine, whether this process may use them or not.
    options.intra_op_num_threads = cpu_count() if threads is None else threads
    try:
        opened = onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in chosen if name in available]
        )
    except Exception as error:  # Its errors have no common class.
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be opened by ONNX Runtime: {reason}") from error
    if providers is not None and chosen[0] not in opened.get_providers():
        # ONNX Runtime silently uses another provider if a library of the requested one cannot be loaded.
        raise InputError(f"{chosen[0]} cannot be used here, though this ONNX Runtime has it: its libraries are missing")
    return opened


def _provider(name: str) -> str:
    if name in PROVIDERS.values():
        return name
    if name not in PROVIDERS:
        raise InputError(f"there is no provider {name!r}: {nearest(name, PROVIDERS)}")
    return PROVIDERS[name]


def _each(images: Iterable[Source]) -> Iterator[Source]:
    """Yield each image, and those of a folder in order."""
    for image in images:
        if isinstance(image, (str, Path)) and tree.is_dir(image):
            yield from collect_images([image])
        else:
            yield image
