"""Filmstrips: pictures to which frames are added on the right, with a caption below each."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cnnlab.imaging import Pixels, resize
from cnnlab.writing import write_atomically

_GAP = 4
_LINE = 13
_LINES = 2
_KEY = "frames"


def add_frame(path: Path, number: int, frame: Pixels, caption: Sequence[str], side: int = 112) -> None:
    """Add a frame to a strip after those with lower numbers; frames with the same or higher numbers are removed.

    So a resumed run continues the strip of the interrupted one.

    Args:
        path: The PNG file; created if it does not exist.
        number: The number of the frame, such as its epoch.
        frame: (H, W, 3).
        caption: At most two lines, cut off if they are too wide.
        side: The frame's height in the strip, in pixels.
    """
    width = max(1, round(frame.shape[1] * side / frame.shape[0]))
    smooth = "bilinear" if frame.shape[0] > side else "nearest"
    column = np.full((side + 2 * _GAP + _LINES * _LINE, width + 2 * _GAP, 3), 255, dtype=np.uint8)
    column[_GAP : _GAP + side, _GAP : _GAP + width] = resize(frame, (side, width), smooth)
    column = _captioned(column, caption, side + _GAP + 2)
    numbers, kept = _frames(path)
    earlier = [place for place, known in enumerate(numbers) if known < number]
    columns = [kept[:, place * column.shape[1] : (place + 1) * column.shape[1]] for place in earlier]
    notes = PngInfo()
    notes.add_text(_KEY, json.dumps([*(numbers[place] for place in earlier), number]))
    _write(np.concatenate([*columns, column], axis=1), path, notes)


def stack_strips(paths: Sequence[Path], path: Path) -> None:
    """Stack strips, PNG files, below each other in one."""
    strips = [_frames(strip)[1] for strip in paths]
    width = max(strip.shape[1] for strip in strips)
    rows = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    _write(np.concatenate(rows), path, PngInfo())


def _frames(path: Path) -> tuple[list[int], Pixels]:
    """Return the numbers of a strip's frames, and its pixels."""
    if not path.is_file():
        return [], np.zeros((0, 0, 3), dtype=np.uint8)
    with Image.open(path) as picture:
        pixels: Pixels = np.asarray(picture.convert("RGB"))
        return list(json.loads(str(picture.info.get(_KEY, "[]")))), pixels


def _captioned(column: Pixels, lines: Sequence[str], top: int) -> Pixels:
    picture = Image.fromarray(column)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(10)
    room = column.shape[1] - _GAP
    for place, line in enumerate(lines[:_LINES]):
        while line and draw.textlength(line, font) > room:
            line = line[:-1]
        left = (column.shape[1] - draw.textlength(line, font)) / 2
        draw.text((left, top + place * _LINE), line, fill="black", font=font)
    made: Pixels = np.asarray(picture)
    return made


def _write(pixels: Pixels, path: Path, notes: PngInfo) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", pnginfo=notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getbuffer())
