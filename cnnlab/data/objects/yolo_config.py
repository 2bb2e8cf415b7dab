"""YOLO's data.yaml: names of the classes, and where each split lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cnnlab import tree
from cnnlab.data.objects.places import Files, read_lines
from cnnlab.errors import InputError

_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NOTHING = ("", "null", "~", "none", "None", None)


class Config(NamedTuple):
    """What a data.yaml says."""

    path: Path
    names: list[str] | None
    splits: dict[str, list[str]]
    """The folders or lists of each split, as they are written."""
    base: str
    """Its ``path``, "" if it has none."""
    has_keypoints: bool


def find_config(root: Path) -> Config | None:
    """The data.yaml of a folder, whatever its name is, None if there is none.

    Raises:
        InputError: If it is broken, or if there are several and none is called data.yaml.
    """
    found = [root / name for name in Files().names(str(root)) if name.endswith((".yaml", ".yml"))]
    files = sorted(path for path in found if tree.is_file(path))
    for path in files:
        if path.stem == "data":
            return read_config(path)
    configs = [config for config in map(_try_reading, files) if config is not None]
    if len(configs) > 1:
        raise InputError(f"{configs[0].path} and {configs[1].path} both describe data: call the right one data.yaml")
    return configs[0] if configs else None


def _try_reading(path: Path) -> Config | None:
    try:
        config = read_config(path)
    except InputError:
        return None
    return config if config.names or config.splits else None


def read_config(path: Path) -> Config:
    """Read a data.yaml; every value is text, so that a class may be called "no" or 1e3.

    Raises:
        InputError: If it is no YAML, or if names and nc contradict each other.
    """
    try:
        content = yaml.load(tree.read_text(path), Loader=yaml.BaseLoader)  # Makes only texts.
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must have keys: names, train, val")
    names = _names(path, content.get("names"))
    count = content.get("nc")
    if names is not None and isinstance(count, str) and count.strip().isdigit() and int(count) != len(names):
        raise InputError(f"{path}: nc is {count}, but there are {len(names)} names: correct one of them")
    splits: dict[str, list[str]] = {}
    for key, split in _KEYS.items():
        if (value := content.get(key)) in _NOTHING:
            continue
        entries = value if isinstance(value, list) else [value]
        if split in splits or not all(isinstance(entry, str) for entry in entries):
            raise InputError(f"{path}: {key} must be one folder, list of folders, or .txt of paths, named once")
        splits[split] = entries
    base = content.get("path")
    return Config(path, names, splits, base if isinstance(base, str) else "", "kpt_shape" in content)


def _names(path: Path, value: Any) -> list[str] | None:
    if value in _NOTHING:
        return None
    if isinstance(value, dict):
        try:
            by_number = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: names has the key {next(iter(value))!r}, expected 0, 1, 2, ...") from error
        if gaps := sorted(set(range(len(value))) - by_number.keys()):
            raise InputError(f"{path}: names has {len(value)} classes, but none for {gaps[0]}: number them from 0")
        value = [by_number[number] for number in range(len(by_number))]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise InputError(f"{path}: names must be a list of texts, or a mapping of 0, 1, 2, ... to texts")
    return value


class Resolver:
    """Finds what a data.yaml names: paths are often those of another machine, or of another working directory.

    Args:
        config: The file.
        files: The files there are.
    """

    def __init__(self, config: Config, files: Files) -> None:
        self.notes: list[str] = []
        self._config = config
        self._files = files
        self._root = config.path.parent
        self._base = self._root / config.base
        if not tree.is_dir(self._base):
            self.notes.append(f"{config.path}: there is no path {config.base}, so paths start from {self._root}")
            self._base = self._root

    def find(self, text: str) -> Path | None:
        """The folder or list of a split, None if there is none.

        Raises:
            InputError: If the path leads outside, and the same one without ../ exists as well.
        """
        literal = Path(os.path.normpath(self._base / text))
        others = [path for path in self._variants(text) if tree.exists(path) and path != literal]
        if not tree.exists(literal):
            if others:
                self.notes.append(f"{self._config.path}: {text} is taken as {others[0]}")
            return others[0] if others else None
        if text.startswith("..") and others:
            raise InputError(
                f"{self._config.path}: {text} may be {literal} or {others[0]}: write it as one path without .. "
            )
        return literal

    def _variants(self, text: str) -> Iterator[Path]:
        """The path, and its ends, below the folder of data.yaml."""
        parts = [part for part in Path(text.replace("\\", "/")).parts if part not in ("..", ".", "/")]
        for start in range(len(parts)):
            for base in dict.fromkeys((self._base, self._root)):
                yield base.joinpath(*parts[start:])

    def read_list(self, table: Path) -> list[str]:
        """The paths in a .txt of paths; those of files that do not exist too.

        Raises:
            InputError: If it is empty or not UTF-8, or if none of its first paths exists.
        """
        lines = read_lines(table)
        if not lines:
            raise InputError(f"{table} names no images")
        texts = [line.replace("\\", "/") for line in lines]
        for text in texts[:20]:
            parts = Path(text).parts
            for start in range(len(parts)):
                for base in dict.fromkeys((table.parent, self._base, self._root)):
                    if self._files.has(os.path.normpath(base.joinpath(*parts[start:]))):
                        if start:
                            shown = base.joinpath(*parts[start:])
                            self.notes.append(f"{table}: paths are taken as in {text} = {shown}")
                        return [os.path.normpath(base.joinpath(*Path(own).parts[start:])) for own in texts]
        raise InputError(f"{table}: there is no image {lines[0]}: write paths relative to {table.parent}")
