"""Read, orient, resize and crop images with NumPy and Pillow only; used by evaluation and by the runtime."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cnnlab.errors import InputError, nearest
from cnnlab.image_files import COPY_VARIABLE, EXTENSIONS, ImageError, collect_images, explain, list_images, open_file
from cnnlab.pixels import Pixels, Tones, as_pixels, deep_values, has_alpha, is_deep

__all__ = (  # Those of image_files and pixels too: most users of images need only this module.
    "COPY_VARIABLE",
    "EXTENSIONS",
    "INTERPOLATIONS",
    "EvalTransform",
    "ImageError",
    "ImageSource",
    "InMemoryImage",
    "LazyImage",
    "Pixels",
    "Place",
    "Preprocessing",
    "Tones",
    "as_png",
    "collect_images",
    "cover_size",
    "fitted_size",
    "height_and_width",
    "list_images",
    "mask_as_png",
    "overlay_heatmap",
    "overlay_mask",
    "palette",
    "preprocess",
    "read_orientation",
    "resampling",
    "resize",
    "turn_upright",
)

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION = 0x0112  # The Exif tag.
_TURNED = (5, 6, 7, 8)  # Its values that exchange width and height.
_FLIPS: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
"""The axes that are reversed, after height and width were exchanged."""
_HEAT_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT = ((20, 30, 140), (0, 150, 200), (70, 200, 80), (250, 200, 0), (200, 20, 20))
_MOST_ASPECT = 100
"""The largest ratio of an image's sides: a file with a larger one is a mistake, and would fill the memory."""


class Preprocessing(NamedTuple):
    """The preprocessing that a network expects."""

    size: tuple[int, int]
    """Height and width."""
    crop: float
    """The share of the resized image's sides that the center crop keeps, above 0, to 1."""
    interpolation: str
    """A name in INTERPOLATIONS."""
    mean: Sequence[float]
    """Per channel, in 0..1."""
    std: Sequence[float]
    """Per channel, in 0..1."""
    whole: bool = False
    """Whether whole images are resized to the size, whatever their aspect ratio, as for masks."""


class Place(NamedTuple):
    """Where an original image is in a network's input, from the top left corner on."""

    size: tuple[int, int]
    """Height and width of the original image."""
    covers: tuple[int, int]
    """Height and width of the part of the input that shows the image."""


class EvalTransform(NamedTuple):
    """The conversion of an image file to a network's input pixels."""

    channels: int
    """3 for RGB, 1 for gray."""
    size: tuple[int, int] | None = None
    """Height and width; each image's own if None."""
    crop: float = 1.0
    """The share of the resized image's sides that the center crop keeps, above 0, to 1."""
    interpolation: str = "bilinear"
    """A name in INTERPOLATIONS."""
    stretch: bool = False
    """Whether the whole image is resized to the size, whatever its aspect ratio, instead of a center crop."""
    range: tuple[float, float] | None = None
    """See pixels.Tones."""
    alpha: Literal["blend", "drop"] = "blend"
    """See pixels.Tones."""
    pad: tuple[float, ...] | None = None
    """The color, per channel, 0..255, beside an image that is resized as a whole, with its aspect ratio, into the top
    left corner of the size; None if images are stretched or cropped."""

    def place(self, image_size: tuple[int, int]) -> Place:
        """Where an image of this height and width is in the network's input."""
        if self.pad is None or self.size is None:
            return Place(image_size, self.size or image_size)
        return Place(image_size, fitted_size(image_size, self.size))

    @property
    def tones(self) -> Tones:
        """How the values of a file become 0..255."""
        return Tones(self.range, self.alpha)

    def open(self, path: str | Path) -> LazyImage:
        """Open an image file, to be read with these tones.

        Raises:
            ImageError: See LazyImage.
        """
        return LazyImage(path, self.tones)


class ImageSource(Protocol):
    """An image whose size is known before its pixels are read."""

    size: tuple[int, int]
    """Height and width."""

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """Return pixels (H, W, channels), 0..255; they may be smaller, but not below at_least (height, width)."""


