"""The speed of a network, in all the ways in which this machine can run it."""

from __future__ import annotations

import copy
import gc
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cnnlab.deploy.export import FORMATS, Pipeline, Predict, load_onnx, load_openvino, torch_predict
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.quantize import quantize_static
from cnnlab.deploy.runtime import PROVIDERS, session, session_predict
from cnnlab.errors import InputError


class Timing(NamedTuple):
    """The times of calls, in milliseconds."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""


def timed(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int = 20,
    rounds: int = 5,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time several functions in turns, so that other work on the machine affects all of them.

    Args:
        calls: The functions to time, by name.
        repetitions: The number of timed calls of each, 2 or more.
        rounds: The number of turns. Each turn begins with an untimed call, so that caches, and the threads of other
            libraries that still spin, settle.
        synchronize: Waits for the device, if calls return before they are done.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for place in range(rounds):
        share = repetitions * (place + 1) // rounds - repetitions * place // rounds
        for name, call in calls.items():
            for repetition in range(-1, share):
                started = time.perf_counter()
                call()
                if synchronize is not None:
                    synchronize()
                if repetition >= 0:
                    spent[name].append(1000 * (time.perf_counter() - started))
    return {name: Timing(median(times), *quantiles(times, n=4)[::2]) for name, times in spent.items()}


@dataclass(frozen=True)
class Subject:
    """What is timed: a network, with images and metadata."""

    pipeline: Pipeline
    """Pixels to probabilities."""
    images: Tensor
    """(N, C, H, W) uint8, at least as many as the largest batch."""
    metadata: ModelMetadata
    """For the files that are made from it."""
    calibration: Callable[[], Sequence[npt.NDArray[np.uint8]]]
    """Batches of images for INT8 calibration, only called if INT8 is timed."""
    folder: Path
    """A folder for temporary files."""
    pruned: Pipeline | None = None
    """The same network with fewer channels, if there is one."""


@dataclass(frozen=True)
class Row:
    """A variant in the table."""

    variant: str
    reason: str = ""
    """Why it could not run, if it could not."""
    milliseconds: dict[int, Timing] | None = None
    """Times by batch size."""
    megabytes: float | None = None
    """The size of its file, or of its weights."""
    peak_megabytes: float | None = None
    """The maximum increase of the process's memory while it was made and ran a first batch of the largest size."""
    metric: float | None = None
    """The value of the metric."""

    def images_per_second(self, batch: int) -> float | None:
        """Return the images per second at this batch size."""
        return 1000 * batch / self.milliseconds[batch].median if self.milliseconds is not None else None


class _Made(NamedTuple):
    predict: Predict
    bytes: int


def _weights(module: nn.Module) -> int:
    kept = [*module.parameters(), *module.buffers()]
    return sum(value.numel() * value.element_size() for value in kept)


