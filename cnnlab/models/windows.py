"""Large images through a network window by window, as if they had gone through at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cnnlab.errors import InputError


class Window(NamedTuple):
    """A part of one axis that goes through the network, and what is kept of the result: pixels of the whole axis."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def windows(length: int, size: int, margin: int, multiple: int = 1) -> list[Window]:
    """Divide an axis into overlapping windows whose kept parts cover it, each pixel once.

    Args:
        length: The axis, in pixels.
        size: A window; the last one may be smaller, so that none reaches beyond the image.
        margin: What is discarded at each end of a window, but for the ends of the axis.
        multiple: Windows begin at multiples of it.

    Raises:
        InputError: If nothing of a window would be kept.

    >>> windows(100, size=64, margin=8, multiple=16)
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
    keeps = zip([0, *ends[:-1]], ends, strict=True)
    return [Window(start, min(start + size, length), *kept) for start, kept in zip(starts, keeps, strict=True)]


def by_windows(
    network: Callable[[Tensor], Tensor], images: Tensor, size: int, margin: int, multiple: int = 1
) -> Tensor:
    """Predict images window by window.

    For a network of convolutions the result is that of the whole image if the margin is at least half of its receptive
    field, and windows begin where it halves evenly (``multiple``). Where a layer looks at all of the image (a global
    pool) it is close to it.

    Args:
        network: Images (B, C, h, w) to predictions (B, K, h, w).
        images: (B, C, H, W).
        size: Height and width of a window.
        margin: What is discarded at each side of a window, but for the image's own edges.
        multiple: Windows begin at multiples of it.

    Returns:
        (B, K, H, W).

    Raises:
        InputError: If nothing of a window would be kept.
    """
    height, width = images.shape[-2:]
    rows, columns = windows(height, size, margin, multiple), windows(width, size, margin, multiple)
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
