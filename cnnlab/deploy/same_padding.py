"""Padding as TensorFlow does it, in whole numbers, so that networks with it can be exported for any size of images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> Any:
    """How much to add to a side so that a convolution makes it ``stride`` times smaller, rounded up.

    It equals timm's get_same_padding. That one divides as real numbers, which torch.export cannot simplify: the size of
    each layer contains those of all layers before, and an export takes many minutes. With whole numbers, a side that is
    a known multiple of the stride needs a constant padding.

    Args:
        x: The side, height or width; a symbol while a network is exported.
        kernel_size: The kernel's side.
        stride: The convolution's stride.
        dilation: The kernel's dilation.

    >>> [same_padding(side, 3, 2, 1) for side in (7, 8)]
    [2, 1]
    """
    return torch.sym_max((x - 1) // stride * stride + (kernel_size - 1) * dilation + 1 - x, 0)


@contextmanager
def whole_number_padding() -> Iterator[None]:
    """Let timm's layers use same_padding."""
    # A network of timm has imported it; for others it would take a second.
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:
        yield
        return
    before = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = before