class LazyImage:
    """An image file with its header read: its size is known, and read() decodes its pixels.

    Only the first frame of an animation is used.

    Args:
        path: The file.
        tones: How its values become 0..255; Tones() if None.

    Raises:
        ImageError: If the file is missing, empty, not an image that Pillow can read, or more than 100 times as long
            as wide.
    """

    def __init__(self, path: str | Path, tones: Tones | None = None) -> None:
        self.path = path
        self._tones = tones
        try:
            self._image, self.content = open_file(path)
            self.orientation = read_orientation(self._image, self.content)
            """How the file is turned, by its Exif tag: 1, not at all, to 8."""
        except Exception as error:  # Pillow's plugins raise many types.
            raise explain(path, error) from error
        self.deep = is_deep(self._image)
        """Whether it has more than 8 bits per channel."""
        self.has_alpha = has_alpha(self._image)
        """Whether it has an alpha channel or a transparent color."""
        width, height = self._image.size
        self._turned = self.orientation in _TURNED
        self.size = (width, height) if self._turned else (height, width)
        """Height and width of the upright image."""
        _check_aspect(path, self.size)

    def deep_values(self) -> npt.NDArray[np.float64]:
        """The values as they are in the file, if it is deep: (H, W), or (H, W, 3).

        Raises:
            ImageError: If the file is truncated, broken or too large.
        """
        try:
            return deep_values(self._image, self.content)
        except Exception as error:
            raise explain(self.path, error) from error

    def transparency(self) -> float:
        """The share of pixels that are not opaque, 0..1.

        Raises:
            ImageError: If the file is truncated, broken or too large.
        """
        try:
            image = self._image.convert("RGBA") if self._image.mode in ("P", "L", "RGB", "1") else self._image
            return float((np.asarray(image)[..., -1] < 255).mean()) if self.has_alpha else 0.0
        except Exception as error:
            raise explain(self.path, error) from error

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """Decode the pixels, upright, with 8 bits per channel.

        Transparent pixels become white, unless the tones drop the alpha channel; more bits become 8; CMYK, palettes
        and gray become RGB.

        Args:
            channels: 3 for RGB, 1 for gray.
            at_least: A sufficient height and width: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is
                still at least as large.

        Returns:
            (H, W, channels), 0..255.

        Raises:
            ImageError: If the file is truncated, broken or too large.
        """
        try:
            # MPO: the format in which some phones store several JPEGs.
            if at_least is not None and self._image.format in ("JPEG", "MPO"):
                height, width = at_least
                self._image.draft(None, (height, width) if self._turned else (width, height))
            return turn_upright(as_pixels(self._image, channels, self._tones, self.content), self.orientation)
        except Exception as error:
            raise explain(self.path, error) from error


class InMemoryImage:
    """An image that is already in memory.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, 1) or (H, W, 3), uint8 0..255.
        tones: How a Pillow image's values become 0..255; Tones() if None.

    Raises:
        ImageError: If an array has another type or shape, or an image is more than 100 times as long as wide.
    """

    def __init__(self, image: Image.Image | npt.NDArray[Any], tones: Tones | None = None) -> None:
        self._tones = tones
        if isinstance(image, np.ndarray):
            flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
            if image.dtype != np.uint8 or not image.size or not (flat.ndim == 2 or image.shape[2:] == (3,)):
                raise ImageError(
                    f"an image is an array of {image.dtype} and shape {image.shape}, expected uint8 (height, width), "
                    "(height, width, 1) or (height, width, 3)"
                )
            self._image = Image.fromarray(flat)
        else:
            self._image = ImageOps.exif_transpose(image)
        self.size = (self._image.height, self._image.width)
        """Height and width."""
        _check_aspect("an image in memory", self.size)

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """Return the pixels: see LazyImage.read; at_least has no effect."""
        try:
            return as_pixels(self._image, channels, self._tones)
        except Exception as error:
            raise explain("an image in memory", error) from error


