"""The initialization of a network's layers: its scheme, and the spread of signals and gradients through depth."""

from __future__ import annotations

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnlab.analysis.meta import first_tensor


class LayerInit(NamedTuple):
    """The initialization of one layer with weights."""

    name: str
    kind: str
    scheme: str
    """The known schemes whose spread the weights have, joined by "or"; "other" if there is none."""
    weights: float
    """The weights' standard deviation."""
    activations: float
    """The output's standard deviation."""
    gradients: float
    """The standard deviation of the loss's gradient with respect to the output."""


def initialization(network: nn.Module, images: Tensor) -> list[LayerInit]:
    """Measure how a network's layers are initialized, in training mode, from the input to the head.

    The loss is cross-entropy; the images get the classes 0, 1, 2 and so on. The network is not changed.

    Args:
        network: Images to logits (B, classes).
        images: Standardized images (B, C, H, W); a few are enough.

    >>> from cnnlab.models import SmallResNet
    >>> layers = initialization(SmallResNet(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    >>> layers[0].scheme
    'Kaiming (fan out) or Xavier'
    """
    outputs: dict[str, Tensor] = {}
    # A copy: training mode changes batch norm's statistics.
    own = copy.deepcopy(network).train().requires_grad_()

    def keep_output(module: nn.Module, args: object, output: Tensor, name: str) -> Tensor:
        output.retain_grad()
        outputs[name] = output
        return output.clone()  # An in-place activation may change it.

    for name, module in own.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(functools.partial(keep_output, name=name))
    with torch.enable_grad():
        logits = first_tensor(own(images))
        assert logits is not None
        targets = torch.arange(len(images), device=images.device) % logits.shape[1]
        targets = targets.reshape(-1, *[1] * (logits.ndim - 2)).expand(len(images), *logits.shape[2:])
        nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
    layers = []
    for name, output in outputs.items():
        layer = network.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if output.grad is None:  # The output of an auxiliary head.
            continue
        spreads = [float(tensor.detach().std()) for tensor in (weight, output, output.grad)]
        layers.append(LayerInit(name, type(layer).__name__, _scheme(weight, getattr(layer, "groups", 1)), *spreads))
    return layers


def _scheme(weight: Tensor, groups: int) -> str:
    spread = float(weight.detach().std())
    taps = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * taps, weight.shape[0] * taps
    known = {
        "Kaiming (fan in)": math.sqrt(2 / fan_in),
        "Kaiming (fan out)": math.sqrt(2 / fan_out),
        "Xavier": math.sqrt(2 / (fan_in + fan_out)),
        "PyTorch's default": math.sqrt(1 / (3 * fan_in)),
        "truncated normal, 0.02": 0.02,
        "zero": 0.0,
    }
    if groups > 1:
        known["Kaiming (fan out of a group)"] = math.sqrt(2 * groups / fan_out)
    # The spread of few weights is a rough estimate.
    tolerance = max(0.05, 4 / math.sqrt(2 * weight.numel()))
    return " or ".join(name for name, value in known.items() if abs(spread - value) <= tolerance * value) or "other"
