"""The latency of detectors: cnnlab's three sizes beside torchvision's SSDlite, as ONNX files and in eager PyTorch.

Whole pipelines, from uint8 pixels to boxes without overlaps, with random weights, on one thread. The files take turns,
and so do the networks, so that other work on the machine affects all of them; the figures are medians. The objects of
each file are also matched with those of its network, for each batch: the last column has their largest difference.

    python benchmarks/detectors.py [--size 320 640] [--batch 1 2 5 16] [--classes 80] [--repetitions 20]
        [--network one_stage_s ssdlite320_mobilenet_v3_large]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnlab.deploy.benchmark import timed
from cnnlab.deploy.export import FORMATS, Pipeline, Predict, difference, torch_predict
from cnnlab.deploy.metadata import ModelMetadata
from cnnlab.imaging import EvalTransform
from cnnlab.models import create_detector
from cnnlab.models.box_decoder import BoxDecoder
from cnnlab.models.standardize import Standardize
from cnnlab.outputs import Boxes

NETWORKS = ("one_stage_s", "one_stage_m", "one_stage_l", "ssdlite320_mobilenet_v3_large")
TOLERANCE = 1e-4
"""The largest difference at which a file and its network agree."""


def call(predict: Predict, images: Tensor, count: int) -> object:
    """Predict the first images."""
    return predict(images[:count].numpy())


def settled(network: nn.Module, images: Tensor) -> nn.Module:
    """The network in evaluation, with the statistics of some images in its batch norms.

    Untrained ones let the features of deep networks vanish: then all scores are equal, and the order of objects is
    arbitrary.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # The mean over all batches so far.
    with torch.no_grad():
        network.train()(Standardize([0.5] * 3, [0.25] * 3)(images))
    return network.eval()


def measure(options: argparse.Namespace, size: int) -> None:
    """Measure at one size, and print milliseconds an image."""
    torch.manual_seed(0)
    output = Boxes([str(number) for number in range(options.classes)])
    images = torch.randint(0, 256, (max(options.batch), 3, size, size), dtype=torch.uint8)
    files: dict[str, Callable[[int], object]] = {}
    eager: dict[str, Callable[[int], object]] = {}
    parameters: dict[str, int] = {}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.network:
            network = settled(create_detector(name, options.classes), images[:2])
            parameters[name] = sum(parameter.numel() for parameter in network.parameters())
            pipeline = Pipeline(Standardize([0.5] * 3, [0.25] * 3), network, BoxDecoder(output.count, output.nms))
            path = Path(folder) / f"{name}.onnx"
            FORMATS["onnx"].write(
                pipeline, images[:2], path, ModelMetadata(output, EvalTransform(3, (size, size))), None
            )
            predict = FORMATS["onnx"].load(path)
            files[name], eager[name] = (partial(call, one, images) for one in (predict, torch_predict(pipeline)))
            differences[name] = max(
                difference(pipeline, predict, images[:count], output, TOLERANCE) for count in options.batch
            )
    medians: dict[tuple[str, str, int], float] = {}
    for way, calls in (("ONNX", files), ("eager", eager)):
        for count in options.batch:
            turns = {name: partial(run, count) for name, run in calls.items()}
            found = timed(turns, options.repetitions, rounds=options.repetitions // 2)
            medians |= {(name, way, count): timing.median / count for name, timing in found.items()}
    columns = [(way, count) for way in ("ONNX", "eager") for count in options.batch]
    print(f"{size} x {size} pixels, {options.classes} classes, one thread, milliseconds an image")
    heads = " ".join(f"{f'{way}, B={count}':>11}" for way, count in columns)
    print(f"{'':30} {'parameters':>10} {heads} {'difference':>11}")
    for name in options.network:
        row = " ".join(f"{medians[name, *column]:11.1f}" for column in columns)
        print(f"{name:30} {parameters[name]:10,} {row} {differences[name]:11.1e}", flush=True)


def main() -> None:
    """Measure at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[320])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--network", nargs="+", default=list(NETWORKS))
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.size:
        measure(options, size)


if __name__ == "__main__":
    main()