def read_orientation(image: Image.Image, content: bytes) -> int:
    """Return how an image that has not been decoded is turned, by its Exif tag: 1, not at all, to 8.

    Args:
        image: The image.
        content: Its file.
    """
    # Most files have none, and getexif() takes as long as the rest of the header; for a PNG it decodes all pixels.
    if "exif" not in image.info:
        if image.format in ("JPEG", "WEBP", "GIF", "BMP", "PPM"):
            return 1
        if image.format == "PNG" and not any(mark in content for mark in (b"eXIf", b"Raw profile type")):
            return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def turn_upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn decoded pixels (H, W, ...) by an Exif orientation, 1 to 8; another number changes nothing.

    >>> turn_upright(np.array([[1, 2]]), 6).tolist()
    [[1], [2]]
    """
    if orientation not in _FLIPS:
        return pixels
    turned = pixels.swapaxes(0, 1) if orientation in _TURNED else pixels
    return np.ascontiguousarray(np.flip(turned, _FLIPS[orientation]))


def _check_aspect(path: str | Path, size: tuple[int, int]) -> None:
    if max(size) > _MOST_ASPECT * min(size):
        raise ImageError(
            f"{path}: has {size[0]:,} x {size[1]:,} pixels (height x width), more than {_MOST_ASPECT} times as long as "
            "wide: cut it into pieces, or leave it out"
        )


def palette(count: int) -> Pixels:
    """Return colors for classes, (count, 3): the first ten are very different, and neighbors differ in hue.

    >>> palette(2).tolist()
    [[217, 65, 65], [65, 109, 217]]
    """
    hues = (np.arange(count) * 0.6180339887498949) % 1.0
    values = 0.85 - 0.3 * (np.arange(count) // 5 % 2)
    colors = [colorsys.hsv_to_rgb(hue, 0.7, value) for hue, value in zip(hues, values, strict=True)]
    made: Pixels = np.rint(np.array(colors).reshape(-1, 3) * 255).astype(np.uint8)
    return made


def overlay_mask(pixels: Pixels, classes: npt.NDArray[np.integer], count: int, strength: float = 0.5) -> Pixels:
    """Color an image (H, W, 1 or 3) by the classes of its pixels, (H, W), and return it as (H, W, 3).

    The classes are 0..count-1; pixels with other values stay unchanged. strength is the share of the color, 0..1.
    """
    image = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float32)
    known = (classes >= 0) & (classes < count)
    colors = palette(count)[np.where(known, classes, 0)]
    share = strength * known[..., None]
    made: Pixels = np.rint(image * (1 - share) + colors * share).astype(np.uint8)
    return made


def overlay_heatmap(pixels: Pixels, heat: npt.NDArray[np.floating], strength: float = 0.5) -> Pixels:
    """Draw a heat map (H, W) over an image (H, W, 1 or 3), from blue at 0, through green and yellow, to red at 1.

    Returns (H, W, 3), in which strength is the share of the heat map, 0..1.
    """
    colors = np.stack([np.interp(heat, _HEAT_STOPS, levels) for levels in zip(*_HEAT, strict=True)], axis=-1)
    made: Pixels = np.rint(pixels * (1 - strength) + colors * strength).astype(np.uint8)
    return made


def mask_as_png(classes: Pixels, count: int) -> bytes:
    """Return a mask (H, W) of class numbers as a PNG file, displayed in the colors of palette()."""
    image = Image.fromarray(classes)
    image.putpalette(palette(count).flatten().tolist())
    return as_png(image)


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def preprocess(image: ImageSource, reading: EvalTransform) -> Pixels:
    """Convert an image to a network's input pixels; evaluation, prediction and the runtime all use this.

    The image is resized so that it covers size / crop, and its center is cropped, unless it is stretched or padded. A
    JPEG is decoded at no less than twice that size, or its own; the rest of the resizing is antialiased.

    Returns:
        (H, W, channels), 0..255.

    Raises:
        InputError: If there is no such interpolation.
        ImageError: If the image cannot be read.
    """
    height, width = size = reading.size or image.size
    if reading.pad is not None:
        rows, columns = reading.place(image.size).covers
        canvas: Pixels = np.empty((height, width, reading.channels), dtype=np.uint8)
        canvas[:] = np.rint(reading.pad).astype(np.uint8)
        pixels = image.read(reading.channels, (2 * rows, 2 * columns))
        canvas[:rows, :columns] = resize(pixels, (rows, columns), reading.interpolation)
        return canvas
    whole = reading.size is None or reading.stretch
    rows, columns = size if whole else cover_size(image.size, size, reading.crop)
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    pixels = resize(image.read(reading.channels, (2 * rows, 2 * columns)), (rows, columns), reading.interpolation)
    return pixels[top : top + height, left : left + width]


def resize(pixels: Pixels, size: tuple[int, int], interpolation: str = "bilinear") -> Pixels:
    """Resize (H, W, C) to (*size, C), with antialiasing.

    Raises:
        InputError: If there is no such interpolation.
    """
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    made: Pixels = np.asarray(image.resize((size[1], size[0]), resampling(interpolation)))
    return made[..., None] if made.ndim == 2 else made


def cover_size(shape: Sequence[int], size: tuple[int, int], crop: float = 1.0) -> tuple[int, int]:
    """Return the smallest height and width that cover size / crop, with the aspect ratio of shape.

    >>> cover_size((400, 600), (224, 224), crop=0.875)
    (256, 384)
    """
    goal = [int(side / crop) for side in size]
    scale = max(goal[0] / shape[0], goal[1] / shape[1])
    return max(goal[0], int(shape[0] * scale + 1e-6)), max(goal[1], int(shape[1] * scale + 1e-6))


def fitted_size(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest height and width that fit into size, with the aspect ratio of shape.

    >>> fitted_size((480, 640), (256, 320))
    (240, 320)
    """
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def resampling(interpolation: str) -> Image.Resampling:
    """Return Pillow's filter of this name.

    Raises:
        InputError: If there is no such interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"there is no interpolation {interpolation!r}: {nearest(interpolation, INTERPOLATIONS)}")
    return INTERPOLATIONS[interpolation]


def height_and_width(name: str, value: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width of an option that may be one number.

    Raises:
        InputError: If it is not one number or two numbers, each 1 or more.
    """
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"{name} is {value}, expected one number, or height and width, 1 or more")
    return sides[0], sides[1]
