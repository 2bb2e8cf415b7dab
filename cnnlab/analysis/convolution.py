"""Convolution and pooling written out, to read, to teach with and to test others against: NumPy only.

What networks call convolution is cross-correlation: the kernel is not mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError

Array = npt.NDArray[np.floating[Any]]
Padding = int | Literal["valid", "same"]

KERNELS: Mapping[str, Array] = MappingProxyType(
    {
        "sobel_x": np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
        "sobel_y": np.array([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]),
        "gaussian": np.array([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
        "sharpen": np.array([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    }
)
"""Kernels that somebody thought of, (3, 3): brightness that rises to the right, and downwards (Sobel and Feldman 1968);
a blur; more contrast at edges."""


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """How many positions a window takes along an axis: floor((n + 2p - d(k - 1) - 1) / s) + 1.

    Args:
        size: The input's, n.
        kernel: The window's, k.
        stride: From one position to the next, s.
        padding: Zeros on each side, p.
        dilation: From one tap of the window to the next, d.

    Raises:
        InputError: If the window does not fit, or if a number is out of its range.

    >>> output_size(224, kernel=7, stride=2, padding=3)
    112
    """
    for name, value, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}, expected {least} or more")
    extent = dilation * (kernel - 1) + 1
    if extent > size + 2 * padding:
        raise InputError(f"a window of {extent} does not fit into {size} with a padding of {padding}")
    return (size + 2 * padding - extent) // stride + 1


def conv2d(image: Array, kernel: Array, stride: int = 1, padding: Padding = "valid", dilation: int = 1) -> Array:
    """Cross-correlate an image with a kernel, all positions at once.

    Args:
        image: (H, W), or (C, H, W).
        kernel: (k, l), or (outputs, C, k, l).
        stride: From one position to the next, on both axes.
        padding: Zeros on each side; "valid" for none; "same" for as many as keep H and W (stride 1; an even kernel has
            one more behind).
        dilation: From one tap of the kernel to the next.

    Returns:
        (H', W'), or (outputs, H', W').

    Raises:
        InputError: If image and kernel do not fit each other.

    >>> checkerboard = (np.indices((5, 5)).sum(0) + 1) % 2
    >>> conv2d(checkerboard, checkerboard[:3, :3]).astype(int).tolist()
    [[5, 0, 5], [0, 5, 0], [5, 0, 5]]
    """
    image, kernel, plain = _checked(image, kernel)
    windows = _windows(_padded(image, kernel, stride, padding, dilation), kernel.shape[2:], stride, dilation)
    result: Array = np.einsum("chwkl,ockl->ohw", windows, kernel)
    first: Array = result[0]
    return first if plain else result


def conv2d_loops(image: Array, kernel: Array, stride: int = 1, padding: Padding = "valid", dilation: int = 1) -> Array:
    """The same, one product at a time: what convolution is, and as slow as it looks.

    Args:
        image: See conv2d.
        kernel: See conv2d.
        stride: See conv2d.
        padding: See conv2d.
        dilation: See conv2d.
    """
    image, kernel, plain = _checked(image, kernel)
    padded = _padded(image, kernel, stride, padding, dilation)
    outputs, channels, height, width = kernel.shape
    rows = output_size(padded.shape[1], height, stride, dilation=dilation)
    columns = output_size(padded.shape[2], width, stride, dilation=dilation)
    result = np.zeros((outputs, rows, columns))
    for output in range(outputs):
        for row in range(rows):
            for column in range(columns):
                for channel in range(channels):
                    for i in range(height):
                        for j in range(width):
                            pixel = padded[channel, row * stride + i * dilation, column * stride + j * dilation]
                            result[output, row, column] += pixel * kernel[output, channel, i, j]
    return result[0] if plain else result


def pool2d(image: Array, size: int, stride: int | None = None, how: Literal["max", "average"] = "max") -> Array:
    """The greatest value, or the mean, of each window.

    Args:
        image: (H, W), or (C, H, W).
        size: The window's height and width.
        stride: From one window to the next; the size if None.
        how: max or average.

    Returns:
        (H', W'), or (C, H', W').

    Raises:
        InputError: If the window does not fit, or if there is no such pooling.

    >>> pool2d(np.arange(16.0).reshape(4, 4), 2).tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if how not in ("max", "average"):
        raise InputError(f"how is {how!r}, expected max or average")
    image = np.asarray(image, np.float64)
    if image.ndim not in (2, 3):
        raise InputError(f"an image of {image.shape}, expected (H, W) or (C, H, W)")
    step = size if stride is None else stride
    windows = _windows(image if image.ndim == 3 else image[None], (size, size), step, 1)
    result: Array = windows.max((3, 4)) if how == "max" else windows.mean((3, 4))
    return result if image.ndim == 3 else result[0]


def shift_change(layer: Callable[[Array], Array], image: Array, shift: int = 1) -> float:
    """How much of a layer's result changes when the image moves, 0 for a layer that does not care.

    The image goes round: what leaves on one side comes in on the other, so that nothing is lost.

    Args:
        layer: From an image to a result.
        image: (H, W), or (C, H, W).
        shift: Pixels to the right.

    Returns:
        The mean absolute change, divided by the result's mean absolute distance from its own mean.

    >>> rough = np.random.default_rng(0).normal(size=(32, 32))
    >>> smooth = conv2d(rough, np.full((5, 5), 1 / 25))
    >>> pooled = [shift_change(lambda image: pool2d(image, 2, how="max"), image) for image in (smooth, rough)]
    >>> pooled[0] < pooled[1]
    True
    """
    before, after = layer(image), layer(np.roll(image, shift, axis=-1))
    return float(np.abs(after - before).mean() / np.abs(before - before.mean()).mean())


def _checked(image: Array, kernel: Array) -> tuple[Array, Array, bool]:
    # Of bytes, the products would overflow.
    image, kernel = np.asarray(image, np.float64), np.asarray(kernel, np.float64)
    plain = image.ndim == kernel.ndim == 2
    if plain:
        image, kernel = image[None], kernel[None, None]
    if image.ndim != 3 or kernel.ndim != 4 or image.shape[0] != kernel.shape[1]:
        raise InputError(
            f"an image of {image.shape} and a kernel of {kernel.shape} do not fit: expected (H, W) and (k, l), or "
            "(C, H, W) and (outputs, C, k, l)"
        )
    return image, kernel, plain


def _padded(image: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    if dilation < 1:
        raise InputError(f"dilation is {dilation}, expected 1 or more")
    if padding == "same":
        if stride != 1:
            raise InputError(f'padding "same" keeps height and width, which a stride of {stride} does not')
        missing = [dilation * (taps - 1) for taps in kernel.shape[2:]]
        return np.pad(image, [(0, 0), *((total // 2, total - total // 2) for total in missing)])
    around = 0 if padding == "valid" else padding
    if not isinstance(around, int) or around < 0:
        raise InputError(f'padding is {padding!r}, expected "valid", "same" or a number of zeros')
    return np.pad(image, [(0, 0), (around, around), (around, around)])


def _windows(image: Array, kernel: tuple[int, ...], stride: int, dilation: int) -> Array:
    """(C, H, W) to (C, H', W', k, l), a view."""
    for size, taps in zip(image.shape[1:], kernel, strict=True):
        output_size(size, taps, stride, dilation=dilation)
    extents = tuple(dilation * (taps - 1) + 1 for taps in kernel)
    windows: Array = np.lib.stride_tricks.sliding_window_view(image, extents, axis=(1, 2))
    return windows[:, ::stride, ::stride, ::dilation, ::dilation]
