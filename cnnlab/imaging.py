"""Read, orient, resize and crop images with NumPy and Pillow only; used by evaluation and by the runtime."""

from __future__ import annotations

import colorsys
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.errors import InputError, nearest

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
)
"""File name extensions of images, in lower case."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
COPY_VARIABLE = "CNNLAB_COPY"
"""The environment variable with the value FOLDER=COPY: files of FOLDER are read from COPY, on this machine."""
_ORIENTATION = 0x0112  # The Exif tag.
_TURNED = (5, 6, 7, 8)  # Its values that exchange width and height.
_HEAT_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT = ((20, 30, 140), (0, 150, 200), (70, 200, 80), (250, 200, 0), (200, 20, 20))
_WHITE = (255, 255, 255, 255)

Pixels = npt.NDArray[np.uint8]


def list_images(folder: Path, left_out: Counter[str] | None = None) -> list[Path]:
    """List all image files below a folder, sorted by name, without hidden ones.

    Args:
        folder: The folder; links are followed, and each folder is read once.
        left_out: Counts the other files that are not hidden, by extension.

    Raises:
        InputError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    found = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := Path(place).resolve()) in seen:  # A link to a folder that was already read.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            ending = Path(name).suffix.lower()
            if ending in EXTENSIONS:
                found.append(Path(place, name))
            elif left_out is not None:
                left_out[ending or "no ending"] += 1
    return found


def collect_images(names: Iterable[str | Path]) -> list[Path]:
    """Return the given image files, and those below given folders, in this order.

    Raises:
        InputError: If there is no image.
    """
    names = list(names)
    found: list[Path] = []
    for path in map(Path, names):
        found += list_images(path) if path.is_dir() else [path]
    if not found:
        raise InputError(f"there is no image in {', '.join(map(str, names))}")
    return found


class ImageError(InputError):
    """A file that cannot be read as an image; the message begins with its path."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker passes it on as text with the whole traceback: the last line is the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


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

    Raises:
        ImageError: If the file is missing, empty, or not an image that Pillow can read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            # Read at once: the decoder would read small pieces, and keep the file open.
            self.content = _nearest(path).read_bytes()
            """The file's bytes."""
            self._image = Image.open(io.BytesIO(self.content))
            self._orientation = self._read_orientation(self.content)
        except Exception as error:  # Pillow's plugins raise many types.
            raise _explained(path, error) from error
        width, height = self._image.size
        self._turned = self._orientation in _TURNED
        self.size = (width, height) if self._turned else (height, width)
        """Height and width of the upright image."""

    def _read_orientation(self, content: bytes) -> int:
        # Most files have none, and getexif() takes as long as the rest of the header; for a PNG it decodes all pixels.
        if "exif" not in self._image.info:
            if self._image.format in ("JPEG", "WEBP", "GIF", "BMP", "PPM"):
                return 1
            if self._image.format == "PNG" and not any(mark in content for mark in (b"eXIf", b"Raw profile type")):
                return 1
        return int(self._image.getexif().get(_ORIENTATION, 1))

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """Decode the pixels, upright, with 8 bits per channel.

        Transparent pixels become white; 16 bits become 8; CMYK, palettes and gray become RGB.

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
            image: Image.Image = self._image
            if self._orientation != 1:
                image = ImageOps.exif_transpose(image)
            return _as_pixels(image, channels)
        except Exception as error:
            raise _explained(self.path, error) from error


class InMemoryImage:
    """An image that is already in memory.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, 1) or (H, W, 3), uint8 0..255.

    Raises:
        ImageError: If an array has another type or shape.
    """

    def __init__(self, image: Image.Image | npt.NDArray[Any]) -> None:
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

    def read(self, channels: int = 3, at_least: tuple[int, int] | None = None) -> Pixels:
        """Return the pixels: see LazyImage.read; at_least has no effect."""
        try:
            return _as_pixels(self._image, channels)
        except Exception as error:
            raise _explained("an image in memory", error) from error


def read_mask(path: str | Path) -> npt.NDArray[np.int32]:
    """Read the values of a mask as they are in the file.

    Args:
        path: A gray image (8 or 16 bits), a palette image (its numbers are used, not its colors), or an RGB image.

    Returns:
        (H, W), or (H, W, 3) if the file has colors.

    Raises:
        ImageError: If the file cannot be read, or if it has transparency or another kind of pixels.
    """
    try:
        with Image.open(io.BytesIO(_nearest(path).read_bytes())) as image:
            if image.mode not in ("1", "L", "P", "RGB") and not image.mode.startswith("I"):
                raise ValueError(f"its pixels are of the kind {image.mode}, expected gray, palette or RGB")
            return np.asarray(image).astype(np.int32)
    except Exception as error:
        raise _explained(path, error) from error


def _nearest(path: str | Path) -> Path:
    """Return the path of the file, or of its copy on this machine."""
    if not (pair := os.environ.get(COPY_VARIABLE)):
        return Path(path)
    original, _, copy = pair.rpartition("=")
    full = str(Path(path).absolute())
    return Path(copy + full.removeprefix(original)) if full.startswith(original + os.sep) else Path(path)


def _as_pixels(image: Image.Image, channels: int) -> Pixels:
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith(("I", "F")):
        image = _from_deep(image)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    if image.mode != mode:
        image = image.convert(mode)
    pixels: Pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert gray of more than 8 bits: integers are scaled from 0..65535, floats from 0..1."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scale = 255.0 if image.mode == "F" and high <= 1 else 255.0 / 65535.0 if image.mode != "F" else None
    if scale is None or low < 0 or high * scale > 255:
        raise ValueError(f"its values go from {low:g} to {high:g}, expected 0..65535, or 0..1: convert it to 8 bits")
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


def _explained(path: str | Path, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{path}: there is no such file")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            f"{path}: too large to be read safely ({error}): make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS"
        )
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return ImageError(f"{path}: the file is empty (0 bytes)")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{path}: is no image of a known format")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ImageError(f"{path}: cannot be read as an image ({reason})")


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

    The image is resized so that it covers size / crop, and its center is cropped, unless it is stretched. A JPEG is
    decoded at no less than twice that size, or its own; the rest of the resizing is antialiased.

    Returns:
        (H, W, channels), 0..255.

    Raises:
        InputError: If there is no such interpolation.
        ImageError: If the image cannot be read.
    """
    height, width = size = reading.size or image.size
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
