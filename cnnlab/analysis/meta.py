"""Networks on the meta device: tensors have shapes but no values, and cost neither memory nor computation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import InputError


def copy_without_values(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a network with uninitialized tensors, created on the active device or in the active mode.

    Within ``torch.device("meta")`` the copy's tensors have shapes only. The network itself is not changed.

    Args:
        network: The network.
        dtype: The dtype of the copy's floating-point tensors; the network's own if None.
    """

    def empty(tensor: Tensor) -> Tensor:
        converts = dtype is not None and tensor.is_floating_point()
        return torch.empty(tensor.shape, dtype=dtype if converts else tensor.dtype)

    copies: dict[int, Any] = {}
    for parameter in network.parameters():
        copies[id(parameter)] = nn.Parameter(empty(parameter), requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        copies[id(buffer)] = empty(buffer)
    return copy.deepcopy(network, copies)


@contextmanager
def explain_failure(image: tuple[int, ...]) -> Iterator[None]:
    """Convert the exceptions of a network whose tensors have no values to an InputError.

    Args:
        image: Channels, height and width of the network's input, for the message.

    Raises:
        InputError: If the network does not take images of this size, or reads values of tensors.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Networks raise any kind of exception for images that they do not take.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise InputError(
            f"the network does not take images of {'x'.join(map(str, image))}, or needs the tensors' values, not only "
            f"their shapes ({reason})"
        ) from error


def first_tensor(output: object) -> Tensor | None:
    """The tensor that a module returns, or the first one of a tuple, list or dictionary."""
    while isinstance(output, (tuple, list, dict)) and output:
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, Tensor) else None


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device, or on the default device if its constructor reads values."""
    try:
        with torch.device("meta"):
            return build()
    except (InputError, RuntimeError) as error:
        if isinstance(error, InputError) and not isinstance(error.__cause__, RuntimeError):
            raise
        return build()
