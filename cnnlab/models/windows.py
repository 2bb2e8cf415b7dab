"""Prediction of large images in overlapping windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cnnlab.errors import InputError


class Window(NamedTuple):
    """A part of one axis, and the range of its result that is kept, both in pixels of the axis."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def split_into_windows(length: int, size: int, margin: int, multiple: int = 1) -> list[Window]:
    """Split an axis into overlapping windows whose kept parts cover each pixel once.

    Args:
        length: The length of the axis in pixels.
        size: The length of a window; the last window may be shorter, so that it ends with the axis.
        margin: Pixels discarded at each end of a window, except at the ends of the axis.
        multiple: Windows start at multiples of it.

    Raises:
        InputError: If the margins leave less than ``multiple`` pixels of a window.

    >>> split_into_windows(100, size=64, margin=8, multiple=16)
    [Window(start=0, stop=64, keep_from=0, keep_to=56), Window(start=48, stop=100, keep_from=56, keep_to=100)]
    """
    if length <= size:
        return [Window(0, length, 0, length)]
    step = (size - 2 * margin) // multiple * multiple
    if step < 1:
        raise InputError(
            f"a window of {size} pixels with a margin of {margin} at each side leaves less than {multiple} between "
            f"them: make the window larger (from {2 * margin + multiple} on), or the margin smaller"
        )
    starts = range(0, length - size + step, step)
    ends = [*(start + margin for start in starts[1:]), length]
    kept_ranges = zip([0, *ends[:-1]], ends, strict=True)
    return [Window(start, min(start + size, length), *kept) for start, kept in zip(starts, kept_ranges, strict=True)]


def predict_in_windows(
    network: Callable[[Tensor], Tensor], images: Tensor, size: int, margin: int, multiple: int = 1
) -> Tensor:
    """Predict images window by window.

    For a network of convolutions, the result is that of the whole image under two conditions: the margin is at least
    half of the receptive field, and windows start at multiples of the network's stride (``multiple``). With layers that
    see the whole image, such as global pooling, the result is approximate.

    Args:
        network: Images (B, C, h, w) to predictions (B, K, h, w).
        images: (B, C, H, W).
        size: Height and width of a window.
        margin: Pixels discarded at each side of a window, except at the image's edges.
        multiple: Windows start at multiples of it.

    Returns:
        (B, K, H, W).

    Raises:
        InputError: If the margins leave less than ``multiple`` pixels of a window.
    """
    height, width = images.shape[-2:]
    rows, columns = (split_into_windows(length, size, margin, multiple) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return network(images)
    whole: Tensor | None = None
    for row in rows:
        for column in columns:
            part = network(images[..., row.start : row.stop, column.start : column.stop])
            if whole is None:
                whole = part.new_empty(*part.shape[:2], height, width)
            whole[..., row.keep_from : row.keep_to, column.keep_from : column.keep_to] = part[
                ...,
                row.keep_from - row.start : row.keep_to - row.start,
                column.keep_from - column.start : column.keep_to - column.start,
            ]
    assert whole is not None
    return whole
