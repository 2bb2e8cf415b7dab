"""Archives that cannot be read as they are: each is one error that names the archive, the member and the remedy."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab import tree
from cnnlab.archives import mounts
from tests.conftest import TINY_PHOTOS, Cnnlab

pytestmark = pytest.mark.filterwarnings("default")
Files = list[tuple[str, bytes]]


def image(seed: int = 0) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


FILES: Files = [
    (f"{kind}/{number}.png", image(10 * place + number)) for place, kind in enumerate("ab") for number in range(4)
]


def write_tar(path: Path, files: Files = FILES, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    """A tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Files = FILES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as content:
        for name, data in files:
            content.writestr(name, data)
    return path


def changed(path: Path, old: bytes, new: bytes, count: int = -1) -> Path:
    """Replace bytes in a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))
    return path


def shortened(path: Path, count: int) -> Path:
    """Cut so many bytes off a file's end."""
    path.write_bytes(path.read_bytes()[:-count])
    return path


def cut_in_a_member(folder: Path) -> Path:
    return shortened(write_tar(folder / "p.tar", [*FILES, ("b/large.png", bytes(30_000))]), 20_000)


def cut_in_a_header(folder: Path) -> Path:
    path = write_tar(folder / "p.tar")
    path.write_bytes(path.read_bytes()[: 1024 + 200])
    return path


def empty(folder: Path) -> Path:
    (folder / "p.tar").touch()
    return folder / "p.tar"


def no_tar(folder: Path) -> Path:
    (folder / "p.tar").write_bytes(image() * 9)
    return folder / "p.tar"


def broken_header(folder: Path) -> Path:
    return changed(write_tar(folder / "p.tar"), b"a/3.png", b"a/9.png")


def joined(folder: Path) -> Path:
    path = write_tar(folder / "p.tar")
    path.write_bytes(path.read_bytes() * 2)
    return path


def leads_out(folder: Path) -> Path:
    return write_tar(folder / "p.tar", [*FILES, ("../x.png", image())])


def absolute(folder: Path) -> Path:
    return write_zip(folder / "p.zip", [*FILES, ("/etc/x.png", image())])


def twice(folder: Path) -> Path:
    return write_tar(folder / "p.tar", [*FILES, ("a/2.png", image(99))])


def twice_in_shards(folder: Path) -> Path:
    write_tar(folder / "s/shard-00000.tar")
    write_tar(folder / "s/shard-00001.tar", FILES[2:3])
    return folder / "s"


def file_and_folder(folder: Path) -> Path:
    return write_tar(folder / "p.tar", [*FILES, ("a", image())])


def encrypted(folder: Path) -> Path:
    path = write_zip(folder / "p.zip")
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    path.write_bytes(content)
    return path


def by_bzip2(folder: Path) -> Path:
    return write_zip(folder / "p.zip", method=zipfile.ZIP_BZIP2)


def zip_without_end(folder: Path) -> Path:
    return shortened(write_zip(folder / "p.zip"), 30)


def backslashes(folder: Path) -> Path:
    files = [(name.replace("/", "|"), content) for name, content in FILES]
    return changed(write_zip(folder / "p.zip", files), b"|", b"\\")


def compressed(folder: Path) -> Path:
    return write_tar(folder / "p.tar.gz", mode="w:gz")


def compressed_tgz_in_root(folder: Path) -> Path:
    write_tar(folder / "r/train.tgz", mode="w:gz")
    return folder / "r"


