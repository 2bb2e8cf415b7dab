"""predictions.csv and the files beside it, the same for all commands that predict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, LazyImage, Place
from cnnlab.outputs.base import Output
from cnnlab.writing import write_atomically


def distinct(columns: Sequence[str], noun: str) -> list[str]:
    """Return a table's columns without repetition: the name of a class or value that is taken gets the noun.

    Args:
        columns: The columns, those with fixed names first.
        noun: What the others are named after.

    >>> distinct(["index", "target", "cat", "target"], "class")
    ['index', 'target', 'cat', 'target (class)']
    """
    found: list[str] = []
    for column in columns:
        while column in found:
            column = f"{column} ({noun})"
        found.append(column)
    return found


class AnswerWriter:
    """Creates the rows of a table of answers, and writes the files that belong to them.

    A file is called FOLDER/NAME.ENDING beside the table, where NAME is the image's path relative to the common folder
    of all images, including its file extension.

    Args:
        output: The kind of the answers.
        folder: The table's folder.
        paths: All images' files.
        files: Whether to write files at all.
        overlays: See Output.files.
        probabilities: See Output.files.
        transform: How image files are read; None if the images are of no files.

    Raises:
        InputError: If the answers have files, and an image has no path for their names.
    """

    def __init__(
        self,
        output: Output,
        folder: Path,
        paths: Sequence[str],
        files: bool = True,
        overlays: bool = True,
        probabilities: bool = False,
        transform: EvalTransform | None = None,
    ) -> None:
        self._transform = transform
        self.paths = paths
        self.output = output
        self.folder = folder
        self.overlays = overlays
        self.probabilities = probabilities
        self._has_files = files and output.has_files
        self._common = Path()
        if self._has_files:
            if not paths or not all(paths):
                raise InputError(
                    f"the images have no paths, by which the files of {output.kind} are named: let the data set list "
                    "them in its attribute paths, or take the arrays from trainer.predict"
                )
            self._common = Path(os.path.commonpath([Path(path).absolute().parent for path in paths]))

    @property
    def header(self) -> list[str]:
        """The table's columns."""
        return distinct(["index", "path", *self.output.columns], self.output.noun)

    def places(self, paths: Sequence[str]) -> list[Place | None]:
        """Where the original images are in the network's input; None if answers do not need to know it."""
        transform = self._transform
        if transform is None or not (self._has_files or self.output.placed):
            return [None for _ in paths]
        return [transform.place(LazyImage(path).size) if path else None for path in paths]

    def rows(self, index: int, answer: Any, truth: npt.NDArray[Any] | None = None) -> list[list[object]]:
        """Write the files of an image's answer, and return its rows; its truth is None if it is unknown."""
        written = {}
        if self._has_files:
            name = Path(answer.path).absolute().relative_to(self._common)
            image = LazyImage(answer.path) if self._transform is None else self._transform.open(answer.path)
            for folder, ending, content in self.output.files(answer, image, self.overlays, self.probabilities):
                written[folder] = f"{folder}/{name}{ending}"
                write_atomically(self.folder / written[folder], content)
        return [[index, answer.path, *row] for row in self.output.rows(answer, truth, written)]
