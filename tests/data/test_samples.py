"""Packed samples: the same as lists of samples, in little memory, also in reader processes."""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing

from cnnlab.data import ImageFolder, contents
from cnnlab.data.listing import list_folder
from cnnlab.data.packed import Codes, Strings
from cnnlab.data.samples import Paths, Sample, SampleTable
from cnnlab.data.shared import shared
from cnnlab.data.splits import place, split_samples
from cnnlab.run import Run
from cnnlab.writing import read_csv, write_columns
from tests.conftest import Cnnlab, write_photos

TEXTS = ["", "a", "kätzchen", "b" * 300, "猫", "\udcff", "a"]


def test_texts_come_back() -> None:
    packed = Strings.of(TEXTS)
    assert len(packed) == 7
    assert list(packed) == [packed[i] for i in range(7)] == TEXTS
    assert packed[-1] == "a"
    some = packed.take(np.array([5, 2, 2]))
    assert list(some) == ["\udcff", "kätzchen", "kätzchen"] == [some[0], some[1], some[2]]
    assert list(some.take(np.array([1]))) == list(some[1:2]) == ["kätzchen"]
    assert list(Strings.joined([packed, Strings.of(()), packed])) == [*TEXTS, *TEXTS]
    with pytest.raises(IndexError):
        packed[7]
    assert list(pickle.loads(pickle.dumps(some))) == list(some)
    many = Strings.of(map(str, range(70_000)))
    assert list(many) == [str(number) for number in range(70_000)]
    assert Codes.of("abca").values == ["a", "b", "c"]
    assert "".join(Codes.of("abca").take(np.array([3, 1]))) == "ab"


@pytest.mark.parametrize("root", ["photos", ".", "/photos", "/"])
def test_paths_have_names_below_the_root(root: str) -> None:
    inside = str(Path(root) / "cat" / "1.jpg")
    paths = Paths.of(root, [inside, "/elsewhere/2.jpg"])
    assert list(paths) == [paths[0], paths[1]] == [inside, "/elsewhere/2.jpg"]
    assert paths.name(0) == "cat/1.jpg"
    assert list(paths.names()) == ["cat/1.jpg", os.path.relpath("/elsewhere/2.jpg", root)]


def random_samples(count: int) -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample(
            f"r/{number}.png",
            tuple(draw.sample("xyz", draw.randint(0, 3))),
            draw.choice(["", "train", "val", "test"]),
            draw.choice(["", "g", "h"]),
            draw.choice(["", f"m/{number}.png"]),
            (draw.random(), -1.0),
            draw.choice(["", "s"]),
            f"{number}.png",
            draw.randint(-1, 5),
        )
        for number in range(count)
    ]


def test_samples_come_back() -> None:
    samples = random_samples(200)
    table = SampleTable.of(samples, "r")
    assert list(table) == [table[i] for i in range(200)] == samples
    assert list(table[3::7]) == samples[3::7]
    assert list(table.take(np.array([9, 2]))) == [samples[9], samples[2]]
    assert list(table.take(table.rows_of("val"))) == [sample for sample in samples if sample.split == "val"]
    names, rows, labels = table.pairs()
    assert [(int(row), names[label]) for row, label in zip(rows, labels, strict=True)] == [
        (row, label) for row, sample in enumerate(samples) for label in sample.labels
    ]
    plain = [Sample(f"r/{number}", name=str(number)) for number in range(3)]
    assert list(SampleTable.of(plain, "r")) == plain
    assert SampleTable.of([], "r").take(np.zeros(0, np.int64)).pairs()[0] == []


def read_in_child(paths: Paths, queue: Any) -> None:
    """What another process sees, and the memory of its own."""
    total = sum(len(path) for path in paths)
    queue.put((paths[3], total, private()))


def private() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_processes_share_paths(method: str) -> None:
    """A list of paths is copied into each reader by counting references, or by sending it."""
    count = 500_000
    paths = Paths.of("root", (f"root/class/{number:09d}.jpg" for number in range(count)))
    paths = paths.take(np.arange(count)[::-1]).mapped(shared)
    few = Paths.of("root", ["root/a.jpg"] * 5).mapped(shared)
    context: Any = torch.multiprocessing.get_context(method)
    found = []
    for own in (few, paths):
        queue = context.Queue()
        child = context.Process(target=read_in_child, args=(own, queue))
        child.start()
        found.append(queue.get(timeout=120))
        child.join()
        assert child.exitcode == 0
    third, total, memory = found[1]
    assert third == paths[3] == f"root/class/{count - 4:09d}.jpg"
    assert total == sum(map(len, paths))
    assert memory - found[0][2] < 20 * count


def test_a_folder_s_samples_are_those_of_its_files(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 3, "val": 2})
    (tmp_path / "train/spots/more").mkdir()
    (tmp_path / "train/spots/00.jpg").rename(tmp_path / "train/spots/more/00.jpg")
    found = list_folder(tmp_path)
    assert [(sample.name, sample.labels, sample.split) for sample in found.samples] == [
        (str(path.relative_to(tmp_path)), (path.relative_to(tmp_path).parts[1],), path.relative_to(tmp_path).parts[0])
        for split in ("train", "val")
        for kind in sorted((tmp_path / split).iterdir())
        for path in [*sorted(kind.glob("*.jpg")), *sorted(kind.glob("*/*.jpg"))]
    ]


