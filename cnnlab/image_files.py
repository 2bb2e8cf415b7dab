"""Image files: which files are images, how a file is opened, and what is said of the others."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from cnnlab import tree
from cnnlab.errors import InputError

_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif"),
)
_HEIF_ENDINGS = (".heic", ".heif")
_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""Whether the package pillow-heif is installed. It is no dependency, because it contains a library under the LGPL."""
_HEIF_REMEDY = "HEIC needs pip install pillow-heif"
_FORMAT_OF = {ending: name for ending, name in Image.registered_extensions().items() if ending in _ENDINGS}
EXTENSIONS = frozenset([*_FORMAT_OF, *(_HEIF_ENDINGS if _HAS_HEIF else ())])
"""File name extensions of images, in lower case: those for which Pillow has a plugin."""
FORMATS = tuple(sorted(set(_FORMAT_OF.values()) & set(Image.OPEN)))
"""Pillow's names of the formats behind EXTENSIONS; a file of another format, such as PostScript, is not opened."""
COPY_VARIABLE = "CNNLAB_COPY"
"""The environment variable with the value FOLDER=COPY: files of FOLDER are read from COPY, on this machine."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MOST_NAMED = 5
"""How many files a message names."""


class ImageError(InputError):
    """A file that cannot be read as an image; the message begins with its path."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker passes it on as text with the whole traceback: the last line is the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class LeftOut:
    """The files that a listing has left out: counted by kind, and a few of them named."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, path: str | Path, kind: str | None = None) -> None:
        """Count a file; its kind is its ending if None."""
        ending = Path(path).suffix.lower()
        kind = kind or (f"with {ending}" if ending else "with no ending")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        names = self.names.setdefault(kind, [])
        if len(names) < MOST_NAMED:
            names.append(Path(path).name)

    def include(self, other: LeftOut) -> None:
        """Count the files of another listing too."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            names = self.names.setdefault(kind, [])
            names += other.names[kind][: MOST_NAMED - len(names)]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def counted(self) -> str:
        """How many there are of each kind, with names."""
        kinds = (f"{count:,} {kind} ({listed(self.names[kind], count)})" for kind, count in self.counts.items())
        return ", ".join(sorted(kinds))

    def __str__(self) -> str:
        total = sum(self.counts.values())
        verb, them = ("file is no image", "it is one") if total == 1 else ("files are no images", "they are")
        heif = f"; {_HEIF_REMEDY}" if self.counts.keys() & {f"with {ending}" for ending in _HEIF_ENDINGS} else ""
        return (
            f"{total:,} {verb} that can be opened here, and left out: {self.counted()}: if {them}, "
            f"convert to PNG or JPEG{heif}"
        )


def listed(names: Iterable[object], count: int | None = None, most: int = MOST_NAMED) -> str:
    """Return the first names, and how many more there are.

    Args:
        names: The names, or the first of them.
        count: How many there are, if not all are given.
        most: How many are named.

    >>> listed("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = (len(names) if count is None else count) - min(len(names), most)
    return ", ".join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def list_images(folder: Path, left_out: LeftOut | None = None, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """List all image files below a folder, sorted by name, without hidden ones.

    A file with another ending is an image if its content is of a known format.

    Args:
        folder: The folder; links are followed, and each folder is read once.
        left_out: Counts the other files that are not hidden; if None, a line on stderr tells of them.
        skipped: Endings, in lower case, of files that are known to be something else: neither read nor counted.

    Raises:
        InputError: If the folder does not exist, if a folder cannot be read, or if a file name is not UTF-8.
    """
    if not tree.is_dir(folder):
        raise InputError(f"there is no folder {folder}")
    others = LeftOut() if left_out is None else left_out
    found = image_paths(folder, others, skipped)
    if left_out is None and others:
        print(f"{folder}: {others}", file=sys.stderr)
    return [Path(path) for path in found]


def image_paths(folder: Path, left_out: LeftOut, skipped: frozenset[str] = frozenset()) -> list[str]:
    """The paths of all images below a folder that exists, as text: see list_images.

    Args:
        folder: The folder.
        left_out: Counts the other files.
        skipped: See list_images.
    """
    found: list[str] = []
    _walk(str(folder), found, set(), left_out, skipped)
    return found


def files_below(folder: Path, left_out: LeftOut) -> list[tuple[str, str]]:
    """All files below a folder, images and others, without hidden ones: the name below it and the path of each.

    Args:
        folder: The folder; links are followed, and each folder is read once.
        left_out: Counts what is no regular file, and archives beside images.

    Returns:
        Sorted by name.

    Raises:
        InputError: If a folder cannot be read, if a name is not UTF-8, or if a link leads nowhere.
    """
    found: list[str] = []
    _walk_all(str(folder), found, set(), left_out)
    start = len(os.path.join(folder, ""))  # noqa: PTH118
    return sorted((path[start:].replace(os.sep, "/"), path) for path in found)


def _walk_all(folder: str, found: list[str], seen: set[str], left_out: LeftOut) -> None:
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    entries = _entries(folder)
    has_images = any(has_ending(entry.name) for entry in entries)
    for entry in entries:
        source = entry.source if isinstance(entry, tree.Entry) else ""
        if source and has_images:
            left_out.add(source)
        elif entry.is_dir():
            _walk_all(entry.path, found, seen, left_out)
        elif entry.is_file():
            found.append(entry.path)
        elif entry.is_symlink():
            raise InputError(f"{entry.path}: the link leads nowhere: mend or remove it")
        else:
            left_out.add(entry.path, "not a regular file")


def subfolders(folder: Path) -> list[str]:
    """The names of a folder's folders that are not hidden, sorted.

    Raises:
        InputError: If the folder cannot be read, or if something else stands for a folder that is there.
    """
    found = _entries(folder)
    tree.check_names(folder, found)
    return [entry.name for entry in found if entry.is_dir()]


def loose_images(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, by their endings, sorted."""
    return [Path(entry.path) for entry in _entries(folder) if has_ending(entry.name) and not entry.is_dir()]


