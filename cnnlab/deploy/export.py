"""Export of networks as ONNX, torch.export's .pt2 or OpenVINO; each file is compared with its network."""

from __future__ import annotations

import copy
import filecmp
import glob
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cnnlab.deploy.certificate import certificate_of, write_certificate
from cnnlab.deploy.metadata import KEY, ModelMetadata
from cnnlab.deploy.runtime import session, session_predict
from cnnlab.deploy.same_padding import whole_number_padding
from cnnlab.errors import InputError, TrainingError
from cnnlab.lock import is_alive
from cnnlab.outputs import Output
from cnnlab.results import replacing

Predict = Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]
"""A batch of images to named arrays: decoded answers, or a bare network's raw outputs."""

BATCHES = (1, 2, 5)
"""The batch sizes for comparing a file with its network: one, two (the example's size), and one not seen in export."""

_AXES = {0: "batch", 2: "height", 3: "width"}
_ROUNDING = 1e-6
"""The relative size of the changes that stand for rounding in float32, where sums are added up in another order."""
_MOST_ANSWERS = 12
"""How often a network answers, at most, if rounding may decide between its answers."""


class Pipeline(nn.Module):
    """The whole computation from pixels to answers.

    Args:
        standardize: Converts uint8 pixels to the network's input; None to leave this to the caller.
        network: Standardized images to raw outputs.
        decode: Raw outputs to named arrays; None to return the raw outputs.
        raw_names: The names of the raw outputs, if there is no decoder.
        flips: Predict each image mirrored as well, and average the two arrays (of pixels).
    """

    def __init__(
        self,
        standardize: nn.Module | None,
        network: nn.Module,
        decode: nn.Module | None,
        raw_names: Sequence[str] = ("logits",),
        flips: bool = False,
    ) -> None:
        super().__init__()
        # Copies, so that compiling a network or changing its memory layout for training does not affect the file.
        self.standardize = copy.deepcopy(standardize) if standardize is not None else nn.Identity()
        self.network = copy.deepcopy(network)
        self.decode = copy.deepcopy(decode)
        self.raw_names = tuple(raw_names)
        self.flips = flips
        self.eval().requires_grad_(False).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, C, H, W) to named arrays, B first."""
        arrays = self._once(images)
        if not self.flips:
            return arrays
        mirrored = self._once(images.flip(-1))
        return {name: (value + mirrored[name].flip(-1)) / 2 for name, value in arrays.items()}

    def _once(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.network(self.standardize(images))
        if self.decode is not None:
            decoded: dict[str, Tensor] = self.decode(outputs)
            return decoded
        if isinstance(outputs, Mapping):
            return {name: outputs[name] for name in self.raw_names}
        return dict(zip(self.raw_names, outputs if isinstance(outputs, (tuple, list)) else [outputs], strict=True))


class Format(NamedTuple):
    """A file format."""

    suffix: str
    """The end of its file names."""
    write: Callable[[Pipeline, Tensor, Path, ModelMetadata, int | None], dict[str, Any]]
    """(pipeline, example, path, metadata, opset): write the file, and return its entries in the certificate."""
    load: Callable[[Path], Predict]
    """Load a file as a prediction function."""


class DifferenceError(TrainingError):
    """A file whose results differ from its network's."""


