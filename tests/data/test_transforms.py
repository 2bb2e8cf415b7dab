import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.in_memory import RandomAffine
from cnnlab.errors import InputError


def blob(height: int = 28, width: int = 28) -> Tensor:
    """One smooth, lopsided image."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = 255 * torch.exp(-(((x - width * 0.6) / 4) ** 2) - ((y - height * 0.4) / 2.5) ** 2)
    return image.to(torch.uint8)[None, None]


def center_of_mass(image: Tensor) -> tuple[float, float]:
    weights = image.double().squeeze()
    y, x = torch.meshgrid(*(torch.arange(size) for size in weights.shape), indexing="ij")
    return float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())


def test_without_amounts_nothing_changes() -> None:
    assert RandomAffine().is_identity
    assert not RandomAffine(scale=0.1).is_identity
    assert torch.equal(RandomAffine()(blob(), torch.rand(1, 4)), blob())


def test_the_middle_draw_is_the_identity() -> None:
    assert torch.equal(RandomAffine(30, 0.2, 0.2)(blob(), torch.full((1, 4), 0.5)), blob())


@pytest.mark.parametrize("shape", [(28, 28), (20, 36)])
def test_a_rotation_equals_pillows(shape: tuple[int, int]) -> None:
    warped = RandomAffine(degrees=20)(blob(*shape), torch.tensor([[1.0, 0.5, 0.5, 0.5]]))
    pillow = Image.fromarray(blob(*shape)[0, 0].numpy()).rotate(20, Image.Resampling.BILINEAR)
    assert np.abs(warped[0, 0].numpy().astype(int) - np.asarray(pillow).astype(int)).max() <= 3


def test_a_shift_moves_by_the_share_of_the_side() -> None:
    moved = RandomAffine(translate=0.1)(blob(), torch.tensor([[0.5, 0.5, 0.0, 0.5]]))
    before, after = center_of_mass(blob()), center_of_mass(moved)
    assert after[0] - before[0] == pytest.approx(2.8, abs=0.05)
    assert after[1] - before[1] == pytest.approx(0, abs=0.05)


def test_a_scale_changes_the_area() -> None:
    larger = RandomAffine(scale=0.2)(blob(), torch.tensor([[0.5, 1.0, 0.5, 0.5]]))
    assert float(larger.sum()) / float(blob().sum()) == pytest.approx(1.2**2, rel=0.02)


def test_each_image_has_its_own_warp_whatever_its_neighbors() -> None:
    images, draws = blob().expand(3, -1, -1, -1), torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    augment = RandomAffine(10, 0.1, 0.1)
    together = augment(images, draws)
    assert together.dtype == torch.uint8
    assert not torch.equal(together[0], together[1])
    assert torch.equal(together[2:], augment(images[2:], draws[2:]))


@pytest.mark.parametrize(("name", "value"), [("degrees", -1), ("translate", 1), ("scale", 1.5)])
def test_impossible_amounts_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        RandomAffine(**{name: value})
