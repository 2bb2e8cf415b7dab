"""Losses for distillation: how far a student is from its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """How far a student's probabilities are from its teacher's: T^2 KL(teacher / T, student / T), mean over the batch.

    Both logits are divided by the temperature T; its square keeps the gradients as large as those of the cross-entropy
    (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2).

    Args:
        student: Logits (B, K).
        teacher: Logits (B, K).
        temperature: T, above 0.

    >>> import torch
    >>> soft_targets(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])).item()
    0.0
    """
    own = F.log_softmax(student.float() / temperature, dim=1)
    taught = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(own, taught, log_target=True, reduction="batchmean")


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """How far a student's features are from its teacher's in where they are strong: from 0 to 4.

    The squares of the features, summed over the channels and scaled to length 1 over the positions; of these maps the
    squared distance, mean over the batch (Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1). So they may
    have different numbers of channels; the larger one is averaged to the size of the smaller.

    Args:
        student: Features (B, C, H, W).
        teacher: Features (B, D, h, w).
    """
    height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
    maps = (
        F.adaptive_avg_pool2d(x.float().square().sum(dim=1, keepdim=True), (height, width)) for x in (student, teacher)
    )
    own, taught = (F.normalize(x.flatten(1), dim=1) for x in maps)
    return (own - taught).square().sum(dim=1).mean()
