"""What every kind of answer says of itself, so that nobody else needs to know which kind it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cnnlab.errors import InputError, nearest
from cnnlab.imaging import ImageSource, Pixels

Arrays = Mapping[str, npt.NDArray[Any]]
"""A batch's decoded arrays by name, B first."""
Size = tuple[int, int]
"""Height and width."""


class Output(ABC):
    """A kind of answer: its columns, files, pictures and words, and what an exported file says of it.

    An answer is one image's; each kind has a NamedTuple for it, whose first field is the image's path. A truth is one
    image's target as an array, or None where it is not known.

    Args:
        names: What the answer speaks of: the classes or the values, in order.
    """

    kind: ClassVar[str]
    """The kind's name in exported files and in the registry."""
    dense: ClassVar[bool] = False
    """Whether an answer covers the image's pixels, so that images may keep their own sizes."""

    shares: ClassVar[tuple[str, ...]] = ()
    """The columns of describe() that are shares of a whole, 0..1."""
    noun: ClassVar[str] = "class"
    """What one of the names is."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [str(name) for name in names]

    @property
    @abstractmethod
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays that the decoder returns, in an exported file's order."""

    @property
    def raw_arrays(self) -> tuple[str, ...]:
        """The names of what the bare network returns."""
        return ("logits",)

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Plain values from which outputs.create_output() makes this again, "kind" among them."""

    @abstractmethod
    def decode(self, raw: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The bare network's arrays as the decoder's: what Decoder does, in NumPy, for files of bare networks."""

    @abstractmethod
    def answers(self, arrays: Arrays, paths: Sequence[str], sizes: Sequence[Size | None]) -> list[Any]:
        """A batch's answers, at the size of the original images.

        Args:
            arrays: The decoder's.
            paths: Each image's file, "" where it has none.
            sizes: Each image's original height and width; None to leave its answer at the network's size.
        """

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The columns of predictions.csv behind index and path."""

    @abstractmethod
    def rows(self, answer: Any, truth: npt.NDArray[Any] | None, files: Mapping[str, str]) -> list[list[object]]:
        """An answer's rows of predictions.csv, behind index and path.

        Args:
            answer: An image's.
            truth: Its truth.
            files: What files() has written, by folder, from the table's folder on.
        """

    def files(
        self, answer: Any, image: ImageSource, overlays: bool, probabilities: bool
    ) -> Iterator[tuple[str, str, bytes]]:
        """What lies beside the table for an image: (folder, ending, content); nothing for most kinds.

        Args:
            answer: The image's.
            image: The image as it is.
            overlays: Whether to draw the answer on the image too.
            probabilities: Whether to keep the decoder's arrays too.
        """
        return iter(())

    @property
    def has_files(self) -> bool:
        """Whether files() writes any, so that images need paths."""
        return type(self).files is not Output.files

    @abstractmethod
    def describe(self, answer: Any, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
        """What stands in a table of single images: truth, prediction and how far apart they are, by column."""

    @abstractmethod
    def caption(self, answer: Any, truth: npt.NDArray[Any] | None) -> str:
        """The same in one or two short lines, for pictures."""

    def is_right(self, answer: Any, truth: npt.NDArray[Any] | None) -> bool | None:
        """Whether the answer is right; None where that cannot be said of one image."""
        return None

    def picture(self, pixels: Pixels, answer: Any, truth: npt.NDArray[Any] | None) -> Pixels:
        """An image (H, W, 3) with truth and answer drawn on it, side by side; as it is for most kinds."""
        return pixels

    def drawn(self, pixels: Pixels, target: npt.NDArray[Any]) -> Pixels:
        """A training image (H, W, 3) with its target drawn on it; as it is for most kinds."""
        return pixels

    @abstractmethod
    def label(self, target: npt.NDArray[Any]) -> str:
        """What a target is called over a training image; it may be a mixture."""

    def known(self, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """A target as a truth: None where it says that nothing is known."""
        return target

    @abstractmethod
    def to_explain(self, truths: Sequence[npt.NDArray[Any] | None]) -> list[int | None]:
        """Which of the names an explanation of each image is about; None for the predicted one."""

    def group(self, truth: npt.NDArray[Any]) -> int | None:
        """The one of the names that an image belongs to, for pictures of groups; None where there is no one."""
        return None

    @abstractmethod
    def certainty(self, arrays: Arrays, name: int) -> str:
        """How much one image's arrays speak for one of the names, in a word or two."""

    def difference(self, expected: Arrays, found: Arrays) -> float:
        """How far two decoded batches are apart: the greatest absolute difference of a number."""
        # Not max(), which would pass over NaN.
        return float(np.max([np.abs(found[name] - expected[name]).max() for name in expected]))

    def index_of(self, name: str) -> int:
        """The place of one of the names.

        Raises:
            InputError: If there is none of this name.
        """
        if name not in self.names:
            raise InputError(f"there is no {self.noun} {name!r}: {nearest(name, self.names)}")
        return self.names.index(name)
