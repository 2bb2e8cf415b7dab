"""Mosaic, copy-paste, mixup and the size of batches: objects stay where their pixels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlab import rle
from cnnlab.data import BoxFolder, InstanceFolder
from cnnlab.data.object_annotation import ObjectAnnotation
from cnnlab.errors import InputError
from tests.data.objects.pictures import write_objects

SIZE = (64, 96)
PLAIN = dict.fromkeys(("brightness", "contrast", "hue", "saturation"), 0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("mixing") / "photos", {"train": 12, "val": 4, "test": 4})


def training(root: Path, kind: type[BoxFolder] = InstanceFolder, **settings: Any) -> Any:
    settings = {"augment_args": {**PLAIN, "scale": [0.9, 1.4], "degrees": 10.0, "turns": True}, **settings}
    data = kind(root=str(root), size=SIZE, num_workers=0, batch_size=4, **settings)
    data.setup("fit")
    return data.train_set


@pytest.mark.parametrize("mixing", [None, {"mosaic": 1}, {"copy_paste": 1}, {"mosaic": 0.5, "copy_paste": 1}])
def test_masks_cover_the_pixels_of_their_objects(root: Path, mixing: dict[str, float] | None) -> None:
    files = training(root, mixing=mixing, least_visible=0.02)
    checked = 0
    for epoch in range(4):
        batch = files.__getitems__([(epoch, i, 0) for i in range(12)])
        for i, image in enumerate(batch.images.int().numpy()):
            objects = batch.targets[i]
            of_class = [(image[2] > 150) & (image[0] < 150), (image[0] > 150) & (image[2] < 150)]
            around = np.zeros(SIZE, dtype=bool)
            triples = zip(objects.boxes.numpy(), objects.labels.tolist(), objects.masks.numpy(), strict=True)
            for box, label, mask in triples:
                crop = rle.paste(mask, box, SIZE)
                rows, columns = crop.bitmap.shape
                window = (slice(crop.top, crop.top + rows), slice(crop.left, crop.left + columns))
                around[window] |= crop.bitmap
                inside = of_class[label][window][crop.bitmap]
                if len(inside) > 60:
                    # Objects of the original images may overlap: there the other class is on top.
                    checked += inside.mean() > 0.8
            # No object is without a mask, but for pieces that are too small.
            assert ((of_class[0] | of_class[1]) & ~around).sum() <= 0.05 * around.size
    assert checked > 40


def test_what_is_covered_is_taken_from_masks_and_boxes() -> None:
    one = ObjectAnnotation(
        np.array([[10.0, 10, 30, 30], [40, 10, 60, 30], [2, 40, 8, 46]]),
        np.arange(3),
        np.zeros(3, bool),
        SIZE,
        shapes=[[np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])], None, None],
        mask_side=56,
        original=SIZE,
    )
    cover = np.zeros(SIZE, dtype=bool)
    cover[:, 20:45] = True
    cover[41:, :9] = True
    left = one.behind(cover)
    # Half of the first, three quarters of the second, a sixth of the third.
    assert left.labels.tolist() == [0, 1]
    assert left.boxes.tolist() == [[10, 10, 20, 30], [45, 10, 60, 30]]
    assert (left.masks()[0] >= 128).mean() > 0.9
    boxes = one.behind(np.zeros(SIZE, dtype=bool))
    assert boxes.boxes.tolist() == one.boxes.tolist()


def test_boxes_are_pasted_with_soft_edges_and_hide_what_is_below(root: Path) -> None:
    files = training(root, BoxFolder, mixing={"copy_paste": 1})
    plain = training(root, BoxFolder)
    draws = [(0, i, 0) for i in range(12)]
    mixed, alone = files.__getitems__(draws), plain.__getitems__(draws)
    assert mixed.targets.masks is None
    assert mixed.targets.counts.sum() > alone.targets.counts.sum()


def test_mixup_has_the_objects_of_both(root: Path) -> None:
    files = training(root, mixing={"mixup": 1}, augment="none", augment_args=None)
    batch = files.__getitems__([(0, i, 0) for i in range(12)])
    assert len(batch.targets.boxes) > 12 * 1.5
    assert len(batch.targets.masks) == len(batch.targets.boxes)


def test_an_image_does_not_depend_on_its_batch(root: Path) -> None:
    files = training(root, mixing={"mosaic": 0.5, "copy_paste": 0.5, "mixup": 0.2})
    together = files.__getitems__([(3, i, 0) for i in range(6)])
    for i in range(6):
        alone = files.__getitems__([(3, i, 0)])
        assert (alone.images[0] == together.images[i]).all()
        assert (alone.targets.masks == together.targets[i].masks).all()


def test_mixing_ends_by_step_and_sizes_are_those_of_a_step(root: Path) -> None:
    files = training(root, mixing={"mosaic": 1, "until": 0.5}, multi_scale=[0.5, 1.5])
    files.total = 100
    plain = training(root, multi_scale=[0.5, 1.5])
    for seen in (48, 50, 52, 96):
        mixed, alone = (each.__getitems__([(0, 1, seen), (0, 5, seen)]).images for each in (files, plain))
        assert mixed.shape == alone.shape
        assert (mixed == alone).all() == (seen >= 50)
    sizes = {tuple(files.__getitems__([(0, 1, seen)]).images.shape[2:]) for seen in range(0, 400, 8)}
    assert len(sizes) > 3
    assert all(side % 32 == 0 for size in sizes for side in size)
    assert {min(size[0] for size in sizes), max(size[0] for size in sizes)} == {32, 96}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixing": {"mosaic": 2}}, "mixing.mosaic is 2"),
        ({"mixing": {"mosaik": 1}}, "data.mixing has no 'mosaik'"),
        ({"mixing": {"until": 1}}, "are all 0"),
        ({"multi_scale": [1.5, 0.5]}, "data.multi_scale is"),
        ({"multi_scale": [1]}, "expected two factors in order"),
    ],
)
def test_what_does_not_fit_is_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training(root, **settings)
