"""Networks without numbers: what is to be known of their shapes costs neither memory nor arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError


def skeleton(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a network whose tensors are made anew, where the device, or the mode, of the moment makes them.

    Within ``torch.device("meta")`` they have a shape and nothing else; the network itself is left alone.

    Args:
        network: The network.
        dtype: Of its numbers that are no integers; their own if None.
    """

    def empty(tensor: Tensor) -> Tensor:
        other = dtype is not None and tensor.is_floating_point()
        return torch.empty(tensor.shape, dtype=dtype if other else tensor.dtype)

    copies: dict[int, Any] = {}
    for parameter in network.parameters():
        copies[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        copies[id(buffer)] = empty(buffer)
    return copy.deepcopy(network, copies)


@contextmanager
def on_meta(image: tuple[int, ...]) -> Iterator[None]:
    """Within this, what is made has a shape and nothing else.

    Args:
        image: Channels, height and width of what goes through a network within it, for the message.

    Raises:
        InputError: If something raises: images of a size that it does not take, numbers that it asks for.
    """
    try:
        with torch.device("meta"):
            yield
    except InputError:
        raise
    except Exception as error:  # Whatever networks say to images that they do not take.
        raise InputError(refusal(error, image)) from error


def refusal(error: Exception, image: tuple[int, ...]) -> str:
    """What a network has said to images, in a line."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    size = "x".join(map(str, image))
    return f"the network does not take images of {size}, or asks for numbers where there are only shapes ({said})"


def first_tensor(output: object) -> Tensor | None:
    """What a module returns, or the first of it; of a dictionary, its first value."""
    while isinstance(output, (tuple, list, dict)) and output:
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, Tensor) else None


def made_on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that a function makes, without numbers; with them where it computes with some while it is made."""
    try:
        with torch.device("meta"):
            return make()
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
    except RuntimeError:
        pass
    return make()
