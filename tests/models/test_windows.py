from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from cnnlab.errors import InputError
from cnnlab.models import UNet
from cnnlab.models.windows import predict_in_windows, split_into_windows


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128, 129, 1000])
@pytest.mark.parametrize(("margin", "multiple"), [(0, 1), (8, 16), (24, 16), (31, 1), (20, 8)])
def test_kept_parts_cover_the_axis_once(length: int, margin: int, multiple: int) -> None:
    parts = split_into_windows(length, 64, margin, multiple)
    kept = [pixel for part in parts for pixel in range(part.keep_from, part.keep_to)]
    assert kept == list(range(length))
    for part in parts:
        assert part.start % multiple == 0
        assert 0 <= part.start < part.stop <= min(part.start + 64, length)
        assert part.keep_from - part.start >= margin or part.keep_from == 0
        assert part.stop - part.keep_to >= margin or part.keep_to == length


def test_a_margin_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="from 80 on"):
        split_into_windows(100, 64, 32, 16)


def with_statistics(network: nn.Module) -> nn.Module:
    """Set batch norm's statistics as training does: with the initial ones, almost nothing passes the ReLUs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(2, 1, 64, 64))
    return network.eval()


def measure_reach(network: nn.Module, size: int) -> int:
    """The largest distance in pixels that an output's gradient reaches, over 16 neighboring outputs."""
    images = torch.zeros(16, 1, 16, size, requires_grad=True)
    places = size // 2 + torch.arange(16)
    network(images)[torch.arange(16), ..., places].square().sum().backward()
    assert images.grad is not None
    distance = (torch.arange(size) - places[:, None]).abs()
    return int(distance[images.grad.abs().sum(dim=(1, 2)) > 0].max())


def smooth(network: nn.Module) -> nn.Module:
    """Remove ReLUs and maxima, which block gradients."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.AvgPool2d(2))
    return network.eval()


@pytest.mark.parametrize("depth", [2, 4])
def test_windows_give_what_the_whole_image_gives(depth: int) -> None:
    torch.manual_seed(0)
    network = with_statistics(UNet(num_classes=3, channels=1, base=2, depth=depth))
    needed = measure_reach(smooth(UNet(num_classes=1, channels=1, base=2, depth=depth)), 480)
    multiple = 2**depth
    margin = -(-needed // multiple) * multiple
    size = 2 * margin + 3 * multiple
    image = torch.randn(1, 1, size + 40, 2 * size + 5)
    with torch.no_grad():
        whole = network(image)
        torch.testing.assert_close(
            predict_in_windows(network, image, size, margin, multiple), whole, rtol=1e-4, atol=1e-5
        )
        # A smaller margin changes the result.
        assert not torch.allclose(predict_in_windows(network, image, size, margin // 4, multiple), whole, atol=1e-3)


def test_2000_by_3000_pixels_by_windows() -> None:
    network = with_statistics(UNet(num_classes=2, channels=1, base=2))
    image = torch.randn(1, 1, 2000, 3000)
    sizes: list[tuple[int, ...]] = []

    def record_size(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[-2:]))
        result: Tensor = network(part)
        return result

    with torch.no_grad():
        torch.testing.assert_close(
            predict_in_windows(record_size, image, 768, 112, 16), network(image), rtol=1e-4, atol=1e-5
        )
    assert max(itertools.chain(*sizes)) == 768
    assert len(sizes) == 4 * 6