def has_ending(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return Path(name).suffix.lower() in EXTENSIONS


def without_ending(path: Path) -> Path:
    """A path without the ending of an image; dots of other kinds belong to the name."""
    return path.with_suffix("") if has_ending(path.name) else path


def _walk(folder: str, found: list[str], seen: set[str], left_out: LeftOut, skipped: frozenset[str]) -> None:
    """Add the paths of the images below a folder: those that lie in it, then those of its folders."""
    if (real := os.path.realpath(folder)) in seen:  # A link to a folder that was already read.
        return
    seen.add(real)
    before, inner, archives = len(found), [], []
    for entry in _entries(folder):
        ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        known = ending in EXTENSIONS and ending not in skipped
        if known and entry.is_file():
            found.append(entry.path)
        elif isinstance(entry, tree.Entry) and entry.source:
            archives.append(entry)
        elif entry.is_dir():
            inner.append(entry.path)
        elif ending in skipped:
            continue
        # A link that leads nowhere is listed, so that reading names it.
        elif (known and entry.is_symlink()) or (entry.is_file() and is_image(entry.path)):
            found.append(entry.path)
        else:
            left_out.add(entry.path, None if entry.is_file() else "not a regular file")
    if inner or len(found) > before:
        for entry in archives:
            left_out.add(entry.source)
    else:
        inner = [entry.path for entry in archives]
    for path in inner:
        _walk(path, found, seen, left_out, skipped)


def _entries(folder: str | Path) -> Sequence[os.DirEntry[str] | tree.Entry]:
    try:
        entries = sorted(
            (entry for entry in tree.entries(folder) if not entry.name.startswith(".")), key=attrgetter("name")
        )
    except OSError as error:
        raise InputError(
            f"{shown(folder)}: the folder cannot be read ({error.strerror}): change its permissions"
        ) from error
    if not _is_plain("/".join([str(folder), *map(attrgetter("name"), entries)])):
        for entry in entries:
            check_name(entry.path)
    return entries


def _is_plain(text: str) -> bool:
    """Whether check_name takes a text."""
    return text.isascii() and text.isprintable()


def check_name(name: str | Path) -> None:
    """Refuse the name of a file or a class that tables, pictures and reports could not keep.

    Raises:
        InputError: If it is not UTF-8, or has a line break or another control character.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{shown(name)}: the name is not UTF-8, so no table could keep it: rename it") from error
    if strange := _CONTROL.search(str(name)):
        what = "a line break" if strange[0] in "\n\r" else "a control character"
        raise InputError(f"{str(name)!r}: the name has {what}, so no table could keep it: rename it")


def shown(path: str | Path) -> str:
    """A path as text that can be printed, whatever its bytes."""
    return str(path).encode(errors="backslashreplace").decode()


def is_image(path: str) -> bool:
    """Whether a file's content is of a format that can be opened here, whatever its name."""
    try:
        with tree.open(path) as file, Image.open(file, formats=_formats(path)):
            return True
    except Exception:  # Pillow's plugins raise many types.
        return False


def collect_images(names: Iterable[str | Path]) -> list[Path]:
    """Return the given image files, and those below given folders, in this order.

    Raises:
        InputError: If there is no image, or see list_images.
    """
    names = list(names)
    found: list[Path] = []
    for path in map(Path, names):
        is_folder = tree.is_dir(path)
        if not is_folder:
            check_name(path)
        found += list_images(path) if is_folder else [path]
    if not found:
        raise InputError(f"there is no image in {', '.join(map(str, names))}")
    return found


class OpenedFile(NamedTuple):
    """An image file whose header has been read."""

    image: Image.Image
    content: bytes
    """The whole file."""


def open_file(path: str | Path) -> OpenedFile:
    """Read a file and its header; the decoder would read small pieces, and keep the file open.

    Raises:
        Exception: Of many types, if it is missing, no regular file, or of no known format: see explain.
    """
    try:
        content = tree.read_bytes(local_copy(path))
    except tree.NotRegularError as error:
        raise ImageError(f"{path}: is no regular file") from error
    return OpenedFile(Image.open(io.BytesIO(content), formats=_formats(path)), content)


def _formats(path: str | Path) -> tuple[str, ...]:
    """Pillow's names of the formats that a file may have."""
    if not _HAS_HEIF or Path(path).suffix.lower() not in _HEIF_ENDINGS:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def local_copy(path: str | Path) -> Path:
    """Return the path of the file, or of its copy on this machine."""
    if not (pair := os.environ.get(COPY_VARIABLE)):
        return Path(path)
    original, _, copy = pair.rpartition("=")
    full = str(Path(path).absolute())
    return Path(copy + full.removeprefix(original)) if full.startswith(original + os.sep) else Path(path)


def explain(path: str | Path, error: Exception) -> ImageError:
    """Return the error of reading a file as an ImageError."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{shown(path)}: there is no such file")
    if isinstance(error, InputError):
        return ImageError(f"{shown(path)}: {error}")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(
            f"{path}: too large to be read safely ({error}): make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS"
        )
    if tree.is_file(path) and tree.size(path) == 0:
        return ImageError(f"{path}: the file is empty (0 bytes)")
    if isinstance(error, UnidentifiedImageError):
        heif = f"; {_HEIF_REMEDY}" if Path(path).suffix.lower() in _HEIF_ENDINGS and not _HAS_HEIF else ""
        return ImageError(f"{path}: is no image of a known format{heif}")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ImageError(f"{path}: cannot be read as an image ({reason})")
