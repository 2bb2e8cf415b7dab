"""Where results lie, and what becomes of earlier ones: nothing is replaced unasked, and nothing is lost."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnlab.errors import InputError


def results_folder(folder: Path, source: str, name: str | None = None) -> Path:
    """Choose the folder of results that belong to a source of images: FOLDER/results/NAME, the same one each time.

    Another source of the same name gets a folder NAME-2, NAME-3 and so on.

    Args:
        folder: The run's folder, or that of an exported file.
        source: What the results are of; who writes them puts it into source.txt the results.
        name: NAME; the last part of the source, which is then a path or a split's name, if None.
    """
    name = re.sub(r"[^\w.-]+", "_", Path(source).absolute().name if name is None else name)[:100] or "data"
    for count in range(1, 1000):
        place = folder / "results" / (name if count == 1 else f"{name}-{count}")
        known = place / "source.txt"
        if not known.is_file() or known.read_text(encoding="utf-8") == source:
            return place
    raise InputError(f"{folder / 'results'} has 999 folders called {name}: remove some")


def source_of(paths: Sequence[str | Path]) -> tuple[str, str]:
    """Describe images as a source of results: all their paths, and a short name.

    >>> source_of(["a/b.png"])
    ('a/b.png', 'b.png')
    >>> source_of(["a/b.png", "a/c.png"])
    ('a/b.png a/c.png', 'a')
    """
    places = [Path(path) for path in paths]
    common = places[0] if len(places) == 1 else Path(os.path.commonpath([path.absolute() for path in places]))
    return " ".join(map(str, places)), common.absolute().name


@contextmanager
def replacing(folder: Path, command: str, names: Sequence[str]) -> Iterator[None]:
    """Let a command replace its earlier results: they move to FOLDER/earlier/COMMAND-N, and stay there if they differ.

    So neither is an earlier result lost, nor does it look like that of a command that has failed.

    Args:
        folder: The folder of the results.
        command: The command's name.
        names: The files and folders that the command makes, as patterns.
    """
    aside = set_aside(folder, command, names)
    try:
        yield
    finally:
        if aside is not None:
            _drop_same(aside, folder)
            if aside.exists():
                print(f"earlier results of {command}: {aside}")


def set_aside(folder: Path, name: str, names: Sequence[str]) -> Path | None:
    """Move results into a new folder FOLDER/earlier/NAME, or NAME-2 and so on, and return it; None if there are none.

    Args:
        folder: The folder of the results.
        name: NAME.
        names: The files and folders to move, as patterns.
    """
    made = [path for pattern in names for path in sorted(folder.glob(pattern))]
    if not made:
        return None
    place, count = folder / "earlier" / name, 1
    while place.exists():
        count += 1
        place = place.with_name(f"{name}-{count}")
    for path in made:
        new = place / path.relative_to(folder)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.replace(new)
    return place


def _drop_same(aside: Path, folder: Path) -> None:
    """Remove the files of a folder of earlier results that are the same as today's."""
    for path in [*sorted(aside.rglob("*"), reverse=True), aside, aside.parent]:
        if path.is_dir():
            with suppress(OSError):
                path.rmdir()  # Only if it is empty.
            continue
        now = folder / path.relative_to(aside)
        if now.is_file() and filecmp.cmp(path, now, shallow=False):
            path.unlink()
