from __future__ import annotations

import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.data import ImageFolder
from cnnlab.data.files import FileDataset, FixedTargets
from cnnlab.data.samples import Sample, SampleIndex, SampleTable
from cnnlab.data.splits import folds, split_samples
from cnnlab.errors import InputError
from cnnlab.imaging import ImageError, Preprocessing
from tests.conftest import write_photos


def module(root: Path, **options: object) -> ImageFolder:
    made = ImageFolder(str(root), **{"size": 16, "batch_size": 4, "num_workers": 0, "seed": 0, **options})  # type: ignore[arg-type]
    made.setup("fit")
    return made


def batches(data: ImageFolder, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def targets_of(dataset: object) -> torch.Tensor:
    assert isinstance(dataset, FileDataset)
    assert isinstance(dataset.annotations, FixedTargets)
    return dataset.annotations.targets


def test_one_class_map_for_all_splits(tmp_path: Path) -> None:
    """A split that lacks a class shifted all others by one (pytorch/vision issues 4925 and 8297)."""
    write_photos(tmp_path, {"train": 4, "val": 2, "test": 2})
    shutil.rmtree(tmp_path / "val" / "across")
    data = module(tmp_path)
    assert data.class_names == ["across", "along", "spots"]
    assert sorted(set(targets_of(data.val_set).tolist())) == [1, 2]
    (tmp_path / "test" / "stars").mkdir()
    with pytest.raises(InputError, match=r"test/stars.*no class 'stars'"):
        module(tmp_path)


def test_an_empty_class_and_a_folder_without_classes_are_named(tmp_path: Path) -> None:
    """An empty class folder raised an error that did not say which (pytorch/vision issue 4925)."""
    write_photos(tmp_path, {"train": 2})
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(InputError, match=r"train/empty has no images"):
        ImageFolder(str(tmp_path))
    with pytest.raises(InputError, match="2 images lie in it directly"):
        ImageFolder(str(tmp_path / "train" / "across"))
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere"))


def test_folders_of_splits_may_have_other_names_and_train_may_be_absent(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 3, "valid": 2, "test": 1})
    data = module(tmp_path)
    assert {split: len(samples) for split, samples in data.listing.of.items()} == {"train": 9, "val": 6, "test": 3}
    shutil.rmtree(tmp_path / "train")
    known = ImageFolder(str(tmp_path), class_names=data.class_names, size=16, num_workers=0)
    known.setup("test")
    assert targets_of(known.test_set).tolist() == [0, 1, 2]
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match=r"/val and \S+/valid both are for val"):
        ImageFolder(str(tmp_path))


def test_one_folder_is_divided_by_class_and_always_alike(tmp_path: Path) -> None:
    write_photos(tmp_path, {"": 20})
    data = module(tmp_path, val_size=0.2, test_size=0.1)
    found = {split: [sample.path for sample in samples] for split, samples in data.listing.of.items()}
    assert {split: len(paths) for split, paths in found.items()} == {"train": 42, "val": 12, "test": 6}
    assert not set(found["train"]) & set(found["val"]) | set(found["val"]) & set(found["test"])
    assert [targets_of(data.val_set).tolist().count(i) for i in range(3)] == [4, 4, 4]
    again = module(tmp_path, val_size=0.2, test_size=0.1, seed=5)
    assert [sample.path for sample in again.listing.of["val"]] == found["val"]
    other = module(tmp_path, val_size=0.2, test_size=0.1, split_seed=1)
    assert [sample.path for sample in other.listing.of["val"]] != found["val"]


