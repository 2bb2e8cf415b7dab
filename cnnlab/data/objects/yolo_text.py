"""The text of YOLO's label files, parsed many files at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cnnlab.data.objects.findings import Findings
from cnnlab.data.objects.reading import RawObjects
from cnnlab.data.objects.shapes import Floats, Ints, Shapes, starts

_SPACES = np.zeros(256, np.bool_)
_SPACES[[9, 10, 11, 12, 13, 32]] = True
_FORM = "expected a class and 4 numbers (x and y of the center, width, height), or a class and a polygon"
_BOM = b"\xef\xbb\xbf"


class LabelText:
    """Parses label files: each line is CLASS X Y WIDTH HEIGHT, perhaps with a score, or CLASS and a polygon's points.

    Args:
        findings: Gets the lines that cannot be read.
        place: The name of a line, from its image's row and its number.
        boxes_only: Whether what follows the box is something else (keypoints), and not read.
    """

    def __init__(self, findings: Findings, place: Callable[[int, int], str], boxes_only: bool = False) -> None:
        self.findings = findings
        self.scored = 0
        """Lines with a score, which is not used."""
        self._place = place
        self._boxes_only = boxes_only

    def parse(self, contents: Sequence[bytes], rows: Sequence[int]) -> RawObjects:
        """The objects of some files.

        Args:
            contents: Each file's bytes.
            rows: Each file's image.
        """
        texts = [_unix_lines(content) for content in contents]
        buffer = b"\n".join(texts) + b"\n"
        per_file = np.array([text.count(b"\n") + 1 for text in texts], np.int64)
        images = np.repeat(np.array(rows, np.int64), per_file)
        numbers = np.arange(len(images)) - np.repeat(starts(per_file)[:-1], per_file) + 1
        tokens, counts = _split(buffer)
        values, strange = _numbers(tokens)
        first = starts(counts)[:-1]
        lines = np.flatnonzero(self._good_lines(values, first, counts, strange, (tokens, images, numbers)))
        polygon = (counts[lines] > 6) & (not self._boxes_only)
        self.scored += int((counts[lines] == 6).sum()) if not self._boxes_only else 0
        boxes = np.empty((len(lines), 4))
        center, half = (values[first[lines, None] + np.array(own)] for own in ((1, 2), (3, 4)))
        boxes[:, :2], boxes[:, 2:] = center - half / 2, center + half / 2
        shapes = _polygons(values, first[lines] + 1, np.where(polygon, counts[lines] - 1, 0), boxes)
        labels = np.clip(values[first[lines]], -(2**31), 2**31).astype(np.int64)
        crowd = np.zeros(len(lines), np.bool_)
        return RawObjects(images[lines], labels, boxes, crowd, None, shapes, numbers[lines])

    def _good_lines(
        self, values: Floats, first: Ints, counts: Ints, strange: Ints, names: tuple[list[bytes], Ints, Ints]
    ) -> npt.NDArray[np.bool_]:
        """(L,) whether a line is an object; lines that should be are findings.

        Args:
            values: (T,) the numbers.
            first: (L,) where each line begins.
            counts: (L,) how many each has.
            strange: The places of words that are no numbers.
            names: The words, and the image and the number of each line.
        """
        tokens, images, numbers = names
        good = counts > 0

        def refuse(bad: npt.NDArray[np.bool_], kind: str, remedy: str, describe: Callable[[int], str]) -> None:
            bad = bad & good
            good[bad] = False
            lines = np.flatnonzero(bad).tolist()
            texts = (f"{self._place(int(images[n]), int(numbers[n]))}: {describe(n)}" for n in lines)
            self.findings.add(kind, remedy, texts, len(lines))

        word = {int(np.searchsorted(first, place, "right")) - 1: tokens[place] for place in strange[::-1].tolist()}
        comma, other = np.zeros((2, len(counts)), np.bool_)
        for line, token in word.items():
            (comma if b"," in token else other)[line] = True
        remedy = "separate numbers by spaces, and write decimals with a point"
        refuse(comma, "lines with commas", remedy, lambda n: f"{_shown(word[n])} has a comma")
        refuse(other, "lines with words that are no numbers", _FORM, lambda n: f"{_shown(word[n])} is no number")
        refuse(counts < 5, "lines with too few numbers", _FORM, lambda n: f"it has {counts[n]} numbers")
        odd = (counts > 6) & (counts % 2 == 0) & (not self._boxes_only)
        kind, remedy = "polygons with an odd count of coordinates", "give x and y of each point"
        refuse(odd, kind, remedy, lambda n: f"its polygon has {counts[n] - 1} coordinates")
        classes = np.zeros(len(counts))
        classes[good] = values[first[good]]
        kind, remedy = "lines whose class is no whole number", "begin a line with its class, 0 for the first"
        refuse(~(classes == np.floor(classes)), kind, remedy, lambda n: f"its class is {classes[n]:g}")
        return good


def _numbers(tokens: list[bytes]) -> tuple[Floats, Ints]:
    """The values of words, NaN for those that are no numbers, and the places of these."""
    try:
        return np.fromiter(map(float, tokens), np.float64, len(tokens)), np.zeros(0, np.int64)
    except ValueError:
        pass
    values, strange = np.full(len(tokens), np.nan), []
    for place, token in enumerate(tokens):
        try:
            values[place] = float(token)
        except ValueError:
            strange.append(place)
    return values, np.array(strange, np.int64)


def _shown(token: bytes) -> str:
    return repr(token[:40].decode(errors="replace"))


def _unix_lines(content: bytes) -> bytes:
    content = content.removeprefix(_BOM)
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in content else content


def _split(buffer: bytes) -> tuple[list[bytes], Ints]:
    """The words of a text, and (L,) how many each line has."""
    codes = np.frombuffer(buffer, np.uint8)
    space = _SPACES[codes]
    begins = ~space
    begins[1:] &= space[:-1]
    ends = np.flatnonzero(codes == 10)
    before = np.cumsum(begins)[ends]
    return buffer.split(), np.diff(before, prepend=0)


def _polygons(values: Floats, first: Ints, counts: Ints, boxes: Floats) -> Shapes:
    """The polygons of N objects, of which those with no coordinates have none; their boxes are put right."""
    offsets = starts(counts)
    own = np.flatnonzero(counts)
    points = values[np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1])].reshape(-1, 2)
    if len(own):
        begins = offsets[own] // 2
        boxes[own, :2] = np.minimum.reduceat(points, begins)
        boxes[own, 2:] = np.maximum.reduceat(points, begins)
    return Shapes.of_rings(points, counts // 2)
