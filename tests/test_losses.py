"""Losses against values worked out by hand, plain one-hot formulas, torch's own, and numerical gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.errors import InputError
from cnnlab.losses import LOSSES, CrossEntropy, CrossEntropyDice, Dice, Focal, Tversky, class_sums, create_loss

IGNORED = 255


def onehot_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, mass and count (B, K), the plain way."""
    valid = (target != IGNORED)[:, None]
    masks = F.one_hot(target.masked_fill(target == IGNORED, 0), logits.shape[1]).permute(0, 3, 1, 2) * valid
    probabilities = logits.softmax(dim=1) * valid
    return (probabilities * masks).sum(dim=(2, 3)), probabilities.sum(dim=(2, 3)), masks.sum(dim=(2, 3))


def onehot_dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    overlap, mass, count = onehot_sums(logits, target)
    return (1 - (2 * overlap + smooth) / (mass + count + smooth)).mean()


def sample(*, ignored: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6, dtype=dtype), torch.randint(0, 4, (3, 5, 6))
    target[1][target[1] == 2] = 3  # The second image lacks a class.
    if ignored:
        target[torch.rand(target.shape) < 0.3] = IGNORED
    return logits, target


def certain(*classes: int) -> Tensor:
    """Logits (1, 3, 1, N) that say these classes of N pixels, with all certainty."""
    return F.one_hot(torch.tensor([[classes]]), 3).permute(0, 3, 1, 2) * 100.0


def test_dice_by_hand() -> None:
    # Truth 0 0 1 1, said 0 1 1 1. Class 0: 1 of 1 and 2; class 1: 2 of 3 and 2; class 2: of nothing, nothing.
    loss = Dice()(certain(0, 1, 1, 1), torch.tensor([[[0, 0, 1, 1]]]))
    assert loss.item() == pytest.approx(1 - (3 / 4 + 5 / 6 + 1) / 3)


def test_absent_classes_count_or_are_left_out() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    # Two pixels are taken for class 2, which is nowhere: (0 + 1) / (2 + 1).
    assert Dice()(certain(0, 2, 1, 2), target).item() == pytest.approx(1 - (3 / 4 + 3 / 4 + 1 / 3) / 3)
    assert Dice(absent="skip")(certain(0, 2, 1, 2), target).item() == pytest.approx(1 / 4)


def test_batchwise_takes_the_images_for_one() -> None:
    logits, target = sample()
    wide = torch.cat(list(logits), dim=2)[None], torch.cat(list(target), dim=1)[None]
    torch.testing.assert_close(Dice(batchwise=True)(logits, target), Dice()(*wide))
    assert Dice(batchwise=True)(logits, target) != Dice()(logits, target)


def test_tversky_by_hand() -> None:
    # Class 0: one hit, none false, one missed; class 1: two hits, one false; class 2: nothing.
    loss = Tversky(alpha=0.2, beta=0.8)(certain(0, 1, 1, 1), torch.tensor([[[0, 0, 1, 1]]]))
    assert loss.item() == pytest.approx(1 - (2 / 2.8 + 3 / 3.2 + 1) / 3)


def test_focal_by_hand() -> None:
    # Probabilities of the truth 1/2 and, for class 1, 3/4; the third pixel is ignored.
    logits = torch.tensor([[[[0.0, 0.0, 9.0]], [[0.0, math.log(3), 0.0]]]])
    target = torch.tensor([[[0, 1, IGNORED]]])
    expected = (0.25 * math.log(2) + 3 * 0.0625 * math.log(4 / 3)) / 2
    assert Focal(gamma=2, class_weights=[1.0, 3.0])(logits, target).item() == pytest.approx(expected)
    torch.testing.assert_close(Focal(gamma=0)(logits, target), CrossEntropy()(logits, target))


@pytest.mark.parametrize("ignored", [False, True])
def test_dice_equals_the_one_hot_formula(ignored: bool) -> None:
    values = []
    for loss in (Dice(), onehot_dice):
        logits, target = sample(ignored=ignored)
        value = loss(logits.requires_grad_(), target)
        value.backward()
        values.append((value.detach(), logits.grad))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.5]])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_equals_torchs(weights: list[float] | None, memory_format: torch.memory_format) -> None:
    logits, target = sample(dtype=torch.float32)
    logits = logits.to(memory_format=memory_format).requires_grad_()
    mine = CrossEntropy(weights)(logits, target)
    theirs = F.cross_entropy(
        logits, target, weight=None if weights is None else torch.tensor(weights), ignore_index=IGNORED
    )
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (mine, theirs)))


