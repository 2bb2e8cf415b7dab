from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnlab.data.mixing import Mixing, beta_quantile, create_mixing
from cnnlab.errors import InputError
from cnnlab.random import uniform


def batch(count: int = 8) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Flat images of levels 0, 20, 40, ..., of classes 0, 1, 2, ..., with random numbers."""
    images = (torch.arange(count, dtype=torch.uint8) * 20).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    return images, torch.arange(count), uniform(0, np.zeros(count, np.int64), np.arange(count), 5)


def test_weights_are_the_share_really_shown() -> None:
    """CutMix cuts at the border: the label's weight comes from the pasted area, not from the draw."""
    images, targets, numbers = batch(200 // 20)
    mixed, weights = Mixing(mixup=0, cutmix=1.0)(images, targets, numbers, 10)
    assert torch.allclose(weights.sum(dim=1), torch.ones(10))
    for i in range(10):
        own = (mixed[i, 0] == images[i, 0, 0, 0]).float().mean()
        assert float(weights[i, i]) == pytest.approx(float(own), abs=1e-6)
    assert 0 < float(weights.diagonal().min()) < 1


def test_mixup_blends_both_of_a_pair_by_one_share() -> None:
    images, targets, numbers = batch()
    mixed, weights = Mixing(mixup=1.0, cutmix=0)(images, targets, numbers, 8)
    for i in range(8):
        share, partner = float(weights[i, i]), i ^ 1
        assert float(weights[partner, partner]) == pytest.approx(share)
        assert float(mixed[i, 0, 0, 0]) == pytest.approx(share * 20 * i + (1 - share) * 20 * partner, abs=0.51)
    assert mixed.dtype == torch.uint8


def test_the_switch_chooses_and_the_odd_one_out_stays() -> None:
    images, targets, numbers = batch(9)
    mixed, weights = Mixing()(images, targets, numbers, 9)
    assert torch.equal(mixed[8], images[8])
    assert float(weights[8, 8]) == 1
    assert torch.equal(Mixing(probability=0)(images, targets, numbers, 9)[0], images)


def test_several_labels_mix_too() -> None:
    images, _, numbers = batch(2)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    _, weights = Mixing(mixup=1.0, cutmix=0)(images, targets, numbers, 3)
    assert float(weights[0, 0]) == pytest.approx(float(weights[0, 1]))
    assert float(weights[0, 0] + weights[0, 2]) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_shares_have_the_moments_of_beta(alpha: float) -> None:
    drawn = np.array([beta_quantile(q, alpha) for q in (np.arange(2000) + 0.5) / 2000])
    assert drawn.mean() == pytest.approx(0.5, abs=1e-3)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=5e-3)


@pytest.mark.parametrize("settings", [{"mixup": -1.0}, {"switch": 2.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_numbers_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Mixing(**settings)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(InputError, match=r"'mixup_alpha'.*mixup"):
        create_mixing({"mixup_alpha": 0.3})
    assert create_mixing(False) is None
    assert create_mixing(True) == Mixing()