def compressed_without_saying(folder: Path) -> Path:
    path = write_tar(folder / "p.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def folder_and_archive(folder: Path) -> Path:
    write_tar(folder / "r/train.tar")
    (folder / "r/train/a").mkdir(parents=True)
    (folder / "r/train/a/1.png").write_bytes(image())
    return folder / "r"


def tar_and_zip(folder: Path) -> Path:
    write_tar(folder / "r/train.tar")
    write_zip(folder / "r/train.zip")
    return folder / "r"


def archive_beside_classes(folder: Path) -> Path:
    for kind in "ab":
        (folder / "r" / kind).mkdir(parents=True)
        (folder / "r" / kind / "1.png").write_bytes(image())
    write_zip(folder / "r/backup.zip")
    return folder / "r"


def shards_of_two_names(folder: Path) -> Path:
    write_tar(folder / "r/train-00000.tar")
    write_tar(folder / "r/val-00000.tar")
    return folder / "r"


def a_shard_is_missing(folder: Path) -> Path:
    for number in (0, 1, 3):
        write_tar(folder / f"r/shard-{number:05d}.tar", FILES[2 * number : 2 * number + 2])
    return folder / "r"


def shards_or_classes(folder: Path) -> Path:
    write_tar(folder / "r/part-0.tar", FILES[::2])
    write_tar(folder / "r/part-1.tar", FILES[1::2])
    return folder / "r"


def bomb(folder: Path) -> Path:
    """A member that declares 4 GB."""
    path = write_zip(folder / "p.zip", [*FILES, ("b/x.png", bytes(1000))])
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(content)
    return path


def damaged(folder: Path) -> Path:
    path = write_zip(folder / "p.zip", method=zipfile.ZIP_STORED)
    middle = FILES[-1][1][50:70]
    return changed(path, middle, bytes(reversed(middle)))


def symbolic_link(folder: Path) -> Path:
    with tarfile.open(write_tar(folder / "p.tar"), "a") as tar:
        link = tarfile.TarInfo("b/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
        pipe = tarfile.TarInfo("b/pipe.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    return folder / "p.tar"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (cut_in_a_member, r"p\.tar: is cut, it ends after [\d,]+ bytes inside 'b/large\.png', which begins at offset"),
    (cut_in_a_header, r"p\.tar: is cut, it ends after 1,224 bytes inside a header at offset 1,024: fetch"),
    (empty, r"p\.tar: is empty \(0 bytes\)"),
    (no_tar, r"p\.tar: is no tar: pack"),
    (broken_header, r"p\.tar: is broken: at offset 3,072 is no header"),
    (joined, r"p\.tar: goes on after its end at offset [\d,]+, as joined archives do"),
    (leads_out, r"p\.tar: the name '\.\./x\.png' \(offset [\d,]+\) leads out of its folder: pack"),
    (absolute, r"p\.zip: the name '/etc/x\.png' \(offset [\d,]+\) is absolute: pack"),
    (twice, r"p\.tar: two members are called 'a/2\.png': p\.tar at offset 2,560, p\.tar at offset [\d,]+: keep one"),
    (twice_in_shards, r"'a/2\.png': shard-00000\.tar at offset 2,560, shard-00001\.tar at offset 512: keep one"),
    (file_and_folder, r"p\.tar: 'a' is a file \(p\.tar at offset [\d,]+\) and a folder: rename"),
    (encrypted, r"p\.zip: 'a/0\.png' \(offset 0\) is encrypted: unpack it with its password"),
    (by_bzip2, r"p\.zip: 'a/0\.png' \(offset 0\) is compressed by bzip2, expected stored or deflate: unpack"),
    (zip_without_end, r"p\.zip: is no whole zip \(.*; it has [\d,]+ bytes\): fetch or pack"),
    (backslashes, r"p\.zip: the name 'a\\\\0\.png' \(offset 0\) has a backslash"),
    (compressed, r"p\.tar\.gz: is compressed, .*: unpack it, or: cnnlab data pack \S*p\.tar\.gz FOLDER"),
    (compressed_tgz_in_root, r"r/train\.tgz: is compressed, .*: cnnlab data pack \S*r/train\.tgz FOLDER"),
    (compressed_without_saying, r"p\.tar: is compressed \(gzip\), .*: unpack"),
    (folder_and_archive, r"r/train is a folder, and train\.tar beside it is an archive of the same name"),
    (tar_and_zip, r"r/train is a folder, and train\.zip beside it is an archive of the same name"),
    (archive_beside_classes, r"r/backup is an archive, and \S+r/a a folder: if the archive is a class, unpack it"),
    (shards_of_two_names, r"the shards \S+-00000\.tar and \S+-00000\.tar: if both are of one .* move them into"),
    (a_shard_is_missing, r"has the shards shard-00001\.tar and shard-00003\.tar without number 2: put it back"),
    (shards_or_classes, r"r/part-0 is an archive with folders, called like others: .*\(shard-00000\); .*call it part0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_an_archive_that_cannot_be_read_is_one_error(
    cnnlab: Cnnlab, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    """Nothing of a broken or ambiguous archive is trained on; the error names place and remedy."""
    done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", make(tmp_path))
    assert done.code == 2
    error = done.err[done.err.index("cnnlab: ") :].strip()
    assert re.search(message, error)
    assert error.count("\n") < 3


LEFT_OUT: list[tuple[Callable[[Path], Path], str, int]] = [
    (bomb, r"b/x\.png: in \S+p\.zip at offset [\d,]+: it declares 4,294,967,280 bytes in \d+ compressed ones", 8),
    (damaged, r"b/3\.png: in \S+p\.zip at offset [\d,]+: its content is damaged \(CRC-32", 7),
    (symbolic_link, r"2 files are no images .*2 not a regular file \(link\.png, pipe\.png\)", 8),
]


@pytest.mark.parametrize(("make", "message", "count"), LEFT_OUT, ids=[make.__name__ for make, *_ in LEFT_OUT])
def test_a_member_that_cannot_be_read_is_named_and_the_others_are_used(
    cnnlab: Cnnlab, tmp_path: Path, make: Callable[[Path], Path], message: str, count: int
) -> None:
    """As with files, ``data check`` names them, and a training stops unless data.on_error is skip."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", make(tmp_path))
    said = done.out + done.err + " ".join(str(one.message) for one in found)
    assert f"{count} images can be read" in said
    assert re.search(message, said)


def test_names_that_no_table_could_keep_are_refused(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """The same as for files: a name that is not UTF-8."""
    path = tmp_path / "p.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, content in [*FILES, ("b/\xe9.png", image())]:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", path)
    assert done.code == 2
    assert r"p.tar/b/\udce9.png: the name is not UTF-8, so no table could keep it: rename it" in done.err


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["GNU", "PAX"])
def test_long_and_foreign_names_hidden_members_and_hard_links(cnnlab: Cnnlab, tmp_path: Path, form: int) -> None:
    """Names of more than 100 bytes have a header of their own; what macOS adds is hidden, as hidden files are."""
    long = f"a/{'long name ' * 20}\N{GREEK SMALL LETTER ALPHA}.png"
    extra: Files = [(long, image(50)), ("__MACOSX/a/._0.png", b"x"), ("a/._0.png", b"x"), ("a/inner.zip", b"PK")]
    path = write_tar(tmp_path / "p.tar", [(f"./{name}", content) for name, content in [*FILES, *extra]], form)
    with tarfile.open(path, "a", format=form) as tar:
        link = tarfile.TarInfo("./b/second name.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./b/1.png"
        tar.addfile(link)
    with pytest.warns(UserWarning, match=r"1 with \.zip \(inner\.zip\)"):
        done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", path)
    assert "10 images can be read" in done.out
    assert tree.read_bytes(path / long) == image(50)
    assert tree.read_bytes(path / "b/second name.png") == FILES[5][1]


def test_a_lost_end_mark_is_said_and_the_members_are_used(cnnlab: Cnnlab, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar")
    size = -(-len(FILES[-1][1]) // 512) * 512 + 512
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset + size
    path.write_bytes(path.read_bytes()[:end])
    done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", path)
    assert "8 images can be read" in done.out
    assert f"p.tar: has no end mark; if it was cut, files after byte {end:,} are missing" in done.err


@pytest.mark.parametrize("what", ["other time", "broken", "another form", "empty"])
def test_an_index_that_does_not_match_is_made_anew(cnnlab: Cnnlab, tmp_path: Path, what: str) -> None:
    """An index of an earlier archive would return other bytes."""
    path = write_tar(tmp_path / "p.tar")
    check = ("data", "check", "--config", TINY_PHOTOS, "--data.root", path)
    assert "made anew" not in cnnlab(*check).err
    index = tmp_path / ".p.tar.index"
    if what == "other time":
        write_tar(path, [*FILES, ("b/new.png", image(77))])
    elif what == "broken":
        changed(index, b"a/3.png", b"a/4.png")
    else:
        index.write_bytes(b"{}\n" if what == "another form" else b"")
    mounts._archives.clear()
    done = cnnlab(*check)
    assert f"{9 if what == 'other time' else 8} images can be read" in done.out
    assert "p.tar.index: " in done.err
    assert "is made anew" in done.err
    mounts._archives.clear()
    assert "made anew" not in cnnlab(*check).err


def test_an_index_lies_in_the_cache_where_the_folder_is_only_read(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "p.tar")
    (tmp_path / ".p.tar.index").mkdir()  # Nothing can be written there, not even as root.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = cnnlab("data", "check", "--config", TINY_PHOTOS, "--data.root", path)
    assert "8 images can be read" in done.out
    assert len(list((tmp_path / "cache/cnnlab/archives").glob("*.index"))) == 1


def test_archives_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Offsets and counts beyond 32 bits: sizes in binary in a tar, zip64 in a zip; the holes take no room on a disk."""
    far, content = 5 << 30, image(3)
    with (tmp_path / "p.tar").open("wb") as file:
        for name, size in (("hole.bin", far), ("a/1.png", len(content))):
            header = tarfile.TarInfo(name)
            header.size = size
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.seek(file.tell() + far) if size == far else file.write(content.ljust(1024, b"\0"))
        file.write(bytes(1024))
    assert tree.read_bytes(tmp_path / "p.tar/a/1.png") == content
    with (tmp_path / "q.zip").open("wb") as file, zipfile.ZipFile(file, "w") as made:
        file.seek(far)
        made.start_dir = far
        made.writestr("a/1.png", content)
    assert tree.read_bytes(tmp_path / "q.zip/a/1.png") == content
    assert (tmp_path / "q.zip").stat().st_size > far
