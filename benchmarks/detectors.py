"""The latency of detectors: cnnlab's three sizes beside torchvision's SSDlite, as ONNX files and in eager PyTorch.

Whole pipelines, from uint8 pixels to boxes without overlaps, with random weights, on one thread. The files take turns,
and so do the networks, so that other work on the machine affects all of them; the figures are medians.

    python benchmarks/detectors.py [--size 320] [--classes 80] [--repetitions 20]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cnnlab.deploy.benchmark import timed
from cnnlab.deploy.export import FORMATS, Pipeline, Predict, torch_predict
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.imaging import EvalTransform
from cnnlab.models import create_detector
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.standardize import Standardize
from cnnlab.outputs import Boxes

NETWORKS = ("one_stage_s", "one_stage_m", "one_stage_l", "ssdlite320_mobilenet_v3_large")
BATCHES = (1, 5)


def call(predict: Predict, images: Tensor, count: int) -> object:
    """Predict the first images."""
    return predict(images[:count].numpy())


def main() -> None:
    """Measure, and print milliseconds an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    output = Boxes([str(number) for number in range(options.classes)])
    images = torch.randint(0, 256, (max(BATCHES), 3, options.size, options.size), dtype=torch.uint8)
    files: dict[str, Callable[[int], object]] = {}
    eager: dict[str, Callable[[int], object]] = {}
    parameters: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            network = create_detector(name, options.classes).eval()
            parameters[name] = sum(parameter.numel() for parameter in network.parameters())
            pipeline = Pipeline(Standardize([0.5] * 3, [0.25] * 3), network, BoxDecoder(output.count, output.nms))
            path = Path(folder) / f"{name}.onnx"
            metadata = ModelMetadata(output, EvalTransform(3, (options.size, options.size)))
            FORMATS["onnx"].write(pipeline, images[:2], path, metadata, None)
            for kind, predict in ((files, FORMATS["onnx"].load(path)), (eager, torch_predict(pipeline))):
                kind[name] = partial(call, predict, images)
    medians: dict[tuple[str, str, int], float] = {}
    for way, calls in (("ONNX Runtime", files), ("eager", eager)):
        for count in BATCHES:
            turns = {name: partial(run, count) for name, run in calls.items()}
            found = timed(turns, options.repetitions, rounds=options.repetitions // 2)
            medians |= {(name, way, count): timing.median / count for name, timing in found.items()}
    columns = [(way, count) for way in ("ONNX Runtime", "eager") for count in BATCHES]
    print(f"{options.size} x {options.size} pixels, {options.classes} classes, one thread, milliseconds an image")
    print(f"{'':30} {'parameters':>10} " + " ".join(f"{f'{way}, B={count}':>17}" for way, count in columns))
    for name in NETWORKS:
        row = " ".join(f"{medians[name, *column]:17.1f}" for column in columns)
        print(f"{name:30} {parameters[name]:10,} {row}")


if __name__ == "__main__":
    main()
