"""How a network's layers begin: by which scheme, and whether signals and gradients keep their size through depth."""

from __future__ import annotations

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnlab.analysis.skeleton import first_tensor


class Beginning(NamedTuple):
    """A layer with weights, before training."""

    name: str
    kind: str
    scheme: str
    """Whose spread the weights have, or which ones' where several are alike; "other" for none of those known."""
    weights: float
    """The weights' standard deviation."""
    activations: float
    """Of what the layer returns."""
    gradients: float
    """Of the loss's gradient with respect to it."""


def initialisation(network: nn.Module, images: Tensor) -> list[Beginning]:
    """Look at a network's beginning, in training mode, from the input to the head.

    The loss is cross-entropy with classes dealt out in turn. The network is as it was afterwards.

    Args:
        network: From images to logits (B, classes).
        images: Standardised (B, C, H, W); some will do.

    >>> from cnnlab.models import SmallResNet
    >>> begun = initialisation(SmallResNet(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    >>> begun[0].scheme
    'Kaiming (fan out) or Xavier'
    """
    outputs: dict[str, Tensor] = {}
    # A copy: training mode moves batch norm's statistics.
    own = copy.deepcopy(network).train().requires_grad_()

    def keep(module: nn.Module, args: object, output: Tensor, name: str) -> Tensor:
        output.retain_grad()
        outputs[name] = output
        return output.clone()  # Which an activation in place may change.

    for name, module in own.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(functools.partial(keep, name=name))
    with torch.enable_grad():
        logits = first_tensor(own(images))
        assert logits is not None
        targets = torch.arange(len(images), device=images.device) % logits.shape[1]
        targets = targets.reshape(-1, *[1] * (logits.ndim - 2)).expand(len(images), *logits.shape[2:])
        nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
    found = []
    for name, output in outputs.items():
        layer = network.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if output.grad is None:  # Of an auxiliary head.
            continue
        spreads = [float(tensor.detach().std()) for tensor in (weight, output, output.grad)]
        found.append(Beginning(name, type(layer).__name__, _scheme(weight, getattr(layer, "groups", 1)), *spreads))
    return found


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
    # Of few weights the spread says little.
    tolerance = max(0.05, 4 / math.sqrt(2 * weight.numel()))
    return " or ".join(name for name, value in known.items() if abs(spread - value) <= tolerance * value) or "other"