def _torch(
    subject: Subject,
    device: str = "cpu",
    train: bool = False,
    inference: bool = True,
    channels_last: bool = True,
    low: bool = False,
    compiled: bool = False,
) -> _Made:
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no GPU")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network: nn.Module = copy.deepcopy(subject.pipeline).to(device).to(memory_format=layout)
    if train:
        # As in a common mistake: batch statistics, dropout, and a graph for gradients.
        network.train().requires_grad_(True)
    if compiled:
        network.compile()

    def predict(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        # On a GPU, this includes both transfers: the time from pixels to results on the host.
        with torch.inference_mode(inference), torch.autocast(device, torch.bfloat16, enabled=low):
            given = torch.from_numpy(images).to(device).contiguous(memory_format=layout)
            return {name: value.detach().float().cpu().numpy() for name, value in network(given).items()}

    return _Made(predict, _weights(network))


def _torchscript(subject: Subject) -> _Made:
    if not hasattr(torch, "jit"):
        raise InputError("this torch has no TorchScript any more")
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        jit: Any = torch.jit
        traced = jit.freeze(jit.trace(subject.pipeline, subject.images[:2], check_trace=False, strict=False))
    return _Made(torch_predict(traced), _weights(subject.pipeline))


def _file(subject: Subject, kind: str, load: Callable[[Path], Predict] | None = None) -> _Made:
    path = subject.folder / f"model{FORMATS[kind].suffix}"
    if not path.exists():
        FORMATS[kind].write(subject.pipeline, subject.images[:2], path, subject.metadata, None)
    size = path.stat().st_size
    if kind == "openvino":
        size += path.with_suffix(".bin").stat().st_size
    return _Made((load or FORMATS[kind].load)(path), size)


def _int8(subject: Subject, load: Callable[[Path], Predict]) -> _Made:
    _file(subject, "onnx")
    path = subject.folder / "model.int8.onnx"
    if not path.exists():
        # All layers: the table shows the cost to the metric.
        quantize_static(
            subject.folder / "model.onnx", path, subject.calibration(), lambda predict: 0.0, max_drop=float("inf")
        )
    return _Made(load(path), path.stat().st_size)


def _by_provider(subject: Subject, name: str) -> _Made:
    import onnxruntime

    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        raise InputError(f"this ONNX Runtime has no {PROVIDERS[name]}")
    return _file(subject, "onnx", lambda path: session_predict(session(path, [name])))


def _pruned(subject: Subject, by_onnx: bool = False) -> _Made:
    if subject.pruned is None:
        raise InputError("no pruned run was given: cnnlab prune RUN, then --pruned RUN-pruned")
    folder = subject.folder / "pruned"
    folder.mkdir(exist_ok=True)
    pruned = replace(subject, pipeline=subject.pruned, folder=folder)
    return _file(pruned, "onnx") if by_onnx else _torch(pruned, channels_last=False)


VARIANTS: dict[str, Callable[[Subject], _Made]] = {
    "eager, eval": partial(_torch, inference=False, channels_last=False),
    "eager, train mode": partial(_torch, train=True, inference=False, channels_last=False),
    "inference mode": partial(_torch, channels_last=False),
    "channels_last": _torch,
    "bfloat16": partial(_torch, low=True),
    "torch.compile": partial(_torch, compiled=True),
    "torch.export": partial(_file, kind="pt2"),
    "TorchScript": _torchscript,
    "ONNX Runtime": partial(_file, kind="onnx"),
    "OpenVINO": partial(_file, kind="openvino"),
    "GPU": partial(_torch, device="cuda"),
    "GPU, bfloat16": partial(_torch, device="cuda", low=True),
    "ONNX Runtime, CUDA": partial(_by_provider, name="cuda"),
    "TensorRT": partial(_by_provider, name="tensorrt"),
    "ONNX Runtime, INT8": partial(_int8, load=load_onnx),
    "OpenVINO, INT8": partial(_int8, load=load_openvino),
    "pruned": _pruned,
    "ONNX Runtime, pruned": partial(_pruned, by_onnx=True),
}
"""Ways to run a network; the others are compared with the first. Each raises InputError if it is not available."""


def benchmark(
    subject: Subject,
    variants: Sequence[str] | None = None,
    repetitions: int = 20,
    measure: Callable[[Predict], float] | None = None,
    batches: Sequence[int] = (1, 32),
) -> list[Row]:
    """Time a network in several ways, in turns.

    Args:
        subject: What is timed.
        variants: Names in VARIANTS; all if None.
        repetitions: The number of timed calls of each.
        measure: Computes the metric of a prediction function.
        batches: The batch sizes.

    Returns:
        A row for each variant, including those that cannot run.

    Raises:
        InputError: If there is no such variant.
    """
    wanted = list(VARIANTS) if variants is None else list(variants)
    for name in wanted:
        if name not in VARIANTS:
            raise InputError(f"there is no variant {name!r}: choose from {', '.join(VARIANTS)}")
    rows: dict[str, Row] = {}
    ready: dict[str, _Made] = {}
    for name in wanted:
        try:
            with _memory() as peak:
                made = VARIANTS[name](subject)
                for size in sorted(batches, reverse=True):
                    made.predict(_batch(subject, size))
            metric = measure(made.predict) if measure is not None else None
        except InputError as error:
            rows[name] = Row(name, reason=str(error))
            continue
        except Exception as error:  # From other libraries: the table shows it, and the benchmark continues.
            reason = " ".join(str(error).split()) or type(error).__name__
            rows[name] = Row(name, reason=re.sub(r"\x1b\[[0-9;]*m", "", reason)[:200])
            continue
        ready[name] = made
        peak_megabytes = peak[0] if peak else None
        rows[name] = Row(name, megabytes=made.bytes / 1e6, peak_megabytes=peak_megabytes, metric=metric)
    times: dict[str, dict[int, Timing]] = {name: {} for name in ready}
    for size in batches:
        images = _batch(subject, size)
        calls = {name: partial(made.predict, images) for name, made in ready.items()}
        for name, timing in timed(calls, repetitions).items():
            times[name][size] = timing
    return [replace(rows[name], milliseconds=times.get(name)) for name in wanted]


def _batch(subject: Subject, size: int) -> npt.NDArray[np.uint8]:
    images: npt.NDArray[np.uint8] = subject.images[:size].contiguous().numpy()
    return images


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Measure the maximum growth of the process's memory in megabytes; the list stays empty if not on Linux."""
    grown: list[float] = []
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # The maximum starts anew.
        before = _peak()
    except OSError:
        before = None
    yield grown
    if before is not None and (after := _peak()) is not None:
        grown.append(max(after - before, 0.0))


def _peak() -> float | None:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else None


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table as plain values; speed-ups are relative to its first row that ran."""
    base = next((row for row in rows if row.milliseconds), None)
    records = []
    for row in rows:
        record: dict[str, Any] = {"variant": row.variant, "reason": row.reason}
        for size, reference in (base.milliseconds or {}).items() if base is not None else ():
            timing = row.milliseconds[size] if row.milliseconds is not None else None
            record |= {
                f"batch_{size}_ms": _rounded(timing.median if timing else None),
                f"batch_{size}_ms_first_quartile": _rounded(timing.low if timing else None),
                f"batch_{size}_ms_third_quartile": _rounded(timing.high if timing else None),
                f"batch_{size}_images_per_second": _rounded(row.images_per_second(size)),
                f"batch_{size}_speedup": _rounded(reference.median / timing.median if timing else None),
            }
        record |= {
            "megabytes": _rounded(row.megabytes),
            "peak_megabytes": _rounded(row.peak_megabytes),
            "metric": row.metric,
            "metric_change": row.metric - base.metric
            if base is not None and row.metric is not None and base.metric is not None
            else None,
        }
        records.append(record)
    return records


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