def export(
    pipeline: Pipeline,
    images: Tensor,
    path: Path,
    metadata: ModelMetadata,
    kind: str = "onnx",
    opset: int | None = None,
    tolerance: float = 1e-4,
    measure: Callable[[Predict], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a network as a file with a certificate, once the file is checked to compute the same.

    Args:
        pipeline: The network.
        images: (N, C, H, W), real images, at least as many as the largest of BATCHES.
        path: The file; an older one is replaced once the new one has been checked.
        metadata: The file's own metadata.
        kind: A name in FORMATS.
        opset: ONNX's operator set; the exporter's own if None.
        tolerance: The largest difference of an output that passes.
        measure: Computes further entries of the certificate from the file's prediction function.

    Returns:
        The certificate.

    Raises:
        InputError: If the network cannot be exported, or if a library is missing.
        DifferenceError: If the file differs from the network; nothing is written then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as draft:
        said = FORMATS[kind].write(pipeline, images[:2], draft, metadata, opset)
        predict = FORMATS[kind].load(draft)
        found = differences(pipeline, predict, images, metadata.output, tolerance, metadata.dynamic_size)
        worst = float(np.max(list(found.values())))  # max() would ignore NaN.
        if not worst <= tolerance:
            raise DifferenceError(
                f"{path} is not written: it would differ from the network by up to {worst:.2g} (at most {tolerance:g} "
                "passes; --tolerance allows more)"
            )
        certificate = {
            **said,
            "differences": found,
            "tolerance": tolerance,
            **(measure(predict) if measure is not None else {}),
            "checkpoint": dict(metadata.checkpoint),
            "versions": dict(metadata.versions),
        }
        return put_in_place(draft, path, certificate)


def put_in_place(draft: Path, path: Path, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Move a finished file and its parts out of the draft's folder, and write its certificate.

    An earlier file of that name is kept aside (see results.replacing), unless it is the same.

    Args:
        draft: The finished file, in a separate folder.
        path: The final path.
        certificate: The measurements.

    Returns:
        The certificate, with the files' hashes.
    """
    parts = [path.with_name(part.name) for part in sorted(draft.parent.iterdir())]
    same = all(part.is_file() and filecmp.cmp(draft.parent / part.name, part, shallow=False) for part in parts)
    names = [] if same else [glob.escape(part.name) for part in (*parts, certificate_of(path))]
    with replacing(path.parent, "export", names):
        # In between, a reader finds no certificate, rather than one that belongs to another file.
        certificate_of(path).unlink(missing_ok=True)
        for part in parts:
            (draft.parent / part.name).replace(part)
        return write_certificate(path, parts, certificate)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a path of the same file name in a temporary folder beside it, which is deleted afterwards.

    Folders that a killed process of this machine has left are deleted, too.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = left.name.removesuffix(".part").rpartition("-")[2]
        if number.isdigit() and not is_alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f"-{os.getpid()}.part", dir=path.parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def differences(
    pipeline: Pipeline,
    predict: Predict,
    images: Tensor,
    output: Output,
    tolerance: float,
    other_size: bool = False,
) -> dict[str, float]:
    """Return the differences between a file's answers and its network's, by batch size.

    Args:
        pipeline: The network.
        predict: The file's prediction function.
        images: (N, C, H, W).
        output: The kind of answers: see Output.difference.
        tolerance: If an answer differs by more, and rounding may decide between answers, the network answers again with
            rounded numbers, and the file may agree with any of its answers: see Output.nearest.
        other_size: Whether to compare at about three quarters of the size too, with odd sides, which cannot be halved.

    Raises:
        InputError: If the network or the file does not take such images.
    """
    batches = {str(size): images[:size] for size in BATCHES}
    if other_size:
        height, width = (side * 3 // 4 | 1 for side in images.shape[2:])
        smaller = images[:, :, :height, :width]
        batches |= {f"{count} of {height}x{width}": smaller[:count].contiguous() for count in BATCHES[:2]}
    return {name: difference(pipeline, predict, batch, output, tolerance) for name, batch in batches.items()}


def difference(pipeline: Pipeline, predict: Predict, batch: Tensor, output: Output, tolerance: float) -> float:
    """Return the difference between a file's answers to a batch and its network's.

    Args:
        pipeline: The network.
        predict: The file's prediction function.
        batch: (B, C, H, W).
        output: See differences.
        tolerance: See differences.

    Raises:
        InputError: If the network or the file does not take such images.
    """
    try:
        answers, outputs = [torch_predict(pipeline)(batch.numpy())], predict(batch.numpy())
    except Exception as error:  # Each runtime raises different types.
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the network, or its file, takes no images of {tuple(batch.shape)}: {reason}") from error
    found = output.difference(answers[0], outputs)
    while output.has_ties and found > tolerance and len(answers) < _MOST_ANSWERS:
        answers.append(torch_predict(_rounded(pipeline, len(answers)))(batch.numpy()))
        found = output.difference(output.nearest(answers, outputs), outputs)
    return found


def _rounded(pipeline: Pipeline, seed: int) -> Pipeline:
    """A copy whose parameters and raw outputs are changed as much as rounding would change them.

    Outputs too, because places that see the same have equal scores, whatever the parameters are.
    """
    rounded, generator = copy.deepcopy(pipeline), torch.Generator().manual_seed(seed)

    def round_off(value: Tensor) -> Tensor:
        return value * (1 + _ROUNDING * (2 * torch.rand(value.shape, generator=generator) - 1))

    def round_outputs(network: nn.Module, images: Any, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: round_off(value) if value.is_floating_point() else value for name, value in outputs.items()}

    for parameter in rounded.parameters():
        parameter.copy_(round_off(parameter))
    rounded.network.register_forward_hook(round_outputs)
    return rounded


def torch_predict(module: nn.Module) -> Predict:
    """Return a network as a function of arrays."""

    def predict(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in module(torch.from_numpy(images)).items()}

    return predict


def _program(pipeline: Pipeline, example: Tensor, metadata: ModelMetadata) -> Any:
    """Return the network as a program of torch.export, for any batch size, and any image size if requested."""
    # The batch size must not be known in advance: with an example of one image, the exporter would fix it.
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if metadata.dynamic_size:
        # Named dimensions would have to satisfy every guard, including those about memory and not results.
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    if len(example) < 2:
        example = example.expand(2, *example.shape[1:]).contiguous()
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad(), whole_number_padding():
            return torch.export.export(pipeline, (example,), dynamic_shapes=(dynamic,))
    except Exception as error:  # A user's network can cause any error.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        size = ", or not for any size (--dynamic_size false)" if metadata.dynamic_size else ""
        raise InputError(
            f"{type(pipeline.network).__name__} cannot be exported{size}: {reason[:300]}. Its forward() must not "
            "depend on the values of its input"
        ) from error


def _write_onnx(
    pipeline: Pipeline, example: Tensor, path: Path, metadata: ModelMetadata, opset: int | None
) -> dict[str, Any]:
    try:
        import onnx
        import onnxscript  # noqa: F401  # The exporter needs it, but reports that late.
    except ImportError as error:
        raise InputError(f'exporting needs {error.name}: pip install "cnnlab[deploy]"') from error
    program = _program(pipeline, example, metadata)
    try:
        with warnings.catch_warnings(action="ignore"), _no_messages():
            made = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=list(metadata.array_names),
                dynamic_shapes=({axis: name for axis, name in _AXES.items() if axis == 0 or metadata.dynamic_size},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{type(pipeline.network).__name__} cannot be written as ONNX: {reason[:300]}") from error
    assert made is not None
    made.model.metadata_props[KEY] = metadata.to_json()
    made.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    written = onnx.load(str(path))
    own = next(domain.version for domain in written.opset_import if not domain.domain)
    if opset is not None and own != opset:
        # The exporter only warns if it cannot convert to another version.
        raise InputError(
            f"--opset {opset}: the exporter can write this network in opset {own} only: leave --opset out, or choose "
            f"{own} or a version near it"
        )
    axes = [axis.dim_param for axis in written.graph.input[0].type.tensor_type.shape.dim[2:]]
    if all(axes) != metadata.dynamic_size:
        taken = "images of any size" if all(axes) else "images of one size"
        raise InputError(f"--dynamic_size {str(metadata.dynamic_size).lower()}: the file would take {taken}")
    return {"format": "onnx", "opset": own, "checker": "passed"}


@contextmanager
def _no_messages() -> Iterator[None]:
    """Hide the exporter's messages about versions that it cannot convert to: the version is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def load_onnx(path: Path) -> Predict:
    """Load an ONNX file for the CPU with ONNX Runtime, with as many threads as torch has."""
    return session_predict(session(path, ["cpu"], torch.get_num_threads()))


def _write_pt2(
    pipeline: Pipeline, example: Tensor, path: Path, metadata: ModelMetadata, opset: int | None
) -> dict[str, Any]:
    _refuse_opset(opset)
    program = _program(pipeline, example, metadata)
    torch.export.save(program, str(path), extra_files={KEY: metadata.to_json()})
    return {"format": "pt2"}


def _write_openvino(
    pipeline: Pipeline, example: Tensor, path: Path, metadata: ModelMetadata, opset: int | None
) -> dict[str, Any]:
    _refuse_opset(opset)
    openvino = _openvino()
    with aside(path) as onnx_file:
        _write_onnx(pipeline, example, onnx_file, metadata, None)
        model = openvino.convert_model(str(onnx_file))
    model.set_rt_info(metadata.to_json(), KEY)
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return {"format": "openvino"}


def load_openvino(path: Path) -> Predict:
    """Load an OpenVINO or ONNX file for the CPU with OpenVINO, in float32: its default may be bfloat16."""
    core = _openvino_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    names = [output.any_name for output in compiled.outputs]
    return lambda images: dict(zip(names, compiled(images).values(), strict=True))


@cache
def _openvino_core() -> Any:
    """Return the process's only core, which is never released.

    Each core installs a stack for signal handlers, and restores the previous one when it is released. If two are
    released in the order of their creation, the second restores the stack that the first has freed, and the next
    signal ends the process.
    """
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError('OpenVINO is missing: pip install "cnnlab[openvino]"') from error
    return openvino


def _refuse_opset(opset: int | None) -> None:
    if opset is not None:
        raise InputError("an opset is ONNX's: leave --opset out")


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _write_onnx, load_onnx),
    "pt2": Format(".pt2", _write_pt2, lambda path: torch_predict(torch.export.load(str(path)).module())),
    "openvino": Format(".xml", _write_openvino, load_openvino),
}
"""File formats by name."""
