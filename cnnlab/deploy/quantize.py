"""INT8 quantization of a float ONNX file with ONNX Runtime; layers that lose the most accuracy stay in float."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnlab.deploy.export import Predict, load_onnx
from cnnlab.errors import InputError, nearest

Batches = Sequence[npt.NDArray[Any]]
"""Batches of images (B, C, H, W), in the form that the file takes."""

CALIBRATIONS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""The range of an activation: all values, the range that loses the least information (Migacz 2017), or most values."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FEW = 16
"""The number of images that is enough to rank the layers by their errors."""


class Quantized(NamedTuple):
    """The result of a quantization."""

    metric: float
    """The metric of the file."""
    drop: float
    """How much worse the metric is than the float file's."""
    float_layers: list[str]
    """The layers left in float, because quantizing them costs too much accuracy."""
    layers: int
    """The number of layers."""


def quantize_static(
    source: Path,
    path: Path,
    batches: Batches,
    measure: Callable[[Predict], float],
    max_drop: float,
    higher_is_better: bool = True,
    calibration: str = "minmax",
    reduce_range: bool = False,
) -> Quantized:
    """Quantize weights (per channel, int8) and activations (uint8) with QuantizeLinear and DequantizeLinear nodes.

    Ranges of activations are measured on the given images. If the metric falls by more than max_drop, some layers are
    left in float: those that change the output most when only they are quantized, and as few as possible.

    Args:
        source: The float file.
        path: The file to write.
        batches: Images for calibration, from the training set, so that the metric is measured on other images.
        measure: Computes the metric of a prediction function.
        max_drop: How much worse than the float file's metric it may be.
        higher_is_better: Whether a higher metric is better.
        calibration: A name in CALIBRATIONS.
        reduce_range: Use 7 bits for weights: on older processors (AVX2, AVX-512 without VNNI), sums of 8 bits saturate.

    Raises:
        InputError: If there is no convolution or linear layer, or no such calibration.
    """
    if calibration not in CALIBRATIONS:
        raise InputError(f"there is no calibration {calibration!r}: {nearest(calibration, CALIBRATIONS)}")
    import onnx

    prepared = path.with_name("prepared.onnx")
    layers, around, takers = _prepare(source, prepared)
    if not layers:
        raise InputError(f"{source} has no convolution or linear layer to quantize")
    input_name = onnx.load(str(prepared)).graph.input[0].name

    def write(target: Path, images: Batches, in_float: Sequence[str]) -> None:
        from onnxruntime import quantization

        with _quiet():
            quantization.quantize_static(
                str(prepared),
                str(target),
                _reader(images, input_name),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
                nodes_to_exclude=[*around, *in_float],
                calibrate_method=quantization.CalibrationMethod[CALIBRATIONS[calibration]],
                # One batch at a time: else the activations of all images are kept, and must have one shape.
                extra_options={"CalibStridedMinMax": 1},
            )

    def attempt(float_layers: Sequence[str]) -> Quantized:
        # Also the nodes after them: between two quantized tensors, ONNX Runtime would quantize their weights itself.
        write(path, batches, [*float_layers, *(name for layer in float_layers for name in takers[layer])])
        found = measure(load_onnx(path))
        drop = before - found if higher_is_better else found - before
        return Quantized(found, drop, list(float_layers), len(layers))

    before = measure(load_onnx(source))
    best = attempt([])
    if not best.drop <= max_drop:  # NaN is a failure too.
        few = [np.concatenate(list(batches))[:_FEW]] if len({b.shape[1:] for b in batches}) == 1 else batches[:1]
        expected = [load_onnx(source)(images) for images in few]

        def harm(layer: str) -> float:
            alone = path.with_name("alone.onnx")
            write(alone, few, [other for other in layers if other != layer])
            predict = load_onnx(alone)
            return sum(
                float(np.square(predict(images)[name] - value).sum())
                for images, arrays in zip(few, expected, strict=True)
                for name, value in arrays.items()
            )

        ranked = sorted(layers, key=harm, reverse=True)
        best = attempt(ranked[: fewest(lambda count: attempt(ranked[:count]).drop <= max_drop, len(ranked))])
    for left in (prepared, path.with_name("alone.onnx")):
        left.unlink(missing_ok=True)
    return best


def fewest(good: Callable[[int], bool], most: int) -> int:
    """Return the smallest count from 1 to ``most`` that is good, if good counts stay good; ``most`` if none is.

    >>> fewest(lambda count: count >= 5, 20)
    5
    """
    low, high = 0, 1
    while high < most and not good(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def quantize_dynamic(source: Path, path: Path) -> Literal["all", "part"]:
    """Quantize the weights of linear layers; their activations are quantized at run time, image by image.

    Convolutions stay in float: quantized at run time, they are slower than in float (as ONNX Runtime's recipes say).

    Returns:
        "part" if there are convolutions, "all" if there are none.

    Raises:
        InputError: If there is no linear layer.
    """
    import onnx
    from onnxruntime import quantization

    kinds = {node.op_type for node in onnx.load(str(source)).graph.node}
    if not kinds & {"Gemm", "MatMul"}:
        raise InputError(f"{source} has no linear layer, and dynamic quantization reaches no others: take static")
    with _quiet():
        quantization.quantize_dynamic(
            str(source),
            str(path),
            op_types_to_quantize=["Gemm", "MatMul"],  # The library converts Gemm to MatMul.
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    return "part" if kinds & {"Conv", "ConvTranspose"} else "all"


def _prepare(source: Path, path: Path) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Fold constants and infer shapes.

    Returns:
        The names of the layers; the names of the nodes before the first layer (the standardization, whose input already
        has 8 bits) and after the last one (which make probabilities); and for each layer, the nodes after it.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet():
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    model = onnx.load(str(path))
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    onnx.save(model, str(path))
    nodes = list(model.graph.node)
    layers = [node.name for node in nodes if node.op_type in _LAYERS]
    # Nodes are in the order of computation.
    after_one: set[str] = set()
    before_one: set[str] = set()
    for node in nodes:
        if node.op_type in _LAYERS or after_one & set(node.input):
            after_one |= set(node.output)
    for node in reversed(nodes):
        if node.op_type in _LAYERS or before_one & set(node.output):
            before_one |= set(node.input)
    around = [
        node.name
        for node in nodes
        if node.op_type not in _LAYERS
        and (
            not after_one & set(node.output)
            or (not before_one & set(node.output) and node.op_type in ("Softmax", "Sigmoid"))
        )
    ]
    takers = {
        layer.name: [node.name for node in nodes if set(layer.output) & set(node.input)]
        for layer in nodes
        if layer.op_type in _LAYERS
    }
    return layers, around, takers


def _reader(batches: Batches, name: str) -> Any:
    """Return the object from which ONNX Runtime reads images."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            images = next(self.left, None)
            return None if images is None else {name: images}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's messages about its own steps."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
