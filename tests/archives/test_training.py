"""Trainings on archives: the same weights, the same manifest and the same answers as on the files."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnlab import tree
from cnnlab.data import ImageFolder
from cnnlab.data.contents import ContentNotes
from cnnlab.imaging import ImageError
from tests.conftest import TINY_PHOTOS, Cnnlab, Result, run_process, start_process, write_photos

FLAGS = (
    *("--config", TINY_PHOTOS, "--callbacks.unfreezing", "false", "--callbacks.gradcam", "false"),
    *(
        "--trainer.max_epochs",
        "2",
        "--data.size",
        "16",
        "--data.num_workers",
        "2",
        "--callbacks.last.every_n_steps",
        "2",
    ),
)
pytestmark = pytest.mark.filterwarnings("default")


def pack(cnnlab: Cnnlab, *arguments: str) -> Result:
    """Run data pack, which has to succeed."""
    done = cnnlab("data", "pack", *arguments)
    assert done.code == 0, done.err
    return done


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, and the same manifest."""
    first, second = weights(one), weights(other)
    equal = all(torch.equal(value, second[name]) for name, value in first.items())
    return equal and (one / "manifest.csv").read_bytes() == (other / "manifest.csv").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the undivided photographs p (12 of each of three classes) and a run R of them."""
    folder = tmp_path_factory.mktemp("trained")
    write_photos(folder / "p", {"": 12})
    done = run_process("fit", *FLAGS, "--data.root", "p", "--run", "R", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("form", ["tar", "zip", "shards"])
def test_an_archive_trains_to_the_weights_of_its_files(
    cnnlab: Cnnlab, trained: Path, tmp_path: Path, form: str
) -> None:
    """Splits are made of names, which are the same without the archive's or the shard's; two workers read shards."""
    if form == "shards":
        pack(cnnlab, str(trained / "p"), "s", "--size", "40KB")
        assert len(list((tmp_path / "s").glob("shard-0000?.tar"))) > 2
        root = "s"
    else:
        pack(cnnlab, str(trained / "p"), "one", "--format", form)
        (tmp_path / f"one/shard-00000.{form}").rename(tmp_path / f"q.{form}")
        root = f"q.{form}"
    workers = ("--data.num_workers", "2" if form == "shards" else "0")
    done = run_process("fit", *FLAGS, *workers, "--data.root", root, "--run", "A", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same(trained / "R", tmp_path / "A")
    if form == "shards":  # A run of files tests the images that it has not seen in shards, too.
        tested = cnnlab("test", trained / "R", "--data.root", root)
        assert tested.code == 0, tested.err
        assert "are not the run's" not in tested.err
        with (trained / "R/manifest.csv").open(newline="") as file:
            count = sum(row["split"] == "test" for row in csv.DictReader(file))
        assert f"{count} of {count} images of split test" in tested.out


@pytest.mark.slow
def test_a_killed_run_on_shards_goes_on_to_the_same_weights(cnnlab: Cnnlab, trained: Path, tmp_path: Path) -> None:
    pack(cnnlab, str(trained / "p"), "s", "--size", "40KB")
    process = start_process("fit", *FLAGS, "--data.root", "s", "--run", "A", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "A").glob("checkpoints/last.ckpt")):
        assert process.poll() is None, process.finish().stderr
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.finish(120)
    done = run_process("resume", "A", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same(trained / "R", tmp_path / "A")


@pytest.fixture
def data(cnnlab: Cnnlab, trained: Path) -> ImageFolder:
    """Images in a tar, of which one batch has been read."""
    pack(cnnlab, str(trained / "p"), "one")
    made = ImageFolder("one", size=16, batch_size=4, num_workers=0, seed=0)
    made.setup("fit")
    made.train_set.source.hashes = ContentNotes(made.contents, made.rows_of("train").astype(np.int32))
    made.train_set.__getitems__([(0, 0, 0)])
    return made


SHARD = Path("one/shard-00000.tar")


def overwrite(old: bytes, new: bytes) -> None:
    """Change bytes in place, and put the time of the last change back."""
    status = SHARD.stat()
    content = SHARD.read_bytes()
    assert len(old) == len(new)
    assert old in content
    SHARD.write_bytes(content.replace(old, new))
    os.utime(SHARD, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_archive_that_grows_under_way_is_named(data: ImageFolder) -> None:
    """Half of a new archive would be trained on with the index of the old one."""
    with SHARD.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ImageError, match=r"one/across/\d+\.jpg: in \S+/shard-00000\.tar, which has changed since"):
        data.train_set.__getitems__([(0, 1, 1)])


def test_a_header_that_changes_under_way_is_named(data: ImageFolder) -> None:
    name = Path(data.train_set.paths[1]).name.encode()
    overwrite(b"across/" + name, b"across/" + name[::-1])
    with pytest.raises(ImageError, match=r"one/across/\S+: in \S+00000\.tar at offset [\d,]+: the header is another"):
        data.train_set.__getitems__([(0, 1, 1)])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_content_that_changes_under_way_is_named_as_that_of_a_file(data: ImageFolder, on_error: str) -> None:
    content = Path("one") / "across"
    old = tree.read_bytes(content / Path(data.train_set.paths[0]).name)
    overwrite(old, old[:-40] + bytes(40))
    data.train_set.source.skip = on_error == "skip"
    if on_error == "raise":
        with pytest.raises(ImageError, match="is another file than the one that this training has read before"):
            data.train_set.__getitems__([(1, 0, 0), (1, 1, 1)])
    else:
        with pytest.warns(UserWarning, match="left out: one/across/.* is another file than"):
            assert len(data.train_set.__getitems__([(1, 0, 0), (1, 1, 1)])) == 1