def test_groups_are_not_divided() -> None:
    samples = [Sample(f"{i}.jpg", ("a" if i % 2 else "b",), "", group=f"g{i // 4}") for i in range(80)]
    listing = SampleIndex(samples, ["a", "b"])
    divided = split_samples(listing, 0.2, 0.2, seed=0)
    places: dict[str, set[str]] = {}
    for sample in divided.samples:
        places.setdefault(sample.group, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert all(divided.of.values())
    assigned = folds(samples, 4, seed=0)
    assert all(len(set(assigned[4 * g : 4 * g + 4].tolist())) == 1 for g in range(20))
    assert np.bincount(assigned, minlength=4).tolist() == [16, 20, 24, 20]  # Numbered names are spread evenly.


def test_folds_validate_each_image_once(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 8, "val": 2, "test": 1})
    parts = [{sample.path for sample in module(tmp_path, folds=3, fold=fold).listing.of["val"]} for fold in range(3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30
    assert all("/test/" not in path for path in set.union(*parts))


def test_small_classes_are_divided_too() -> None:
    samples = [Sample(f"{name}/{i}", (str(name),)) for name in range(20) for i in range(3)]
    divided = split_samples(SampleIndex(samples, list(map(str, range(20)))), 0.15, 0.15, seed=0)
    counts = {split: len(part) for split, part in divided.of.items()}
    assert all(abs(counts[split] - share) <= 4 for split, share in {"train": 42, "val": 9, "test": 9}.items())
    assert {sample.labels for sample in divided.of["train"]} == {sample.labels for sample in samples}
    fold = folds(samples, 5, seed=0)
    assert len({(number, sample.labels) for number, sample in zip(fold.tolist(), samples, strict=True)}) == 60


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    write_photos(tmp_path, {"": 4})
    for name in ("a.heic", "b.heic", "Thumbs", ".hidden"):
        (tmp_path / "spots" / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"3 files are no images .*: 1 with no ending \(\S+\), 2 with \.heic \("):
        ImageFolder(str(tmp_path))


def test_one_class_is_refused(tmp_path: Path) -> None:
    """An image folder inside another of its name trained to 100 %."""
    write_photos(tmp_path, {"": 6})
    for name in ("along", "spots"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(InputError, match="one class, 'across': nothing can be learned from one: add images"):
        module(tmp_path)


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    write_photos(tmp_path, {"": 4})
    (tmp_path / "spots/self").symlink_to(".")
    assert len(ImageFolder(str(tmp_path)).listing.samples) == 12


def test_a_table_says_path_label_split_and_labels(tmp_path: Path) -> None:
    write_photos(tmp_path, {"x": 3})
    table = tmp_path / "labels.csv"
    rows = [
        f"x/{name}/{i:02}.jpg,{name},{('train', 'val', 'test')[i]}" for name in ("across", "spots") for i in range(3)
    ]
    table.write_text("\n".join(["path,label,split", *rows]))
    data = module(tmp_path, csv=str(table))
    assert data.class_names == ["across", "spots"]
    assert [len(data.listing.of[split]) for split in ("train", "val", "test")] == [2, 2, 2]
    table.write_text("path,label\nx/across/00.jpg,striped;wide\nx/spots/00.jpg,\nx/along/00.jpg,striped\n")
    several = ImageFolder(str(tmp_path), csv=str(table), multi_label=True, val_size=0.34, test_size=0, size=16)
    with pytest.raises(InputError, match=r"has one label, \['a'\]"):
        ImageFolder(str(tmp_path), csv=str(table), class_names=["a"], multi_label=True)
    assert several.class_names == ["striped", "wide"]
    by_path = sorted(several.listing.samples, key=lambda sample: sample.path, reverse=True)
    assert several.read_annotations(SampleTable.of(by_path)).targets.tolist() == [[0, 0], [1, 0], [1, 1]]
    # Images without any label are no images of unknown labels.
    assert several.read_annotations(SampleTable.of(by_path[:1])).targets.tolist() == [[0, 0]]
    with pytest.raises(InputError, match=r"line 3: x/spots/00\.jpg has no label"):
        ImageFolder(str(tmp_path), csv=str(table))
    table.write_text("path,label\nx/a.jpg,one\nx/a.jpg,two\n")
    with pytest.raises(InputError, match=r"lines 2 and 3: both are of x/a\.jpg"):
        ImageFolder(str(tmp_path), csv=str(table))
    table.write_text("file,label\n")
    with pytest.raises(InputError, match="no column 'path', only 'file', 'label'"):
        ImageFolder(str(tmp_path), csv=str(table))


def test_batches_are_the_same_with_and_without_workers(photos: Path) -> None:
    alone = batches(module(photos, mixing=True), epoch=1)
    helped = batches(module(photos, mixing=True, num_workers=2), epoch=1)
    assert len(alone) == len(helped) == 6
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.paths == other.paths
    assert not torch.equal(alone[0].images, batches(module(photos, mixing=True), epoch=0)[0].images)


def test_rare_classes_are_drawn_more_often_and_augmented_anew(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 24, "val": 1})
    for path in sorted((tmp_path / "train" / "spots").iterdir())[3:]:
        path.unlink()
    data = module(tmp_path, balance=1.0, drop_last=False)
    assert data.describe_training() == "training images by class: across 24, along 24, spots 3"
    drawn = batches(data)
    counts = torch.bincount(torch.cat([batch.targets for batch in drawn]), minlength=3)
    assert all(abs(count - 17) <= 3 for count in counts.tolist())
    spots = torch.cat([batch.images[batch.targets == 2] for batch in drawn])
    assert len(torch.unique(spots, dim=0)) == len(spots) > 3 * 4
    assert torch.bincount(
        torch.cat([batch.targets for batch in batches(module(tmp_path, drop_last=False))])
    ).tolist() == [24, 24, 3]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One of each image that cannot be read, among good ones."""
    write_photos(tmp_path, {"train": 4, "val": 2, "test": 2})
    folder = tmp_path / "train" / "spots"
    whole = (folder / "00.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("nothing to see")
    (folder / "kelvin.tif").write_bytes(b"")
    Image.fromarray(np.full((8, 8), 300.0, np.float32)).save(folder / "kelvin.tif")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*cannot be read and are left out.*")
def test_broken_files_are_left_out_and_each_is_named(broken: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = module(broken, on_error="skip", drop_last=False)
    text = "\n".join(str(warning.message) for warning in caught)
    assert "4 of 28 images" in text
    for name in ("truncated.jpg", "empty.png", "text.jpg", "kelvin.tif"):
        assert f"spots/{name}: " in text
    assert sum(map(len, batches(data))) == 12
    rows = data.manifest()
    assert len(rows) == 28
    assert sum(bool(row["error"]) for row in rows) == 4
    data.check()
    assert {len(row["sha256"]) for row in data.manifest()} == {64}
    assert rows[0]["path"] == "train/across/00.jpg"


def test_a_broken_file_stops_the_epoch_by_name(broken: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"^\S+/spots/(truncated|empty|text|kelvin)\.(jpg|png|tif): [^\n]+$"):
            batches(module(broken, num_workers=workers))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_cache_gives_evaluation_the_same_pixels(tmp_path: Path, kind: str) -> None:
    write_photos(tmp_path / "p", {"train": 3, "val": 2}, size=(90, 70))
    for i, size in enumerate([(203, 331), (97, 64), (12, 30), (260, 133)]):
        write_photos(tmp_path / "sizes", {"val": 1}, size=size)
        (tmp_path / "sizes/val/spots/00.jpg").rename(tmp_path / f"p/val/spots/size{i}.jpg")
    options = {"cache": kind, "cache_folder": str(tmp_path / "cache"), "interpolation": "bicubic"}
    plain, cached = module(tmp_path / "p", interpolation="bicubic"), module(tmp_path / "p", **options)
    expected = [batch.images for batch in plain.val_dataloader()]
    for path in (tmp_path / "p").rglob("*.jpg"):
        path.rename(path.with_suffix(".away"))
    assert all(torch.equal(one, other.images) for one, other in zip(expected, cached.val_dataloader(), strict=True))
    assert len(batches(cached)) == 2
    for path in (tmp_path / "p").rglob("*.away"):
        path.rename(path.with_suffix(".jpg"))
    files = list((tmp_path / "cache").glob("*")) if kind == "disk" else []
    assert len(files) == (2 if kind == "disk" else 0)
    if kind == "disk":
        before = [file.stat().st_mtime_ns for file in files]
        module(tmp_path / "p", **options)
        assert [file.stat().st_mtime_ns for file in files] == before
        Image.new("RGB", (90, 70)).save(tmp_path / "p/val/spots/00.jpg")
        changed = module(tmp_path / "p", **options)
        assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
        pixels = torch.cat([batch.images for batch in changed.val_dataloader()])
        assert float(pixels.float().mean(dim=(1, 2, 3)).min()) < 1


def test_the_size_comes_from_the_pretraining_unless_it_is_asked_for(photos: Path) -> None:
    wanted = Preprocessing((24, 32), 0.9, "bicubic", [0.1, 0.2, 0.3], [0.5] * 3)
    data = ImageFolder(str(photos), num_workers=0)
    data.adopt(wanted)
    spec = data.input_spec()
    assert (spec.size, spec.crop, spec.interpolation) == ((24, 32), 0.9, "bicubic")
    assert torch.allclose(spec.fill, torch.tensor([25.5, 51.0, 76.5]))
    assert data.hparams["size"] == [24, 32]
    own = ImageFolder(str(photos), size=16, crop=1.0, num_workers=0)
    own.adopt(wanted)
    assert own.input_spec().size == (16, 16)
    assert own.input_spec().crop == 1.0


def test_flips_of_digits_and_sides_warn(tmp_path: Path) -> None:
    """A mirrored left hand is a right hand: the augmentation changed the label without a word."""
    for name in ("left hand", "right hand"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.jpg")
    with pytest.warns(UserWarning, match=r"mirrors.*'left hand'.*flip"):
        ImageFolder(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(str(tmp_path), augment_args={"flip": 0.0})


@pytest.mark.parametrize(
    "options",
    [
        {"folds": 1},
        {"folds": 3, "fold": 3},
        {"balance": 2.0},
        {"crop": 0.0},
        {"size": [1, 2, 3]},
        {"multi_label": True},
    ],
)
def test_options_out_of_range_are_named(photos: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"data\.{next(reversed(options))}"):
        ImageFolder(str(photos), **options)  # type: ignore[arg-type]


def test_overfitting_repeats_the_same_batch(photos: Path) -> None:
    from cnnlab.data.samplers import TrainSampler

    sampler = TrainSampler(20, 4, seed=0, repeat_first=True)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(one == other for one, other in pairwise(epochs))
