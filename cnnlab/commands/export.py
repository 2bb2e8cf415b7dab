"""cnnlab export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnlab.commands.loading import load_cnnlab_run
from cnnlab.commands.messages import check_new, summary
from cnnlab.commands.options import CommandParser
from cnnlab.deploy.certificate import certificate_of
from cnnlab.deploy.export import FORMATS
from cnnlab.deploying import export_task
from cnnlab.errors import InputError


def export(command: str, arguments: list[str]) -> None:
    """Export a run's best network, and check that the file computes the same.

    Raises:
        InputError: If the run cannot be loaded or exported, --images is below 1, or --out does not fit the format.
        DifferenceError: If the file differs from the network.
    """
    asked, flags = _parser().parse_with_others(arguments)
    if asked.images is not None and asked.images < 1:
        raise InputError(f"--images is {asked.images}, expected 1 or more")
    if not asked.tolerance >= 0:
        raise InputError(f"--tolerance is {asked.tolerance}, expected 0 or more")
    if asked.out is not None and Path(asked.out).suffix == FORMATS[asked.format].suffix:
        check_new(Path(asked.out))
    task, data, run, checkpoint = load_cnnlab_run(asked.run, flags)
    form = FORMATS[asked.format]
    name = f"model{'.raw' if asked.raw else ''}{form.suffix}"
    path = Path(asked.out) if asked.out is not None else run.folder / name
    if path.suffix != form.suffix:
        raise InputError(f"--out {path}: a file of the format {asked.format} ends with {form.suffix}")
    dynamic = None if asked.dynamic_size == "auto" else asked.dynamic_size == "true"
    certificate = export_task(
        task, data, checkpoint, path, asked.format, asked.raw, dynamic, asked.opset, asked.tolerance, asked.images
    )
    summary(f"run {run.folder}", {"file": path, "certificate": certificate_of(path), **rows(certificate)})


def rows(certificate: dict[str, Any]) -> dict[str, object]:
    """Return the rows of a certificate that are shown to the user."""
    metric, latency = certificate["metric"], certificate["latency"]
    size = sum(part["bytes"] for part in certificate["files"].values())
    return {
        "size": f"{size / 1e6:.2f} MB",
        "greatest difference": f"{max(certificate['differences'].values()):.2g}",
        metric["name"]: f"{metric['file']:.6g} (the network's: {metric['network']:.6g}), {metric['images']:,} images",
        "one image": f"{latency['file_ms']:.3g} ms (the network's: {latency['network_ms']:.3g}), "
        f"{latency['threads']} threads",
    }


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab export",
        description="Export the best network of a run into one file: uint8 pixels in, probabilities out, with all that "
        "it takes to predict. It is compared with the network, on the validation images, before it takes its place; "
        "the certificate beside it says what was found. Other flags, such as --data.root, are those of predict.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--format", default="onnx", choices=list(FORMATS), help="pt2 is torch.export's (onnx)")
    parser.add_argument("--out", metavar="FILE", help="instead of RUN/model.onnx (or .raw.onnx, .pt2, .xml)")
    parser.add_argument("--raw", action="store_true", help="the bare network: standardized floats in, logits out")
    parser.add_argument(
        "--dynamic_size",
        default="auto",
        choices=["auto", "true", "false"],
        help="take images of any height and width (auto: for segmentation)",
    )
    parser.add_argument("--opset", type=int, help="ONNX's operator set (the exporter's own)")
    parser.add_argument("--images", type=int, help="validation images to measure the metric on (all)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="the greatest difference that passes (1e-4)")
    return parser
