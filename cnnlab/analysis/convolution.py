"""Reference convolution and pooling in NumPy, for teaching and for tests.

Convolution means cross-correlation here, as in neural networks: the kernel is not mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.models.blocks import check_positive

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
"""Classical kernels, (3, 3): brightness that rises to the right or downwards (Sobel and Feldman 1968); a blur; more
contrast at edges."""


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """The number of positions of a window along an axis: floor((n + 2p - d(k - 1) - 1) / s) + 1.

    Args:
        size: The input's size, n.
        kernel: The window's size, k.
        stride: The step from one position to the next, s.
        padding: The number of zeros on each side, p.
        dilation: The step from one tap of the window to the next, d.

    Raises:
        InputError: If the window does not fit, or a number is out of range.

    >>> output_size(224, kernel=7, stride=2, padding=3)
    112
    """
    check_positive(kernel=kernel, stride=stride, dilation=dilation)
    if padding < 0:
        raise InputError(f"padding is {padding}, expected 0 or more")
    extent = dilation * (kernel - 1) + 1
    if extent > size + 2 * padding:
        raise InputError(f"a window of {extent} does not fit into {size} with a padding of {padding}")
    return (size + 2 * padding - extent) // stride + 1


def conv2d(image: Array, kernel: Array, stride: int = 1, padding: Padding = "valid", dilation: int = 1) -> Array:
    """Cross-correlate an image with a kernel, vectorized.

    Args:
        image: (H, W), or (C, H, W).
        kernel: (k, l), or (outputs, C, k, l).
        stride: The step from one position to the next, on both axes.
        padding: The number of zeros on each side; "valid" for none; "same" to keep H and W (stride 1 only; for an even
            kernel, one more zero at the end).
        dilation: The step from one tap of the kernel to the next.

    Returns:
        (H', W'), or (outputs, H', W').

    Raises:
        InputError: If image and kernel do not fit each other.

    >>> checkerboard = (np.indices((5, 5)).sum(0) + 1) % 2
    >>> conv2d(checkerboard, checkerboard[:3, :3]).astype(int).tolist()
    [[5, 0, 5], [0, 5, 0], [5, 0, 5]]
    """
    image, kernel, is_2d = _check(image, kernel)
    windows = _view_windows(_pad(image, kernel, stride, padding, dilation), kernel.shape[2:], stride, dilation)
    result: Array = np.einsum("chwkl,ockl->ohw", windows, kernel)
    return result[0] if is_2d else result


def conv2d_loops(image: Array, kernel: Array, stride: int = 1, padding: Padding = "valid", dilation: int = 1) -> Array:
    """The same as conv2d in plain loops, one product at a time: easy to read, and slow.

    Args:
        image: See conv2d.
        kernel: See conv2d.
        stride: See conv2d.
        padding: See conv2d.
        dilation: See conv2d.
    """
    image, kernel, is_2d = _check(image, kernel)
    padded = _pad(image, kernel, stride, padding, dilation)
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
    return result[0] if is_2d else result


def pool2d(image: Array, size: int, stride: int | None = None, mode: Literal["max", "average"] = "max") -> Array:
    """The maximum, or the mean, of each window.

    Args:
        image: (H, W), or (C, H, W).
        size: The window's height and width.
        stride: The step from one window to the next; the size if None.
        mode: max or average.

    Returns:
        (H', W'), or (C, H', W').

    Raises:
        InputError: If the window does not fit, or the mode is unknown.

    >>> pool2d(np.arange(16.0).reshape(4, 4), 2).tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if mode not in ("max", "average"):
        raise InputError(f"mode is {mode!r}, expected max or average")
    image = np.asarray(image, np.float64)
    if image.ndim not in (2, 3):
        raise InputError(f"an image of {image.shape}, expected (H, W) or (C, H, W)")
    step = size if stride is None else stride
    windows = _view_windows(image if image.ndim == 3 else image[None], (size, size), step, 1)
    result: Array = windows.max((3, 4)) if mode == "max" else windows.mean((3, 4))
    return result if image.ndim == 3 else result[0]


def shift_change(layer: Callable[[Array], Array], image: Array, shift: int = 1) -> float:
    """The relative change of a layer's output when the image is shifted; 0 for an invariant layer.

    The image is rolled: pixels that leave on one side enter on the other.

    Args:
        layer: A function of an image.
        image: (H, W), or (C, H, W).
        shift: The shift to the right in pixels.

    Returns:
        The mean absolute change, divided by the output's mean absolute deviation.

    >>> rough = np.random.default_rng(0).normal(size=(32, 32))
    >>> smooth = conv2d(rough, np.full((5, 5), 1 / 25))
    >>> pooled = [shift_change(lambda image: pool2d(image, 2, mode="max"), image) for image in (smooth, rough)]
    >>> pooled[0] < pooled[1]
    True
    """
    before, after = layer(image), layer(np.roll(image, shift, axis=-1))
    return float(np.abs(after - before).mean() / np.abs(before - before.mean()).mean())


def _check(image: Array, kernel: Array) -> tuple[Array, Array, bool]:
    # Products of bytes would overflow.
    image, kernel = np.asarray(image, np.float64), np.asarray(kernel, np.float64)
    is_2d = image.ndim == kernel.ndim == 2
    if is_2d:
        image, kernel = image[None], kernel[None, None]
    if image.ndim != 3 or kernel.ndim != 4 or image.shape[0] != kernel.shape[1]:
        raise InputError(
            f"an image of {image.shape} and a kernel of {kernel.shape} do not fit: expected (H, W) and (k, l), or "
            "(C, H, W) and (outputs, C, k, l)"
        )
    return image, kernel, is_2d


def _pad(image: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    check_positive(dilation=dilation)
    if padding == "same":
        if stride != 1:
            raise InputError(f'padding "same" keeps height and width, which a stride of {stride} does not')
        missing = [dilation * (taps - 1) for taps in kernel.shape[2:]]
        return np.pad(image, [(0, 0), *((total // 2, total - total // 2) for total in missing)])
    zeros = 0 if padding == "valid" else padding
    if not isinstance(zeros, int) or zeros < 0:
        raise InputError(f'padding is {padding!r}, expected "valid", "same" or a number of zeros')
    return np.pad(image, [(0, 0), (zeros, zeros), (zeros, zeros)])


def _view_windows(image: Array, kernel: tuple[int, ...], stride: int, dilation: int) -> Array:
    """(C, H, W) to (C, H', W', k, l), a view."""
    for size, taps in zip(image.shape[1:], kernel, strict=True):
        output_size(size, taps, stride, dilation=dilation)
    extents = tuple(dilation * (taps - 1) + 1 for taps in kernel)
    windows: Array = np.lib.stride_tricks.sliding_window_view(image, extents, axis=(1, 2))
    return windows[:, ::stride, ::stride, ::dilation, ::dilation]