def test_each_name_has_its_place_alone() -> None:
    """A split is decided by an image's name, whatever the others are."""
    samples = [Sample(f"r/{number}.png", ("a" if number % 3 else "b",)) for number in range(300)]
    divided = split_samples(_index(samples), 0.2, 0.1, seed=3).table
    for sample in divided:
        at = place(sample.name, 3)
        assert sample.split == ("test" if at < 0.1 else "val" if at < 0.3 else "train")


def test_a_rare_class_is_trained() -> None:
    for number in range(40):
        samples = [Sample(f"r/{number}-{own}.png", ("b" if own == 0 else "a",)) for own in range(10)]
        divided = split_samples(_index(samples), 0.2, 0.2, seed=0).table
        assert ("b",) in {sample.labels for sample in divided if sample.split == "train"}


def test_classes_and_splits_are_not_left_empty() -> None:
    draw = random.Random(1)
    for _ in range(200):
        labels = [draw.choice("aaaab") for _ in range(draw.randint(4, 12))]
        groups = [draw.choice(["", "g", "h"]) for _ in labels]
        samples = [
            Sample(f"r/{draw.random()}", (label,), group=group) for label, group in zip(labels, groups, strict=True)
        ]
        units = len({sample.group or sample.path for sample in samples})
        if units < 4:
            continue
        divided = split_samples(_index(samples), 0.2, 0.2, seed=0).table
        assert {sample.split for sample in divided} == {"train", "val", "test"}
        of_class = {label: {s.group or s.path for s in samples if s.labels == (label,)} for label in set(labels)}
        if min(map(len, of_class.values())) >= 3:  # Two may be needed to fill the other splits.
            assert {sample.labels[0] for sample in divided if sample.split == "train"} == set(labels)
        for group in ("g", "h"):
            assert len({sample.split for sample in divided if sample.group == group}) <= 1


def _index(samples: list[Sample]) -> Any:
    from cnnlab.data.samples import SampleIndex

    return SampleIndex(SampleTable.of([replace(sample, name="") for sample in samples], "r"))


def test_equal_contents_are_found(tmp_path: Path) -> None:
    for number, content in enumerate([b"a", b"b", b"a", b"", b"b", b"a"]):
        (tmp_path / str(number)).write_bytes(content)
    hashes = contents.ContentHashes(8)
    hashes.read([str(tmp_path / str(number)) for number in range(6)], range(1, 7))
    assert hashes.known().tolist() == [False, *[True] * 6, False]
    groups = hashes.equal(np.arange(1, 7))
    assert [group.tolist() for group in groups] == [[1, 3, 6], [2, 5]]
    # Hashes that only begin alike are of different files.
    hashes.table[7, :8] = hashes.table[1, :8]
    hashes.table[7, 8:40] = 1
    assert [group.tolist() for group in hashes.equal(np.array([1, 7]))] == []
    assert hashes.equal(np.zeros(0, np.int64)) == []
    assert hashes.note(1, b"a")
    assert not hashes.note(1, b"c")


def test_the_manifest_of_many_images_is_compressed_and_known_again(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million images took 164 MB."""
    monkeypatch.setattr(contents, "MANY", 5)
    write_photos(tmp_path / "p", {"": 8})
    conf = Path(__file__).parents[1] / "conf/image_folder.yaml"
    arguments = ("--data.root", str(tmp_path / "p"), "--trainer.max_epochs", "1", "--data.size", "16")
    done = cnnlab("fit", "--config", conf, *arguments, "--callbacks.unfreezing", "false", "--run", str(tmp_path / "R"))
    assert done.code == 0, done.err
    run = Run(tmp_path / "R")
    assert run.manifest == run.packed_manifest
    assert not run.plain_manifest.exists()
    rows = read_csv(run.manifest)
    assert len(rows) == 24
    assert {len(row["sha256"]) for row in rows} == {24}
    # A run that goes on learns the rest of the hashes, in the same form.
    unread = {name: [row[name] for row in rows] for name in rows[0]}
    unread["sha256"][:2] = ["", ""]
    write_columns(run.manifest, unread)
    resumed = cnnlab("resume", str(tmp_path / "R"), "--trainer.max_epochs", "2")
    assert resumed.code == 0, resumed.err
    assert read_csv(run.manifest) == rows
    # Renamed images are known by the beginnings of their hashes.
    moved = tmp_path / "p/spots/renamed.jpg"
    (tmp_path / "p/spots/00.jpg").rename(moved)
    data = ImageFolder(str(tmp_path / "p"), splits=str(run.manifest), size=16)
    of = {row["path"]: row["split"] for row in rows}
    assert {sample.name: sample.split for sample in data.listing.samples}["spots/renamed.jpg"] == of["spots/00.jpg"]
    run.manifest.write_bytes(run.manifest.read_bytes()[:50])
    tested = cnnlab("test", str(tmp_path / "R"))
    assert tested.code == 2
    assert "manifest.csv.gz is not a table" in tested.err
