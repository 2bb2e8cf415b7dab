"""Losses for distillation: the distance between a student and its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """The distance between the probabilities of student and teacher: T^2 KL(teacher / T, student / T), batch mean.

    Both logits are divided by the temperature T; the factor T^2 keeps the gradients as large as those of the
    cross-entropy (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2).

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
    """The distance between the attention maps of student and teacher: from 0 to 4.

    An attention map is the sum over the channels of the squared features, scaled to length 1 over the positions. The
    loss is the squared distance of the maps, mean over the batch (Zagoruyko and Komodakis 2017, arXiv:1612.03928,
    section 3.1). So the numbers of channels may differ; the larger map is averaged to the size of the smaller.

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
