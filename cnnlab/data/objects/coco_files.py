"""COCO's files: which JSON is of which split, and where its images lie."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnlab import tree
from cnnlab.data.objects.places import Files, by_split, split_of
from cnnlab.errors import InputError

_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str, int)},
    "annotations": {},
}
"""What each entry of a list must have, and of which type."""
_PROBED = 20
"""So many names of images say in which folder they are."""


def find_jsons(root: Path, files: Files) -> dict[str, Path]:
    """COCO's JSON of each split; {"": path} for a single one of no split, {} if there is none.

    They are ROOT/SPLIT.json, ROOT/annotations/instances_SPLIT.json, or one inside each split's folder.

    Raises:
        InputError: If it is not clear which counts.
    """
    found: dict[str, list[Path]] = {}
    folders = {name: split_of(name) for name in files.names(str(root)) if tree.is_dir(root / name)}
    inside = [(root / name, split) for name, split in sorted(folders.items()) if split is not None]
    for folder, split in [(root, None), (root / "annotations", None), *inside]:
        names = files.with_ending(str(folder), ".json")
        instances = [name for name in names if name.startswith("instances_")]
        for name in instances or names:  # Beside instances_SPLIT.json lie captions and keypoints.
            if _is_coco(folder / name):
                found.setdefault(split or split_of(name) or "", []).append(folder / name)
    if "" in found and len(found) > 1:
        del found[""]
    for split, paths in found.items():
        if len(paths) > 1:
            what = f"both are for {split}" if split else "are of no split that is known (train, val, test)"
            raise InputError(f"{paths[0]} and {paths[1]} {what}: remove one, or call them SPLIT.json")
    return {split: found[split][0] for split in by_split(found)}


def _is_coco(path: Path) -> bool:
    """Whether a file names images and categories."""
    try:
        content = tree.read_bytes(path)
    except OSError:
        return False
    return b'"images"' in content and b'"categories"' in content


def read_json(path: Path) -> dict[str, Any]:
    """A COCO file, with its lists of images, categories and annotations.

    Raises:
        InputError: If it is broken.
    """
    text = tree.read_bytes(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must have images, annotations and categories")
    for key, needed in _KEYS.items():
        entries = content.setdefault(key, []) if key == "annotations" else content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path}: {key} must be a list of objects")
        for number, entry in enumerate(entries):
            if strange := [name for name, kinds in needed.items() if not isinstance(entry.get(name), kinds)]:
                value = str(entry.get(strange[0], "missing"))[:40]
                raise InputError(f"{path}: the {strange[0]} of number {number} of {key} is {value}: correct it")
        counts = Counter(entry["id"] for entry in entries) if key != "annotations" else Counter()
        if twice := [own for own, count in counts.items() if count > 1]:
            raise InputError(f"{path}: {key} has the id {twice[0]} twice: number them differently")
    return content


class ImageFinder:
    """Finds the images of a COCO file by their names.

    Args:
        root: The data's folder.
        split: The split of the file, "" if it has none.
        json_path: The file.
        files: The files there are.
    """

    def __init__(self, root: Path, split: str, json_path: Path, files: Files) -> None:
        self._files = files
        inside = sorted(files.names(str(root)))
        own = [name for name in inside if split and split_of(name) == split and tree.is_dir(root / name)]
        images = [name for name in inside if name.lower() in ("images", "image", "data")]
        both = [
            f"{a}/{b}" for a in images for b in sorted(files.names(str(root / a))) if split and split_of(b) == split
        ]
        nested = [f"{name}/images" for name in own]
        folders = [json_path.parent, *(root / name for name in (*own, *both, *nested, *images)), root]
        self.folders = [str(folder) for folder in dict.fromkeys(folders)]
        """The folders that are tried, in this order."""

    def find(self, names: Sequence[str]) -> list[str]:
        """The path of each image, in the folder that has most of the first ones; they need not exist."""
        clean = [name.replace("\\", "/") for name in names]
        probed = clean[:: max(1, len(clean) // _PROBED)]
        ways = [(folder, bare) for bare in (False, True) for folder in self.folders]
        found = [sum(self._files.has(_join(folder, bare, name)) for name in probed) for folder, bare in ways]
        folder, bare = ways[found.index(max(found))]
        return [_join(folder, bare, name) for name in clean]


def _join(folder: str, bare: bool, name: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.basename(name) if bare else name))  # noqa: PTH118, PTH119
