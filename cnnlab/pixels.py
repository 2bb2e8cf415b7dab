"""From a decoded image to 8 bits per channel: deep values, transparency, palettes."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.errors import InputError
from cnnlab.image_files import FORMATS

Pixels = npt.NDArray[np.uint8]
ALPHAS = ("blend", "drop")
"""What a fourth channel that a file calls alpha does: blend lays the image on white, drop ignores the channel."""
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_WHITE = (255, 255, 255, 255)
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Tones(NamedTuple):
    """How the values of a file become 0..255."""

    range: tuple[float, float] | None = None
    """The values that become 0 and 255, of files with more than 8 bits; None: 0 and 65535, or 0 and 1 of floats."""
    alpha: Literal["blend", "drop"] = "blend"
    """See ALPHAS."""


def check_tones(value_range: Sequence[float] | None, alpha: str) -> Tones:
    """Return the options data.range and data.alpha.

    Args:
        value_range: Two numbers, the first below the second; or None.
        alpha: A name in ALPHAS.

    Raises:
        InputError: If one is neither.
    """
    if alpha not in ALPHAS:
        raise InputError(f"data.alpha is {alpha!r}, expected blend (on white) or drop (the channel is ignored)")
    if value_range is None:
        return Tones(None, alpha)  # type: ignore[arg-type]
    low_and_high = tuple(map(float, value_range))
    if len(low_and_high) != 2 or not -np.inf < low_and_high[0] < low_and_high[1] < np.inf:
        raise InputError(
            f"data.range is {list(value_range)}, expected two numbers, the values that become black and white, such as "
            "--data.range '[0, 4095]'"
        )
    return Tones((low_and_high[0], low_and_high[1]), alpha)  # type: ignore[arg-type]


def is_deep(image: Image.Image) -> bool:
    """Whether an image that has not been decoded has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F")) or _is_deep_color(image)


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent color."""
    return image.mode in _WITH_ALPHA or ("transparency" in image.info and not image.mode.startswith(("I", "F")))


def deep_values(image: Image.Image, content: bytes = b"") -> npt.NDArray[np.float64]:
    """The values of an image for which is_deep is true.

    Args:
        image: The image; decoded here.
        content: Its file, for color: Pillow decodes the high byte, so the low byte is read by a second decoding.

    Returns:
        (H, W), or (H, W, 3) for color.

    Raises:
        ValueError: If some are no finite numbers.
    """
    if not _is_deep_color(image):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("some of its values are no finite numbers")
        return values
    low = Image.open(io.BytesIO(content), formats=FORMATS)
    low.tile = [tile._replace(args=_swapped(tile.args)) for tile in low.tile]
    high_byte, low_byte = (np.asarray(one, dtype=np.float64)[..., :3] for one in (image, low))
    made: npt.NDArray[np.float64] = high_byte * 256 + low_byte
    return made


def as_pixels(image: Image.Image, channels: int, tones: Tones | None = None, content: bytes = b"") -> Pixels:
    """Convert an image to 8 bits.

    Args:
        image: The image.
        channels: 3 for RGB, 1 for gray.
        tones: What its values mean; Tones() if None.
        content: Its file, for color of more than 8 bits.

    Returns:
        (H, W, channels), 0..255.

    Raises:
        ValueError: If its values do not fit.
    """
    tones = tones or Tones()
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_scaled(deep_values(image), tones.range, image.mode))
    elif tones.range is not None and content and _is_deep_color(image):
        image = _deep_color(image, tones.range, content)
    if has_alpha(image):
        image = _without_alpha(image, tones.alpha)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    pixels: Pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _is_deep_color(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA") and any(
        layout.startswith("RGB") and ";16" in layout for layout in map(_layout, getattr(image, "tile", ()))
    )


def _layout(tile: Any) -> str:
    """The kind of numbers in a file, such as RGB;16B."""
    layout = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
    return layout if isinstance(layout, str) else ""


def _swapped(args: Any) -> Any:
    if isinstance(args, str):
        return args[:-1] + _OTHER_BYTE[args[-1]]
    return (_swapped(args[0]), *args[1:])


def _deep_color(image: Image.Image, value_range: tuple[float, float], content: bytes) -> Image.Image:
    colors = Image.fromarray(_scaled(deep_values(image, content), value_range, image.mode))
    if image.mode == "RGBA":
        colors.putalpha(image.getchannel("A"))
    return colors


def _scaled(values: npt.NDArray[np.float64], value_range: tuple[float, float] | None, mode: str) -> Pixels:
    if value_range is None:
        low, high = float(values.min()), float(values.max())
        value_range = (0.0, 1.0) if mode == "F" else (0.0, 65535.0)
        if low < value_range[0] or high > value_range[1]:
            raise ValueError(
                f"its values go from {low:g} to {high:g}, expected 0..65535, or 0..1: say which become black and "
                f"white, --data.range '[{low:g}, {high:g}]', or convert it to 8 bits"
            )
    low, high = value_range
    made: Pixels = np.rint((values - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)
    return made


def _without_alpha(image: Image.Image, alpha: str) -> Image.Image:
    if alpha == "blend":
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    if image.mode in ("RGBa", "La"):  # Converting would divide the colors by the channel.
        bands = image.split()[:-1]
        return Image.merge("RGB", bands) if len(bands) == 3 else bands[0]
    return image.convert({"LA": "L", "L": "L"}.get(image.mode, "RGB"))
