"""Run a network without leaving a trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """A network in eval mode, uncompiled, outside inference mode and without gradients.

    Afterwards, also after an exception, each module's mode is what it was, and so are torch's random states and the
    compiled code. (Parameters, their gradients and requires_grad are left alone by whoever neither trains nor sets
    them.)

    Args:
        network: Any; its parts may be in modes of their own.

    >>> layer = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3).eval())
    >>> with undisturbed(layer):
    ...     print(layer[0].training)
    False
    >>> layer[0].training, layer[1].training
    (True, False)
    """
    modes = {module: module.training for module in network.modules()}
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    network.eval()
    try:
        with (
            torch.random.fork_rng([device.index for device in devices if device.index is not None]),
            torch.compiler.set_stance("force_eager"),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
