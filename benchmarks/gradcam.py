"""Time of Grad-CAM for a batch: cnnlab's, pytorch-grad-cam's own batch, and image by image with a full backward pass.

By turns, in one process; the figures are medians, and the ratios are those of medians.

    python benchmarks/gradcam.py [--network resnet18] [--size 224] [--images 32] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from pytorch_grad_cam import GradCAM as OtherGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cnnlab.interpret import GradCAM, default_layer


def one_by_one(network: nn.Module, layer: str, images: Tensor) -> None:
    """Each image by itself, backwards through the whole network, as tutorials do."""
    for image in images:
        kept: dict[str, Tensor] = {}

        def forward(module: nn.Module, args: object, output: Tensor, kept: dict[str, Tensor] = kept) -> None:
            kept["activations"] = output
            output.register_hook(lambda gradient: kept.update(gradients=gradient))  # type: ignore[no-untyped-call]

        handle = network.get_submodule(layer).register_forward_hook(forward)
        network.zero_grad()
        logits = network(image[None])
        handle.remove()
        torch.autograd.backward(logits[0, logits[0].argmax()])
        weights = kept["gradients"].mean(dim=(2, 3), keepdim=True)
        nn.functional.interpolate(
            (weights * kept["activations"]).sum(dim=1, keepdim=True).relu(), images.shape[2:], mode="bilinear"
        )


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = timm.create_model(options.network, zero_init_last=False).eval()
    images = torch.randn(options.images, 3, options.size, options.size)
    layer = default_layer(network, images)
    ours = GradCAM(network, layer)
    other = OtherGradCAM(model=network, target_layers=[network.get_submodule(layer)])
    targets = [ClassifierOutputTarget(int(number)) for number in ours(images).classes]
    # How cnnlab's tasks hand images to their networks.
    last = images.contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], object]] = {
        "cnnlab, channels last": lambda: ours(last),
        "cnnlab, a batch": lambda: ours(images),
        "pytorch-grad-cam, a batch": lambda: other(images, targets),
        "one by one, full backward pass": lambda: one_by_one(network, layer, images),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, run in ways.items():
            taken = seconds(run)
            # The first round warms up.
            times[name] += [taken] if number else []
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.network}, {options.images} images of {options.size} pixels, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        shares = " or ".join(f"{medians[own] / median:.2f}" for own in ("cnnlab, channels last", "cnnlab, a batch"))
        print(f"{name:32} {median:6.2f} s   cnnlab takes {shares} of it")


if __name__ == "__main__":
    main()