def test_the_combination_is_the_weighted_sum() -> None:
    logits, target = sample()
    parts = CrossEntropy([1.0, 2, 3, 4])(logits, target), Dice(batchwise=True)(logits, target)
    both = CrossEntropyDice(0.3, 0.9, class_weights=[1.0, 2, 3, 4], batchwise=True)(logits, target)
    torch.testing.assert_close(both, 0.3 * parts[0] + 0.9 * parts[1])
    torch.testing.assert_close(
        CrossEntropyDice()(logits, target), (CrossEntropy()(logits, target) + Dice()(logits, target)) / 2
    )


def test_dice_equals_a_public_implementation() -> None:
    segmentation_models = pytest.importorskip("segmentation_models_pytorch", reason="the extra segmentation")
    logits, target = sample()
    # Its smoothing is that of TP / (TP + FP / 2 + FN / 2): half of what stands above 2 TP.
    oracle = segmentation_models.losses.DiceLoss("multiclass", smooth=0.5, ignore_index=IGNORED)
    torch.testing.assert_close(Dice(batchwise=True)(logits, target), oracle(logits, target))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name: str) -> None:
    logits, target = sample()
    loss = create_loss(name, IGNORED, {})
    assert torch.autograd.gradcheck(lambda values: loss(values, target), (logits.requires_grad_(),))


def test_each_of_the_sums_has_its_gradient() -> None:
    logits, target = sample()
    torch.manual_seed(1)
    weights = torch.randn(3, 3, 4, dtype=torch.float64)

    def total(values: Tensor) -> Tensor:
        return (torch.stack(class_sums(values, target)[:3]) * weights).sum()

    assert torch.autograd.gradcheck(total, (logits.requires_grad_(),))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_where_all_is_ignored_loss_and_gradients_are_0(name: str, dtype: torch.dtype) -> None:
    """An all-ignored target gave a loss above zero (kornia#839, mmsegmentation#2996)."""
    logits = torch.randn(2, 4, 5, 6).to(dtype).requires_grad_()
    loss = create_loss(name, IGNORED, {})(logits, torch.full((2, 5, 6), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("level", [60_000.0, -60_000.0])
def test_large_half_precision_logits_stay_finite(name: str, level: float) -> None:
    """Dice overflowed in half precision (qubvel-org/segmentation_models.pytorch#463)."""
    logits = torch.full((1, 3, 64, 64), 0.0, dtype=torch.float16)
    logits[:, 0] = level
    logits.requires_grad_()
    target = torch.randint(0, 3, (1, 64, 64))
    loss = create_loss(name, IGNORED, {})(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_is_summed_in_float32() -> None:
    # 100,000 pixels: more than float16 can count to.
    logits, target = torch.zeros(1, 2, 250, 400, dtype=torch.float16), torch.zeros(1, 250, 400, dtype=torch.int64)
    sums = class_sums(logits, target)
    assert sums.mass.tolist() == [[50_000.0, 50_000.0]]
    assert sums.pixels.tolist() == [[100_000.0, 0.0]]


def test_sums_of_millions_of_pixels_are_right() -> None:
    torch.manual_seed(0)
    # More than float32 can count to one by one.
    logits, target = torch.randn(1, 2, 4100, 4100), (torch.rand(1, 4100, 4100) < 0.1).long()
    found, expected = class_sums(logits, target), class_sums(logits.double(), target)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=0)


def test_under_autocast_the_loss_is_the_same() -> None:
    logits, target = sample(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = CrossEntropyDice()(logits, target)
    assert mixed.equal(CrossEntropyDice()(logits, target))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("dise", {}, "did you mean 'dice'"),
        ("dice", {"smoth": 1}, "did you mean 'smooth'"),
        ("dice", {"smooth": 0}, "smooth is 0"),
        ("dice", {"absent": "drop"}, "absent is 'drop'"),
        ("tversky", {"alpha": 0, "beta": 0}, "not both 0"),
        ("cross_entropy_dice", {"dice": -1}, "dice -1"),
        ("focal", {"gamma": -1}, "gamma is -1"),
        ("focal", {"class_weights": [1, -1]}, "class_weights are"),
        ("cross_entropy", {"class_weights": [0, 0]}, "not all 0"),
    ],
)
def test_what_a_loss_does_not_take_is_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_loss(name, IGNORED, args)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 5, 6), (3, 1, 5, 6)])
def test_targets_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected \\(batch, classes, height, width\\)"):
        class_sums(sample()[0], torch.zeros(shape, dtype=torch.int64))
