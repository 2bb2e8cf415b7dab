"""Output: the interface of all kinds of answers, so that other code does not depend on the kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageSource, Pixels, Place
from cnnlab.imports import parameters_of

Arrays = Mapping[str, npt.NDArray[Any]]
"""A batch's decoded arrays by name, B first."""


class Marks(NamedTuple):
    """What is marked on an image, for viewers that draw it themselves."""

    boxes: npt.NDArray[Any]
    """(N, 4) x1, y1, x2, y2 in pixels."""
    labels: npt.NDArray[Any]
    """(N,) the numbers of the boxes' classes."""
    scores: npt.NDArray[Any] | None = None
    """(N,), 0..1; None for true ones."""
    mask: npt.NDArray[np.uint8] | None = None
    """(H, W), one more than the number of each pixel's class; 0 for no object."""


class Output(ABC):
    """A kind of answer: its columns, files, images and descriptions, and its metadata in an exported file.

    An answer belongs to one image; each kind has a NamedTuple for it, whose first field is the image's path. A truth is
    one image's target as an array, or None if it is unknown.

    Args:
        names: The names of the classes or values, in order.
    """

    kind: ClassVar[str]
    """The kind's name in exported files and in the registry."""
    dense: ClassVar[bool] = False
    """Whether an answer covers the image's pixels, so that images may keep their own sizes."""

    placed: ClassVar[bool] = False
    """Whether an answer has coordinates in the original image."""
    has_ties: ClassVar[bool] = False
    """Whether rounding may decide between answers that differ: see nearest()."""
    shares: ClassVar[tuple[str, ...]] = ()
    """The columns of describe() that are shares, 0..1."""
    noun: ClassVar[str] = "class"
    """The noun for one of the names."""
    arrays: tuple[str, ...]
    """The names of the arrays that the decoder returns, in an exported file's order."""
    raw_arrays: tuple[str, ...] = ("logits",)
    """The names of the outputs of the network without its decoder."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [str(name) for name in names]

    def metadata(self) -> dict[str, Any]:
        """Plain values from which outputs.create_output() creates this again: "kind", and the arguments by name."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in parameters_of(type(self))}}

    @abstractmethod
    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Decode the network's raw arrays as Decoder does, in NumPy, for exported files without a decoder."""

    @abstractmethod
    def answers(self, arrays: Arrays, paths: Sequence[str], places: Sequence[Place | None]) -> list[Any]:
        """A batch's answers, at the size of the original images.

        Args:
            arrays: The decoder's arrays.
            paths: Each image's file, "" if it has none.
            places: Where each original image is in the network's input; None to leave its answer at the network's size.
        """

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The columns of predictions.csv after index and path."""

    @abstractmethod
    def rows(self, answer: Any, truth: npt.NDArray[Any] | None, files: Mapping[str, str]) -> list[list[object]]:
        """An answer's rows of predictions.csv, without index and path.

        ``files`` has the files that files() has written, by folder, relative to the table's folder.
        """

    def files(
        self, answer: Any, image: ImageSource, overlays: bool, probabilities: bool
    ) -> Iterator[tuple[str, str, bytes]]:
        """The files of an original image beside the table: (folder, ending, content); none for most kinds.

        With overlays, one is an image with the answer drawn on it; with probabilities, one has the decoder's arrays.
        """
        return iter(())

    @property
    def has_files(self) -> bool:
        """Whether files() returns any, so that images need paths."""
        return type(self).files is not Output.files

    @abstractmethod
    def describe(self, answer: Any, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """Truth, prediction and their difference, by column, for a table of single images."""

    @abstractmethod
    def caption(self, answer: Any, truth: npt.NDArray[Any] | None) -> str:
        """The same in one or two short lines, for images."""

    def line(self, answer: Any) -> str:
        """The answer in one line, for a terminal."""
        return self.caption(answer, None).replace("\n", ", ")

    def limited(self, least: float) -> Self:
        """The same answers, with only the parts whose scores are ``least``, 0..1, or more.

        Raises:
            InputError: If answers of this kind have no parts with scores, or if ``least`` is out of range.
        """
        raise InputError(f"--conf is the least score of an object, and these answers are {self.kind}: leave it out")

    def is_right(self, answer: Any, truth: npt.NDArray[Any] | None) -> bool | None:
        """Whether the answer is right; None if this is not defined for one image."""
        return None

    def picture(self, pixels: Pixels, answer: Any, truth: npt.NDArray[Any] | None) -> Pixels:
        """An image (H, W, 3) with truth and answer drawn on it, side by side; unchanged for most kinds."""
        return pixels

    def marks(self, answer: Any, truth: npt.NDArray[Any] | None) -> dict[str, Marks]:
        """What a viewer can draw on an image: "prediction", and "truth" if it is known; nothing for most kinds."""
        return {}

    def drawn(self, pixels: Pixels, target: npt.NDArray[Any]) -> Pixels:
        """A training image (H, W, 3) with its target drawn on it; unchanged for most kinds."""
        return pixels

    @abstractmethod
    def label(self, target: npt.NDArray[Any]) -> str:
        """A short label of a target, shown above a training image; the target may be a mixture."""

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """Convert a target to a truth: None if the target is unknown."""
        return target

    @abstractmethod
    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """The index of the name that an explanation of each image is about; None for the predicted one."""

    def group(self, truth: npt.NDArray[Any]) -> int | None:
        """The index of the name that an image is grouped by, for image grids; None if there is no single one."""
        return None

    @abstractmethod
    def certainty(self, arrays: Arrays, name: int) -> str:
        """The evidence for one of the names in one image's arrays, in a word or two."""

    def difference(self, expected: Arrays, found: Arrays) -> float:
        """The difference between two decoded batches: the maximum absolute difference of a number."""
        # np.max, because max() would ignore NaN.
        return float(np.max([np.abs(found[name] - expected[name]).max() for name in expected]))

    def nearest(self, answers: Sequence[Arrays], found: Arrays) -> Arrays:
        """Of several answers to the same images that differ by rounding only, what is nearest to another one.

        Args:
            answers: Decoded batches.
            found: The batch that the result will be compared with.
        """
        return answers[0]

    def index_of(self, name: str) -> int:
        """The index of one of the names.

        Raises:
            InputError: If there is no such name.
        """
        if name not in self.names:
            raise InputError(f"there is no {self.noun} {name!r}: {nearest(name, self.names)}")
        return self.names.index(name)
