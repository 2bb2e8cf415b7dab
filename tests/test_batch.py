"""Batch: every form that a loader's batch may have."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from cnnlab.batch import Batch
from cnnlab.data.base import BatchDataset, Subset, WithEmptyBatches
from cnnlab.errors import InputError

IMAGES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([2, 0, 1])


def full() -> Batch:
    return Batch(IMAGES, LABELS, torch.tensor([5, 6, 7]), ["a.png", "b.png", "c.png"])


@pytest.mark.parametrize("form", [tuple, list])
def test_a_pair_becomes_a_batch(form: type) -> None:
    batch = Batch.of(form([IMAGES, LABELS]))
    assert batch.images is IMAGES
    assert batch.targets is LABELS
    assert batch.indices.tolist() == [-1, -1, -1]
    assert batch.paths == ["", "", ""]
    assert len(batch) == 3


def test_a_batch_stays_as_it_is() -> None:
    batch = full()
    assert Batch.of(batch) is batch


def test_a_lightning_module_of_ones_own_may_take_it_for_a_pair() -> None:
    """Modules that unpack their batch, as those of most tutorials do, failed on cnnlab's data."""
    batch = full()
    images, targets = batch
    assert images is batch[0] is IMAGES
    assert targets is batch[1] is LABELS
    with pytest.raises(IndexError):
        batch[2]


@pytest.mark.parametrize("key", ["label", "labels", "target", "bbox_xyxy"])
def test_torchgeos_dictionaries_become_batches(key: str) -> None:
    """A callback that read batch[0] failed with a KeyError on torchgeo's batches."""
    given = {"image": IMAGES, key: LABELS, "filename": ("x", "y", "z"), "index": torch.arange(3), "crs": None}
    batch = Batch.of(given)
    assert batch.targets is LABELS
    assert batch.paths == ["x", "y", "z"]
    assert batch.indices.tolist() == [0, 1, 2]


def test_a_dictionarys_masks_lose_their_channel() -> None:
    batch = Batch.of({"image": IMAGES, "mask": torch.ones(3, 1, 4, 4, dtype=torch.int64)})
    assert batch.targets.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": IMAGES, "caption": "x"}, "a batch is a dict with the keys image, caption, expected a Batch"),
        ((IMAGES, LABELS, LABELS), "a batch is a tuple that cannot be read"),
        ((IMAGES.numpy(), LABELS), "tuple"),
        (IMAGES, "a batch is a Tensor"),
        ({"label": LABELS}, "keys label"),
    ],
)
def test_another_form_is_described(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batch.of(given)


@pytest.mark.parametrize("count", [0, 2, 9])
def test_the_first_images_of_a_batch(count: int) -> None:
    batch = full().first(count)
    kept = min(count, 3)
    assert len(batch) == len(batch.targets) == len(batch.indices) == len(batch.paths) == kept
    assert batch.images.shape[1:] == (1, 4, 4)
    assert list(batch.paths) == ["a.png", "b.png", "c.png"][:kept]


def test_a_batch_moves_to_a_device_with_all_that_can_move() -> None:
    batch = full().to("meta")
    assert {part.device.type for part in (batch.images, batch.targets, batch.indices)} == {"meta"}
    assert batch.paths == full().paths
    boxes = [{"boxes": 1}]
    assert Batch(IMAGES[:1], boxes, torch.tensor([0]), [""]).to("cpu").targets is boxes


class Pairs(BatchDataset):
    """A user's own data set, which yields pairs."""

    def __len__(self) -> int:
        return 6

    def __getitems__(self, draws: list[int]) -> Batch:
        images = torch.tensor(draws, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return images, torch.tensor(draws)  # type: ignore[return-value]


def test_a_process_without_samples_gets_an_empty_batch() -> None:
    """Processes with fewer batches than others waited for ever (Lightning-AI/torchmetrics issue 626)."""
    dataset = WithEmptyBatches(Pairs())
    empty = dataset.__getitems__([])
    assert empty.images.shape == (0, 1, 2, 2)
    assert empty.targets.shape == empty.indices.shape == (0,)
    assert dataset.__getitems__([4, 1]).targets.tolist() == [4, 1]


def test_a_subset_is_spread_over_the_whole() -> None:
    subset = Subset(Pairs(), 3)
    assert len(subset) == 3
    assert Batch.of(subset.__getitems__([0, 1, 2])).targets.tolist() == [0, 2, 5]


def test_batches_come_through_worker_processes() -> None:
    loader = DataLoader(WithEmptyBatches(Pairs()), batch_sampler=[[0, 1], []], collate_fn=lambda b: b, num_workers=1)
    assert [len(batch) for batch in loader] == [2, 0]
