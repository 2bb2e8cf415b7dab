"""Scores against values by hand and torchmetrics; evaluation by windows and with flips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.segmentation import MeanIoU

from cnnlab.batch import Batch
from cnnlab.errors import InputError
from cnnlab.tasks import Segmentation
from cnnlab.tasks.metrics import SegmentationScores


def scores(predicted: Tensor, target: Tensor, count: int = 3, parts: int = 1) -> dict[str, Any]:
    metric = SegmentationScores(count)
    for chunk in zip(predicted.chunk(parts), target.chunk(parts), strict=True):
        metric.update(*chunk)
    return {name: value.tolist() for name, value in metric.compute().items()}


def test_scores_by_hand() -> None:
    found = scores(torch.tensor([[[0, 0, 1, 1, 1]]]), torch.tensor([[[0, 1, 1, 1, 255]]]))
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert found["iou"][:2] == [1 / 2, 2 / 3]
    assert np.isnan(found["iou"][2])
    assert found["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["dice"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["pixel_accuracy"] == 3 / 4


def test_scores_are_of_all_pixels_and_not_means_of_batches() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randint(0, 3, (12, 8, 8)), torch.randint(0, 3, (12, 8, 8))
    target[:4] = 255
    whole = scores(predicted, target)
    assert all(scores(predicted, target, parts=parts) == whole for parts in (2, 3, 12))
    oracle = MeanIoU(num_classes=3, per_class=True, input_format="index")
    wide = [values[4:].reshape(1, -1, 8) for values in (predicted, target)]
    torch.testing.assert_close(torch.tensor(whole["iou"]), oracle(*wide))


def task(**kwargs: Any) -> Segmentation:
    torch.manual_seed(0)
    settings = {"network": "unet", "num_classes": 3, "network_args": {"base": 2, "depth": 2}, **kwargs}
    return Segmentation(**settings).eval()


def test_windows_and_whole_images_agree() -> None:
    images = torch.randint(0, 256, (2, 3, 150, 90), dtype=torch.uint8)
    with torch.no_grad():
        whole, parts = task().evaluate(images), task(window=72, margin=24).evaluate(images)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_flips_are_the_mean_of_both() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8)
    model = task(flips=True)
    with torch.no_grad():
        both = [model(images).softmax(1), model(images.flip(-1)).softmax(1).flip(-1)]
        torch.testing.assert_close(model.evaluate(images).exp(), (both[0] + both[1]) / 2)
        batch = Batch(images, torch.full((2, 32, 24), 255), torch.arange(2), ["a", "b"])
        made = model.predict_step(batch, 0)
    torch.testing.assert_close(made.answers["probabilities"], (both[0] + both[1]) / 2)
    assert made.batch is batch
    assert model.decode.compact(made.answers)["classes"].equal(made.answers["probabilities"].argmax(1))


@pytest.mark.parametrize("size", [(1, 1), (17, 33), pytest.param((2000, 3000), marks=pytest.mark.slow)])
def test_images_of_any_size_go_through_a_training_step_and_through_predict(size: tuple[int, int]) -> None:
    model = task(network_args={"base": 2}, window=512)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    targets = torch.zeros(2, *size, dtype=torch.int64)
    loss, _ = model.train()._measure((images, targets), model.train_metrics)
    torch.autograd.backward(loss)
    assert loss.isfinite()
    answers = model.eval().predict_step((images, targets), 0).answers
    assert answers["probabilities"].shape == (2, 3, *size)


def test_a_users_network_needs_no_stride() -> None:
    model = task(window=40, margin=0)
    model.network = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        images = torch.randint(0, 256, (1, 3, 100, 41), dtype=torch.uint8)
        torch.testing.assert_close(model.evaluate(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dise"}, "did you mean 'dice'"),
        ({"loss_args": {"class_weights": [1.0, 2.0]}}, "class_weights are 2, expected one for each of 3"),
        ({"ignore_index": 2}, "which is one of the 3 classes"),
        ({"window": 100, "margin": 60}, "from 124 on"),
        ({"window": 226}, "from 228 on"),
        ({"weights": "pretrained"}, "has no encoder"),
        ({"network": "resnet18"}, "no network 'resnet18' for segmentation"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(**options)
