import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from cnnlab.tasks.metrics import Calibration


def predictions(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 7, generator=generator) * 2
    return logits.softmax(dim=1), torch.randint(0, 7, (count,), generator=generator)


@pytest.mark.parametrize("bins", [2, 15])
def test_it_is_the_error_that_torchmetrics_finds(bins: int) -> None:
    probabilities, targets = predictions(2000)
    own, oracle = Calibration(bins), MulticlassCalibrationError(7, n_bins=bins)
    own.update(probabilities, targets)
    oracle.update(probabilities, targets)
    assert own.compute()["calibration_error"].item() == pytest.approx(oracle.compute().item(), abs=1e-6)


def test_batches_change_no_digit() -> None:
    probabilities, targets = predictions(997)
    whole, parts = Calibration(), Calibration()
    whole.update(probabilities, targets)
    for part in torch.split(torch.randperm(997), 10):
        parts.update(probabilities[part], targets[part])
    assert all(value.equal(parts.compute()[name]) for name, value in whole.compute().items())


def test_the_bins_say_how_often_a_probability_is_right() -> None:
    calibration = Calibration(bins=4)
    probabilities = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [1.0, 0.0]])
    calibration.update(probabilities, torch.tensor([0, 0, 0, 1]))
    found = calibration.compute()["reliability"]
    torch.testing.assert_close(found[3], torch.tensor([2, 0.9, 0.5]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], torch.tensor([2, 0.65, 0.5]).double(), atol=1e-6, rtol=0)
    assert found[:2].sum() == 0


def test_what_is_not_a_number_is_certain_of_nothing() -> None:
    calibration = Calibration(bins=2)
    calibration.update(torch.tensor([[float("nan")] * 2, [0.0, 1.0]]), torch.tensor([0, 1]))
    found = calibration.compute()
    assert found["calibration_error"] == 0
    assert found["reliability"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_probability_on_a_border_belongs_below_it() -> None:
    calibration = Calibration(bins=2)
    calibration.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    assert calibration.compute()["reliability"][:, 0].tolist() == [1, 0]
