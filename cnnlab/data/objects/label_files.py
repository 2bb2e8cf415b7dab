"""One label file for each image, in a folder beside the images' folder, or beside the image itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cnnlab import tree
from cnnlab.data.objects.places import Files, stem_of
from cnnlab.errors import InputError
from cnnlab.image_files import listed

_NO_LABELS = ("classes.txt", "obj.names", "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt", "readme.")
"""Beginnings of names, in lower case, of text files that are of no image."""


class LabelFiles:
    """Finds the label file of each image.

    Args:
        files: The files there are.
        ending: What a label file ends with: ".txt".
        image_folders: Names of folders of images, in lower case.
        label_folders: Names of folders of labels, in lower case: images/train/a.jpg belongs to labels/train/a.txt.
    """

    def __init__(
        self, files: Files, ending: str, image_folders: tuple[str, ...], label_folders: tuple[str, ...]
    ) -> None:
        self._files = files
        self._ending = ending
        self._image_folders = image_folders
        self._label_folders = label_folders
        self._folder_of: dict[str, str] = {}
        self._used: dict[str, set[str]] = {}
        self._shared: list[str] = []

    def expected(self, image: str) -> str:
        """Where the label file of an image should be, whether there is such a folder or not."""
        folder, name = os.path.split(image)
        parts = folder.split("/")
        known = [place for place, part in enumerate(parts) if part.lower() in self._image_folders]
        for place in known[-1:]:
            parts[place] = self._label_folders[0]
        return "/".join([*parts, stem_of(name) + self._ending])

    def find(self, image: str) -> str | None:
        """The label file of an image, None if it has none.

        Raises:
            InputError: If label files lie in both places.
        """
        beside, own = os.path.split(image)
        if beside not in self._folder_of:
            self._folder_of[beside] = self._choose(beside)
        folder, name = self._folder_of[beside], stem_of(own) + self._ending
        used = self._used.setdefault(folder, set())
        if name in used and name in self._files.names(folder):
            self._shared.append(image)
        used.add(name)
        return os.path.join(folder, name) if name in self._files.names(folder) else None  # noqa: PTH118

    @property
    def folders(self) -> list[str]:
        """The folders in which label files are."""
        return [folder for folder in self._used if self._labels_in(folder)]

    def describe_others(self) -> list[str]:
        """Lines about label files of several images, and about those of none that was asked for."""
        lines = []
        if self._shared:
            named = listed(self._shared, most=3)
            lines.append(f"{len(self._shared):,} images have the label file of another image of the same name: {named}")
        if unused := self._without_image():
            lines.append(f"{len(unused):,} label files are of no listed image, and not used: {listed(unused, most=3)}")
        return lines

    def _without_image(self) -> list[str]:
        return [
            os.path.join(folder, name)  # noqa: PTH118
            for folder, used in self._used.items()
            for name in self._labels_in(folder)
            if name not in used
        ]

    def _labels_in(self, folder: str) -> list[str]:
        names = self._files.with_ending(folder, self._ending)
        return [name for name in names if not name.lower().startswith(_NO_LABELS)]

    def _choose(self, folder: str) -> str:
        beside = self._labels_in(folder)
        for parallel in self._parallel(folder):
            if beside and self._labels_in(parallel):
                raise InputError(
                    f"{folder} has label files beside its images, and {parallel} has others: it is not clear which "
                    "count; remove one kind"
                )
            if not beside:
                return parallel
        return folder

    def _parallel(self, folder: str) -> list[str]:
        """The folders of labels that exist, for a folder of images: the innermost name counts."""
        parts = folder.split("/")
        for place in range(len(parts) - 1, -1, -1):
            if parts[place].lower() not in self._image_folders:
                continue
            above = "/".join(parts[:place]) or ("/" if place else ".")
            for name in sorted(self._files.names(above)):
                if name.lower() in self._label_folders:
                    path = os.path.join(above if place else "", name, *parts[place + 1 :])  # noqa: PTH118
                    if tree.is_dir(path):
                        return [path]
        return []


def check_labeled(splits: Sequence[str], has_labels: Sequence[bool], expected: str, notes: list[str]) -> None:
    """Check that images have label files at all; a wrong path would make negatives of all of them.

    Args:
        splits: Each image's split.
        has_labels: Whether each has a label file.
        expected: Where the first image's is expected.
        notes: Gets a line for each split without any.

    Raises:
        InputError: If no image of training has one, or none at all.
    """
    for split in dict.fromkeys(splits):
        own = [has for other, has in zip(splits, has_labels, strict=True) if other == split]
        if any(own):
            continue
        images = f"none of the {len(own):,} images" + (f" of {split}" if split else "")
        if split in ("", "train") or not any(has_labels):
            raise InputError(f"{images} has a label file, such as {expected}: put them there")
        notes.append(f"{images} has a label file: all count as images without objects")


def describe_negatives(images: Sequence[str], absent: Sequence[str], empty: Sequence[str]) -> list[str]:
    """A line about the images without objects, none if all have some.

    Args:
        images: All images.
        absent: Those without a label file.
        empty: Those whose label file is empty.
    """
    if not absent and not empty:
        return []
    kinds = [f"{len(empty):,} with an empty label file ({listed(map(stem_of, empty), most=3)})"] if empty else []
    kinds += [f"{len(absent):,} without a label file ({listed(map(stem_of, absent), most=3)})"] if absent else []
    return [f"{len(absent) + len(empty):,} of {len(images):,} images count as without objects: {', '.join(kinds)}"]
