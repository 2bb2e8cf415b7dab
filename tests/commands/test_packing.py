"""cnnlab data pack: the same bytes each time, all files and no others, whole or not at all."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from cnnlab.archives import pack as packing
from tests.conftest import Cnnlab, write_photos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs, a table, a hidden file, a pipe, and an archive beside images."""
    write_photos(tmp_path / "p", {"train": 3, "val": 1})
    (tmp_path / "p/labels.csv").write_text("path,label\n")
    (tmp_path / "p/.hidden").write_text("x")
    return tmp_path / "p"


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the shards of a folder, in their order."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as content:
            found |= {name: content.read(name) for name in content.namelist()}
    return found


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_shards_have_all_files_in_order_and_the_same_bytes_each_time(
    cnnlab: Cnnlab, root: Path, tmp_path: Path, form: str
) -> None:
    """Other tools read them too; times and owners of the files do not count."""
    done = cnnlab("data", "pack", root, "one", "--size", "20KB", "--format", form)
    assert done.code == 0, done.err
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*") if path.is_file()}
    assert contents(tmp_path / "one") == files
    assert list(contents(tmp_path / "one")) == sorted(files)
    shards = sorted((tmp_path / "one").glob(f"shard-*.{form}"))
    sizes = [path.stat().st_size for path in shards]
    assert len(shards) > 1
    assert max(sizes) <= 20_000
    assert f"13 files in {len(shards)} shards, {sum(sizes):,} bytes: one (--data.root one)" in done.out
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    assert cnnlab("data", "pack", f"{root}/", "two", "--size", "20 kb", "--format", form).code == 0
    assert [path.read_bytes() for path in shards] == [(tmp_path / "two" / path.name).read_bytes() for path in shards]


def test_archives_are_packed_as_the_folders_that_they_stand_for(cnnlab: Cnnlab, root: Path, tmp_path: Path) -> None:
    """Also a compressed tar, which cannot be read in place; an archive among images is none of them."""
    assert cnnlab("data", "pack", root, "one").code == 0
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as tar:
        tar.add(root, "p")
    (tmp_path / "split").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"split/{split}.tar", "w") as tar:
            tar.add(root / split, ".")
    (tmp_path / "split/labels.csv").write_text("path,label\n")
    for source in ("one", "p.tar.gz", "split"):
        done = cnnlab("data", "pack", source, f"of-{source}", "--format", "tar")
        assert done.code == 0, done.err
        assert contents(tmp_path / f"of-{source}") == contents(tmp_path / "one")
    assert not list(tmp_path.glob(".*"))
    (root / "train/along/all.zip").write_bytes(b"PK")
    os.mkfifo(root / "train/along/pipe")
    done = cnnlab("data", "pack", root, "two")
    assert "not packed: 1 not a regular file (pipe), 1 with .zip (all.zip)" in done.out
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def broken_link(root: Path) -> None:
    (root / "train/along/link.jpg").symlink_to("nowhere")


def backslash(root: Path) -> None:
    (root / "train/along/a\nb.jpg").write_bytes(b"x")


def cut(root: Path) -> None:
    path = root.with_name("cut.tgz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, "p")
    path.write_bytes(path.read_bytes()[:-500])


def other_compression(root: Path) -> None:
    root.with_name("z.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("p", "p"), r"p exists and is not empty: name a new folder"),
        (("p", "p/inside"), r"p/inside is in p, and would be packed itself: name a folder elsewhere"),
        (("q", "o"), r"there is no folder q: name the one to pack"),
        (("p", "o", "--size", "huge"), r"--size is 'huge', expected bytes, such as 500MB or 1GB"),
        (("p", "o", "--size", "1kB"), r"--size is 1kB, expected 10,000 bytes or more"),
        (("p", "o", "--format", "rar"), r"--format is 'rar': did you mean 'tar'\?"),
        (("p",), r"arguments are required: OUT \(cnnlab data pack --help\)"),
        (("p", "o", "--sizes", "1GB"), r"cnnlab data pack has no option --sizes: did you mean 'size'"),
        ((broken_link, "p", "o"), r"link\.jpg: the link leads nowhere: mend or remove it"),
        ((backslash, "p", "o"), r"the name has a line break, so no table could keep it: rename it"),
        ((cut, "cut.tgz", "o"), r"cut\.tgz: is cut or broken \(.*\): fetch it again"),
        (
            (other_compression, "z.tar.zst", "o"),
            r"z\.tar\.zst: is compressed in a way .* \(gzip, bzip2, xz are\)",
        ),
        (("empty", "o"), r"empty has no files: nothing to pack"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_cannot_be_packed_is_refused_and_nothing_is_left(
    cnnlab: Cnnlab, root: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    if callable(arguments[0]):
        arguments[0](root)
        arguments = arguments[1:]
    done = cnnlab("data", "pack", *map(str, arguments))
    assert done.code == 2
    assert re.search(message, done.err)
    assert not (tmp_path / "o").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_reads_back_otherwise_is_not_kept(
    cnnlab: Cnnlab, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses bytes; and one that is full: nothing is left that looks like shards."""
    add = packing._TarWriter.add
    monkeypatch.setattr(packing._TarWriter, "add", lambda self, name, content: add(self, name, content[:-1] + b"?"))
    done = cnnlab("data", "pack", root, "o")
    assert done.code == 2
    assert "p/labels.csv: reads back as another file from o: is the disk sound? Pack again" in done.err

    def full(self: object, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", "o")

    monkeypatch.setattr(packing._TarWriter, "add", full)
    done = cnnlab("data", "pack", root, "o")
    assert done.code == 2
    assert "No space left on device; make room there" in done.err
    assert not (tmp_path / "o").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_tar_that_is_compressed_without_saying_is_packed_too(cnnlab: Cnnlab, root: Path, tmp_path: Path) -> None:
    """Its error tells to pack it."""
    with tarfile.open(tmp_path / "q.tar", "w:gz") as tar:
        tar.add(root, ".")
    assert cnnlab("data", "pack", "q.tar", "one").code == 0
    assert cnnlab("data", "pack", root, "two").code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
