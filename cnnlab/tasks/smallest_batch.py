"""Whether the smallest training batch gives each norm more than one value, checked before training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.models.norms_and_checkpointing import norms_of_one_value


@torch.no_grad()
def check_smallest_batch(task: LightningModule, data: Any) -> None:
    """Check the norms with a batch of one training image, if an epoch has such a batch.

    Args:
        task: The task, on its device.
        data: Its data module; only those of cnnlab know their smallest batch.

    Raises:
        InputError: If a norm would get one value for a channel, of which it knows no spread.
    """
    smallest = getattr(data, "smallest_batch", None)
    if smallest is None or smallest() != 1:
        return
    batch = Batch.of(data.train_set.__getitems__([(0, 0, 0)])).first(1).to(task.device)
    found = norms_of_one_value(task, batch.images)
    if found:
        raise InputError(
            f"a training batch has 1 image of {'x'.join(map(str, batch.images.shape[2:]))}, so that norm {found[0]} "
            "gets 1 value for each channel, and cannot train: choose another data.batch_size (or leave out the last, "
            "incomplete batch with data.drop_last true), larger images, or --model.group_norm true"
        )
