"""Run a network, and restore its modes and torch's random states afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserve_state(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, uncompiled, outside inference mode and without gradients.

    Afterwards, also after an exception, each module's mode, torch's random states and the compiled code are restored.
    Parameters, their gradients and requires_grad are not touched here.

    Args:
        network: Any; its modules may be in different modes.

    >>> layer = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3).eval())
    >>> with preserve_state(layer):
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
