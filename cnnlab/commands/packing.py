"""cnnlab data pack: many small files as a few shards. This module does not need torch."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from cnnlab import tree
from cnnlab.archives.pack import FORMATS, decompressed, pack_files
from cnnlab.commands.options import CommandParser
from cnnlab.commands.progress import progress
from cnnlab.errors import InputError, nearest
from cnnlab.image_files import LeftOut, files_below

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LEAST = 10**4


def pack(arguments: list[str]) -> None:
    """Pack a folder into shards, which cnnlab reads as that folder.

    Raises:
        InputError: If an argument is not valid, or if the folder cannot be packed.
    """
    asked = _parser().parse_own(arguments)
    root, out, most = Path(asked.root), Path(asked.out), read_size(asked.size)
    out = out if out.name not in ("", "..") else out.resolve()
    if asked.format not in FORMATS:
        raise InputError(f"--format is {asked.format!r}: {nearest(asked.format, FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: name a new folder")
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out} is in {root}, and would be packed itself: name a folder elsewhere")
    with ExitStack() as stack:
        place = root
        if root.is_file() and tree.is_compressed(root):
            place = stack.enter_context(decompressed(root, out.with_name(f".{out.name}.unpacked")))
        if not tree.is_dir(place):
            raise InputError(f"there is no folder {root}: name the one to pack")
        left_out = LeftOut()
        files = files_below(place, left_out)
        if not files:
            raise InputError(f"{root} has no files: nothing to pack")
        with progress("files, written and read back", 2 * len(files)) as advance:
            done = pack_files(files, tree.read_bytes, out, most, asked.format, advance)
    if left_out:
        print(f"not packed: {left_out.counted()}")
    shards = "1 shard" if done.shards == 1 else f"{done.shards:,} shards"
    print(f"{done.files:,} files in {shards}, {done.bytes:,} bytes: {out} (--data.root {out})")


def read_size(text: str) -> int:
    """The number of bytes that a text such as 1GB says.

    Raises:
        InputError: If it says none, or too few.

    >>> read_size("1.5GB"), read_size("500 MiB")
    (1500000000, 524288000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise InputError(f"--size is {text!r}, expected bytes, such as 500MB or 1GB")
    unit = found[2].upper()
    scale = 1024 ** "KMGT".index(unit) * 1024 if found[3] and unit else _UNITS[unit]
    if (count := int(float(found[1]) * scale)) < _LEAST:
        raise InputError(f"--size is {text}, expected {_LEAST:,} bytes or more, such as 1GB")
    return count


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="cnnlab data pack",
        description="Pack the files of a folder into shards of a size, which are read in place, as that folder.",
    )
    parser.add_argument(
        "root", metavar="ROOT", help="the folder, or an archive, also a compressed tar; hidden files are left out"
    )
    parser.add_argument("out", metavar="OUT", help="the new folder: OUT/shard-00000.tar and so on")
    parser.add_argument("--size", default="1GB", metavar="BYTES", help="of a shard at most: 500MB, 1GB (1GB)")
    parser.add_argument("--format", default="tar", metavar="NAME", help=f"{' or '.join(FORMATS)} (tar)")
    return parser
