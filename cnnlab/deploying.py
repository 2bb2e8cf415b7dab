"""Export a task with its data to files for prediction, each with a certificate of its measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cnnlab.batch import Batch
from cnnlab.checkpoint import read_header
from cnnlab.data import VisionDataModule
from cnnlab.data.base import BatchDataset, Subset
from cnnlab.deploy.benchmark import timed
from cnnlab.deploy.certificate import sha256
from cnnlab.deploy.export import (
    BATCHES,
    DifferenceError,
    Pipeline,
    Predict,
    aside,
    export,
    load_onnx,
    put_in_place,
    torch_predict,
)
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.deploy.quantize import quantize_dynamic, quantize_static
from cnnlab.errors import InputError, TrainingError
from cnnlab.lightning_compat import compute_locally
from cnnlab.tasks.base import VisionTask
from cnnlab.versions import versions


def metadata(task: VisionTask, data: VisionDataModule, checkpoint: Path, raw: bool = False) -> ModelMetadata:
    """Return the metadata of a file that is made from a task.

    Args:
        task: The task.
        data: The data that it was trained on, which define the preprocessing.
        checkpoint: The source of its weights.
        raw: Whether the file is the bare network.

    Raises:
        InputError: If the task has no kind of answers, or if its data do not define the preprocessing.
    """
    return ModelMetadata(
        output=task.output,
        transform=data.eval_transform(),
        raw=raw,
        mean=task.hparams["mean"],
        std=task.hparams["std"],
        checkpoint={
            "file": checkpoint.name,
            "sha256": sha256(checkpoint),
            "step": read_header(checkpoint)["global_step"],
        },
        versions=versions(),
    )


def pipeline(task: VisionTask, raw: bool = False) -> Pipeline:
    """Return a task's computation from uint8 pixels to answers; if raw, from standardized floats to raw outputs.

    If a task also predicts each image mirrored (model.flips), so does the pipeline; it takes images whole.
    """
    if raw:
        return Pipeline(None, task.network, None, task.output.raw_arrays)
    return Pipeline(task.standardize, task.deployed_network(), task.decode, flips=bool(task.hparams.get("flips")))


def export_task(
    task: VisionTask,
    data: VisionDataModule,
    checkpoint: Path,
    path: Path,
    kind: str = "onnx",
    raw: bool = False,
    dynamic_size: bool | None = None,
    opset: int | None = None,
    tolerance: float = 1e-4,
    most: int | None = None,
) -> dict[str, Any]:
    """Export a trained task, and check the file on its validation images.

    Args:
        task: The task, with the weights to export.
        data: The data, set up for validation.
        checkpoint: The source of the weights.
        path: See deploy.export.export.
        kind: A name in deploy.export.FORMATS.
        raw: See ModelMetadata.
        dynamic_size: Whether the file takes images of any size. If None, it does for dense predictions (segmentation)
            if possible, and not for others, whose images are all resized to one size.
        opset: See deploy.export.export.
        tolerance: See deploy.export.export.
        most: The maximum number of validation images, evenly spaced, to compute the metric on; all if None.

    Returns:
        The certificate.

    Raises:
        InputError: If the task cannot be exported.
        DifferenceError: See deploy.export.export.
    """
    described = metadata(task, data, checkpoint, raw)
    path_of = pipeline(task, raw)
    images = example_images(task, data)
    if task.hparams.get("window") or (raw and task.hparams.get("tile")):
        rank_zero_warn(
            "the file takes images whole, not window by window (model.window, model.tile): large ones need much "
            "memory, and at the windows' borders it may differ"
        )
    if raw:
        images = task.standardize(images)
    elif images.dtype != torch.uint8:
        raise InputError(
            f"{type(data).__name__} yields images of {images.dtype}, and an exported file takes uint8 pixels: yield "
            "those, and leave it to the task to standardize them; or export the bare network with --raw"
        )

    def proven(predict: Predict) -> Mapping[str, Any]:
        both = {"network": torch_predict(path_of), "file": predict}
        return {
            "metric": {
                "name": task.monitor,
                "images": min(len(data.val_set), len(data.val_set) if most is None else most),
                **{name: score(task, data, one, raw, most) for name, one in both.items()},
            },
            "latency": latency(both, images[:1].numpy()),
        }

    def attempt(dynamic: bool) -> dict[str, Any]:
        if not dynamic and described.transform.size is None:
            raise InputError(
                "the data bring images to no size, so a file of one size is of no use: name one (--data.size)"
            )
        return export(path_of, images, path, replace(described, dynamic_size=dynamic), kind, opset, tolerance, proven)

    if dynamic_size is not None:
        return attempt(dynamic_size)
    if not task.output.dense:
        return attempt(dynamic=False)
    try:
        return attempt(dynamic=True)
    except InputError as error:
        if described.transform.size is None:
            raise InputError(f"{error} (with --data.size a file of one size can be made)") from error
        rank_zero_warn(f"the file takes images of {described.transform.size} only: {error}")
        return attempt(dynamic=False)


def quantize_task(
    task: VisionTask,
    data: VisionDataModule,
    checkpoint: Path,
    path: Path,
    method: Literal["static", "dynamic"] = "static",
    max_drop: float = 0.01,
    images: int = 128,
    calibration: str = "minmax",
    reduce_range: bool = False,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Export a trained task as an ONNX file of 8-bit integers.

    Args:
        task: The task, with the weights to export.
        data: The data, set up for fit: static quantization calibrates with training images; metrics use validation.
        checkpoint: The source of the weights.
        path: The file; its certificate has the float file's metric, size and latency too.
        method: static, or dynamic for networks of linear layers.
        max_drop: How much worse than the float file's the monitored metric may be; static quantization leaves layers in
            float to reach that.
        images: The number of training images for calibration.
        calibration: See deploy.quantize.quantize_static.
        reduce_range: See deploy.quantize.quantize_static.
        tolerance: The largest difference between the float file, which is then quantized, and the network.

    Returns:
        The certificate.

    Raises:
        InputError: If the task cannot be exported, or has nothing to quantize.
        DifferenceError: If the float file differs from the network, or if the metric falls by more than max_drop even
            with layers in float; nothing is written then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path.with_name("float.onnx")) as floats, aside(path) as draft:
        try:
            exported = export_task(task, data, checkpoint, floats, tolerance=tolerance)
        except DifferenceError as error:
            raise DifferenceError(f"{path} is not written: already in float, {error}") from error
        before = exported["metric"]["file"]
        said: dict[str, Any] = {}
        if method == "static":
            found = quantize_static(
                floats,
                draft,
                training_images(data, images),
                partial(score, task, data),
                max_drop,
                task.mode == "max",
                calibration,
                reduce_range,
            )
            after, said = found.metric, {"calibration": calibration, "images": images, "reduce_range": reduce_range}
            said |= {"layers": found.layers, "float_layers": found.float_layers}
        else:
            if quantize_dynamic(floats, draft) == "part":
                rank_zero_warn(
                    "dynamic quantization leaves convolutions in float, and makes a convolutional network no faster: "
                    "take static"
                )
            after = score(task, data, load_onnx(draft))
        drop = before - after if task.mode == "max" else after - before
        if not drop <= max_drop:  # NaN is a failure too.
            raise DifferenceError(
                f"{path} is not written: {task.monitor} would be {after:.6g} instead of {before:.6g}, and at most "
                f"{max_drop:g} less passes; --max_drop allows more"
            )
        one = example_images(task, data)[:1].contiguous().numpy()
        certificate = {
            "format": "onnx",
            "quantization": {"method": method, **said},
            "float": {"bytes": floats.stat().st_size, "opset": exported["opset"]},
            "metric": {"name": task.monitor, "images": len(data.val_set), "network": before, "file": after},
            "latency": latency({"network": load_onnx(floats), "file": load_onnx(draft)}, one),
            "max_drop": max_drop,
            "checkpoint": exported["checkpoint"],
            "versions": exported["versions"],
        }
        return put_in_place(draft, path, certificate)


def latency(calls: Mapping[str, Predict], image: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the time that each function takes for one image, in milliseconds."""
    spent = timed({name: partial(call, image) for name, call in calls.items()})
    return {
        "batch": 1,
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": round(time.median, 3) for name, time in spent.items()},
    }


