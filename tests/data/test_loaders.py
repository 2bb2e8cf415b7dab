import multiprocessing
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import Dataset, Sampler

from cnnlab.batch import Batch
from cnnlab.data import ImageFolder
from cnnlab.data.loaders import StepPlan, TrainLoader, identity_collate


class _Slow(Dataset[Any]):
    """Batches that take a while to read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitems__(self, indices: list[int]) -> Batch:
        time.sleep(self.seconds)
        return Batch(torch.zeros(len(indices), 1, 2, 2), torch.tensor(indices), torch.tensor(indices), [])


class _Batches(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[2 * place, 2 * place + 1] for place in range(6)])

    def __len__(self) -> int:
        return 6


def _loader(seconds: float, most: int, plan: StepPlan | None = None) -> TrainLoader:
    return TrainLoader(
        _Slow(seconds),
        plan=lambda: plan,
        most_workers=most,
        batch_sampler=_Batches(),
        collate_fn=identity_collate,
        num_workers=1,
        persistent_workers=True,
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # This machine may have fewer processors.
def test_training_that_waits_for_images_gets_more_readers(capsys: pytest.CaptureFixture[str]) -> None:
    """Eight readers, whatever the machine has, left a fast network waiting."""
    loader = _loader(0.05, most=3)
    epochs = [[batch.targets.tolist() for batch in loader] for _ in range(4)]
    assert epochs[0] == [[2 * place, 2 * place + 1] for place in range(6)]
    assert all(epoch == epochs[0] for epoch in epochs)
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in said] == ["2 readers instead of 1", "3 readers instead of 2"]
    assert "waited for images in" in said[0]


def test_training_that_does_not_wait_keeps_its_readers(capsys: pytest.CaptureFixture[str]) -> None:
    loader = _loader(0.0, most=3)
    for _ in range(3):
        for _ in loader:
            time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_the_batches_of_a_step_know_what_all_of_them_count() -> None:
    plan = StepPlan(4, 0, 6, lambda batch: torch.tensor([float(len(batch))]))
    counts = [float(batch.group_counts) for batch in _loader(0.0, 3, plan) if batch.group_counts is not None]
    assert counts == [8.0] * 4 + [4.0] * 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # This machine may have fewer processors.
def test_readers_are_those_asked_for_or_a_part_of_the_processors(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.base.cpu_count", lambda: 32)
    found = {}
    for asked in (None, 0, 3):
        data = ImageFolder(str(photos), size=16, num_workers=asked)
        data.setup("fit")
        trainer: Any = SimpleNamespace(
            num_devices=8,
            global_rank=0,
            world_size=1,
            limit_train_batches=1.0,
            overfit_batches=0.0,
            lightning_module=None,
        )
        data.trainer = trainer
        found[asked] = data.train_dataloader().num_workers
    assert found == {None: 4, 0: 0, 3: 3}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # This machine may have fewer processors.
def test_readers_end_where_lightning_ends_them() -> None:
    """Readers that Lightning does not find would stay until the process ends."""
    loader = _loader(0.05, most=2)
    before = {child.pid for child in multiprocessing.active_children()}

    def readers() -> int:
        return len({child.pid for child in multiprocessing.active_children()} - before)

    assert len(list(loader)) == 6
    assert readers() == 1
    assert len(list(loader)) == 6
    assert readers() == 2  # The one of the first epoch has ended.
    CombinedLoader(loader).reset()
    assert readers() == 0
