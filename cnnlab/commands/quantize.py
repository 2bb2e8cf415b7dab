"""cnnlab quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnlab.commands.loading import load_cnnlab_run
from cnnlab.commands.messages import check_applicable, check_new, summary
from cnnlab.commands.options import CommandParser
from cnnlab.deploy.certificate import certificate_of
from cnnlab.deploy.quantize import CALIBRATIONS
from cnnlab.deploying import quantize_task
from cnnlab.errors import InputError


def quantize(command: str, arguments: list[str]) -> None:
    """Export a run's best network in 8-bit integers, and measure the loss of accuracy.

    Raises:
        InputError: If the run cannot be loaded, exported or quantized, or a value is out of range.
        DifferenceError: If the metric falls by more than --max_drop.
    """
    asked, flags = (parser := _parser()).parse_with_others(arguments)
    if asked.method == "dynamic":
        check_applicable(asked, parser, ("images", "calibration", "reduce_range"), "--method dynamic")
    if not asked.max_drop >= 0:
        raise InputError(f"--max_drop is {asked.max_drop}, expected 0 or more")
    if asked.images < 1:
        raise InputError(f"--images is {asked.images}, expected 1 or more")
    if not asked.tolerance >= 0:
        raise InputError(f"--tolerance is {asked.tolerance}, expected 0 or more")
    if asked.out is not None:
        check_new(Path(asked.out), ".onnx")
    task, data, run, checkpoint = load_cnnlab_run(asked.run, flags, "fit")
    path = Path(asked.out) if asked.out is not None else run.onnx.with_suffix(".int8.onnx")
    certificate = quantize_task(
        task,
        data,
        checkpoint,
        path,
        asked.method,
        asked.max_drop,
        asked.images,
        asked.calibration,
        asked.reduce_range,
        asked.tolerance,
    )
    summary(f"run {run.folder}", {"file": path, "certificate": certificate_of(path), **_rows(certificate)})


def _rows(certificate: dict[str, Any]) -> dict[str, object]:
    metric, latency, said = certificate["metric"], certificate["latency"], certificate["quantization"]
    size = sum(part["bytes"] for part in certificate["files"].values())
    rows: dict[str, object] = {
        "size": f"{size / 1e6:.2f} MB (float: {certificate['float']['bytes'] / 1e6:.2f})",
        metric["name"]: f"{metric['file']:.6g} (float: {metric['network']:.6g}), {metric['images']:,} images",
        "one image": f"{latency['file_ms']:.3g} ms (float: {latency['network_ms']:.3g}), {latency['threads']} threads",
    }
    if said.get("float_layers"):
        rows["left in float"] = f"{len(said['float_layers'])} of {said['layers']}: {', '.join(said['float_layers'])}"
    return rows


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab quantize",
        description="Export the best network of a run as an ONNX file of 8-bit integers, calibrated on training images "
        "and measured on the validation images. Other flags, such as --data.root, are those of predict.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--out", metavar="FILE", help="instead of RUN/model.int8.onnx")
    parser.add_argument("--method", default="static", choices=["static", "dynamic"], help="dynamic: linear layers only")
    parser.add_argument("--max_drop", type=float, default=0.01, help="how much worse the metric may become (0.01)")
    parser.add_argument("--images", type=int, default=128, help="training images to calibrate with (128)")
    parser.add_argument("--calibration", default="minmax", choices=list(CALIBRATIONS), help="of activations (minmax)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the float file that is quantized (1e-4)")
    parser.add_argument(
        "--reduce_range", action="store_true", help="7 bits of weights, for processors without VNNI instructions"
    )
    return parser