def example_images(task: VisionTask, data: VisionDataModule, count: int = max(BATCHES)) -> Tensor:
    """Return validation images of the first one's size, (count, C, H, W), repeated if there are too few.

    If the task takes images window by window, the images are cut to one window.

    Args:
        task: The task.
        data: The data, set up for validation.
        count: The number of images.
    """
    window = task.hparams.get("window")
    found: list[Tensor] = []
    # If sizes differ, only the first images are searched for ones of the same size.
    for place in range(min(len(data.val_set), 10 * count)):
        image = Batch.of(data.val_set.__getitems__([place])).images[0]
        image = image if window is None else image[:, :window, :window]
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    return torch.stack([found[i % len(found)] for i in range(count)])


def score(
    task: VisionTask, data: VisionDataModule, predict: Predict, raw: bool = False, most: int | None = None
) -> float:
    """Compute the task's monitored metric on the validation set, for a file or a network as a function.

    Args:
        task: The task with the metric.
        data: The data, set up for validation.
        predict: The function.
        raw: Whether it takes standardized images and returns raw outputs.
        most: The maximum number of images, evenly spaced; all if None.

    Raises:
        InputError: If the monitored metric is the loss, and the raw outputs cannot be restored from the answers.
        TrainingError: If the metric is NaN.
    """
    name = task.monitor.partition("/")[2]
    dataset = data.val_set if most is None else Subset(data.val_set, most)
    metrics = task.stage_metrics("val")
    for metric in metrics.values(copy_state=False):
        # Only this process computes it, while others may wait for the end of the training.
        compute_locally(metric)
    for batch in map(Batch.of, data.whole(dataset)):
        images = task.standardize(batch.images) if raw else batch.images
        arrays = predict(images.contiguous().numpy())
        decoded = task.output.decode(arrays) if raw else arrays
        answers = {key: torch.from_numpy(value) for key, value in decoded.items()}
        outputs = task.decode.undo(answers) if name == "loss" else None
        if outputs is None and name == "loss":
            raise InputError(
                f"{type(task).__name__} is watched by its loss ({task.monitor}), which no file computes: set its "
                "class's monitor to one of its metrics"
            )
        task.take_in(metrics, answers, batch, None if outputs is None else task.evaluation_loss(outputs, batch.targets))
    if name != "loss":
        del metrics["loss"]
    value = float(metrics.compute()[name])
    if math.isnan(value):
        raise TrainingError(
            f"{task.monitor} is not a number (NaN) on the {len(dataset):,} validation images, so nothing can be "
            "compared: either they have no known targets (all pixels ignored, no label), or the outputs are NaN"
        )
    return value


def training_images(data: VisionDataModule, count: int) -> list[npt.NDArray[np.uint8]]:
    """Return count evenly spaced training images as evaluation reads them, in batches (B, C, H, W), B up to 16.

    The data are set up for fit.

    Raises:
        InputError: If the data do not provide their training images without augmentation.
    """
    source = getattr(data.train_set, "source", None)
    if not isinstance(source, BatchDataset):
        raise InputError(
            f"{type(data.train_set).__name__} does not say what its images are without augmentation: give it an "
            "attribute source, a BatchDataset of the same samples"
        )
    batches = map(Batch.of, data.whole(Subset(source, count)))
    return [part.contiguous().numpy() for batch in batches for part in torch.split(batch.images, 16)]
