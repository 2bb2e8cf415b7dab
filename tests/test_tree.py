"""What stands for which folder: archives, shards, and names that are neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cnnlab import tree
from cnnlab.image_files import LeftOut, image_paths, open_file, subfolders
from tests.archives.test_bad_archives import FILES, write_tar, write_zip
from tests.conftest import TINY_PHOTOS, Cnnlab

pytestmark = pytest.mark.filterwarnings("default")


def test_a_path_may_lead_through_an_archive_by_its_name_or_by_the_folders(tmp_path: Path) -> None:
    write_tar(tmp_path / "r/train.tar")
    for path in (tmp_path / "r/train", tmp_path / "r/train.tar"):
        assert tree.is_dir(path)
        assert tree.is_dir(path / "a")
        assert not tree.is_dir(path / "a/1.png")
        assert tree.is_file(path / "a/1.png")
        assert tree.exists(path / "a")
        assert not tree.exists(path / "a/9.png")
        assert tree.read_bytes(path / "a/1.png") == FILES[1][1]
        assert tree.size(path / "a/1.png") == len(FILES[1][1])
        assert tree.open(path / "b/3.png").read() == FILES[-1][1]
        assert tree.names(path) == {"a", "b"}
        with pytest.raises(FileNotFoundError, match=r"a/9\.png"):
            tree.read_bytes(path / "a/9.png")
        with pytest.raises(FileNotFoundError, match=r"a/9\.png"):
            tree.size(path / "a/9.png")
    assert subfolders(tmp_path / "r") == ["train"]


def test_the_folder_of_an_archives_own_name_is_left_out_of_its_paths(tmp_path: Path) -> None:
    """``tar cf train.tar train`` and ``tar cf train.tar -C train .`` are the same folder."""
    write_tar(tmp_path / "train.tar", [(f"train/{name}", content) for name, content in FILES])
    assert tree.names(tmp_path / "train") == {"a", "b"}
    assert tree.read_bytes(tmp_path / "train/a/1.png") == FILES[1][1]
    assert tree.read_bytes(tmp_path / "train.tar/train/a/1.png") == FILES[1][1]  # As tables may name it.


def test_shards_are_the_content_of_their_folder_whatever_they_are_called(tmp_path: Path) -> None:
    write_tar(tmp_path / "r/part_000007.tar", FILES[::2])
    write_zip(tmp_path / "r/part_000008.zip", FILES[1::2])
    (tmp_path / "r/notes.txt").write_text("x")
    assert tree.names(tmp_path / "r") - {".shards.index"} == {"a", "b", "notes.txt"}
    found = image_paths(tmp_path / "r", LeftOut())
    assert [str(Path(path).relative_to(tmp_path / "r")) for path in found] == [name for name, _ in FILES]
    assert [tree.read_bytes(path) for path in found] == [content for _, content in FILES]
    (tmp_path / "r/a.txt").write_text("x")
    write_tar(tmp_path / "r/part_000009.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match=r"r/a\.txt is in the shards part_000007\.tar, \.\.\. and beside them: remove"):
        tree.entries(tmp_path / "r")


def test_an_archive_that_is_replaced_is_listed_anew(tmp_path: Path) -> None:
    write_tar(tmp_path / "r/train.tar", FILES[:2])
    assert len(image_paths(tmp_path / "r", LeftOut())) == 2
    write_tar(tmp_path / "r/train.tar", FILES[:5])
    assert len(image_paths(tmp_path / "r", LeftOut())) == 5
    shutil.rmtree(tmp_path / "r")
    assert not tree.exists(tmp_path / "r/train")


def test_an_archive_among_images_or_folders_is_left_out_as_before(tmp_path: Path) -> None:
    """Downloads lie beside what was unpacked of them; a compressed one is not looked at either."""
    for name, content in FILES:
        path = tmp_path / "r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_zip(tmp_path / "r/a/all.zip")
    write_tar(tmp_path / "r/other.tar")
    write_tar(tmp_path / "r/b/backup_20240101.tar")
    write_tar(tmp_path / "r/b/backup_20240707.tar")
    write_tar(tmp_path / "r/b/twice.tar")
    write_zip(tmp_path / "r/b/twice.zip")
    write_tar(tmp_path / "r/more.tar.gz", mode="w:gz")
    left_out = LeftOut()
    assert len(image_paths(tmp_path / "r", left_out)) == 8
    assert left_out.counts == {"with .gz": 1, "with .tar": 4, "with .zip": 2}
    (tmp_path / "r/folder.tar").mkdir()
    assert subfolders(tmp_path / "r") == ["a", "b", "folder.tar", "other"]


def test_a_table_may_name_members(cnnlab: Cnnlab, tmp_path: Path) -> None:
    write_tar(tmp_path / "new.tar")
    rows = "".join(f"new.tar/{name},{name[0]}\n" for name, _ in FILES)
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    check = ("data", "check", "--config", TINY_PHOTOS, "--data.root", ".", "--data.csv")
    done = cnnlab(*check, "t.csv")
    assert done.code == 0, done.err
    assert "8 images can be read" in done.out
    (tmp_path / "u.csv").write_text(f"path,label\n{rows}new.tar/a/9.png,a\n")
    done = cnnlab(*check, "u.csv")
    assert "new.tar/a/9.png: there is no such file" in done.out


def test_a_run_can_copy_an_archive_to_its_nodes(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is copied with what is in it, a file as it is; the names in tables stay those of the original."""
    write_tar(tmp_path / "new.tar")
    fit = ("--", "fit", "--config", TINY_PHOTOS, "--data.root", "new.tar")
    done = cnnlab("slurm", "--nodes", "1", "--dry-run", "--copy-data", *fit)
    assert done.code == 0, done.err
    assert f"""cp -rLu "$0" "$1"' {tmp_path}/new.tar "$copy\"""" in done.out
    assert f'export CNNLAB_COPY={tmp_path}/new.tar="$copy"/new.tar' in done.out
    (tmp_path / "copy").mkdir()
    shutil.move(tmp_path / "new.tar", tmp_path / "copy/new.tar")
    monkeypatch.setenv("CNNLAB_COPY", f"{tmp_path}/new.tar={tmp_path}/copy/new.tar")
    assert open_file("new.tar/a/1.png").content == FILES[1][1]
