from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cnnlab.analysis.convolution import KERNELS, Padding, conv2d, conv2d_loops, output_size, pool2d, shift_change
from cnnlab.errors import InputError

GEOMETRIES: list[tuple[int, Padding, int]] = [
    (1, "valid", 1),
    (1, "same", 1),
    (2, 1, 1),
    (3, 0, 1),
    (1, "valid", 2),
    (2, 3, 2),
]


# Of even kernels, which torch pads by a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("stride", "padding", "dilation"), GEOMETRIES)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel"), [(1, 1, (3, 3)), (3, 2, (3, 5)), (2, 4, (1, 1)), (2, 1, (2, 4))]
)
def test_both_are_torch_s(
    stride: int, padding: Padding, dilation: int, channels: int, outputs: int, kernel: tuple[int, int]
) -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(channels, 9, 11))
    weights = generator.normal(size=(outputs, channels, *kernel))
    expected = F.conv2d(
        torch.from_numpy(image)[None], torch.from_numpy(weights), stride=stride, padding=padding, dilation=dilation
    )[0].numpy()
    np.testing.assert_allclose(conv2d(image, weights, stride, padding, dilation), expected, atol=1e-6)
    np.testing.assert_allclose(conv2d_loops(image, weights, stride, padding, dilation), expected, atol=1e-6)


def test_checkerboards_meet_on_every_second_position() -> None:
    checkerboard = (np.indices((5, 5)).sum(0) + 1) % 2
    for convolve in (conv2d, conv2d_loops):
        assert convolve(checkerboard, checkerboard[:3, :3]).tolist() == [[5, 0, 5], [0, 5, 0], [5, 0, 5]]


@pytest.mark.parametrize("geometry", [(28, 3, 1, 1, 1), (7, 2, 2, 0, 1), (32, 5, 3, 2, 2), (5, 5, 1, 0, 1)])
def test_the_size_of_the_output_is_torch_s(geometry: tuple[int, int, int, int, int]) -> None:
    size, kernel, stride, padding, dilation = geometry
    layer = torch.nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    assert output_size(*geometry) == layer(torch.zeros(1, 1, size, size)).shape[2]


@pytest.mark.parametrize(
    ("stride", "size", "mode"), [(None, 2, "max"), (1, 3, "max"), (2, 3, "average"), (None, 2, "average")]
)
def test_pooling_is_torch_s(stride: int | None, size: int, mode: str) -> None:
    image = np.random.default_rng(0).normal(size=(3, 8, 9))
    pool = F.max_pool2d if mode == "max" else F.avg_pool2d
    expected = pool(torch.from_numpy(image), size, stride)
    np.testing.assert_allclose(pool2d(image, size, stride, mode), expected, atol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(pool2d(image[0], size, stride, mode), expected[0], atol=1e-12)  # type: ignore[arg-type]


def test_the_kernels_do_what_they_are_called() -> None:
    step = np.zeros((6, 6))
    step[:, 3:] = 1
    across, down = (conv2d(step, KERNELS[name]) for name in ("sobel_x", "sobel_y"))
    assert across.max() == 4
    assert not down.any()
    np.testing.assert_array_equal(conv2d(step.T, KERNELS["sobel_y"]), across.T)
    flat = np.full((5, 5), 7.0)
    for name in ("gaussian", "sharpen"):
        np.testing.assert_allclose(conv2d(flat, KERNELS[name]), 7)
    assert conv2d(step, KERNELS["gaussian"]).var() < step[1:-1, 1:-1].var() < conv2d(step, KERNELS["sharpen"]).var()


def test_what_is_pooled_over_more_changes_less_with_a_shift() -> None:
    image = np.random.default_rng(0).normal(size=(64, 64))
    changes = [shift_change(partial(pool2d, size=size, stride=1), image) for size in (1, 2, 4, 8)]
    assert changes == sorted(changes, reverse=True)
    assert shift_change(lambda image: image.sum(keepdims=True) * np.arange(4.0), image) < 1e-9


def test_bytes_do_not_overflow() -> None:
    image: Any = np.full((5, 5), 200, np.uint8)
    kernel: Any = np.ones((3, 3), np.uint8)
    assert conv2d(image, kernel).max() == 1800
    assert pool2d(image, 2, mode="average").max() == 200


def test_bad_input_is_named() -> None:
    image = np.zeros((3, 8, 8))
    with pytest.raises(InputError, match="do not fit"):
        conv2d(image, np.zeros((1, 2, 3, 3)))
    with pytest.raises(InputError, match="window of 9 does not fit into 8"):
        conv2d(image, np.zeros((1, 3, 9, 9)))
    with pytest.raises(InputError, match="stride of 2"):
        conv2d(image, np.zeros((1, 3, 3, 3)), stride=2, padding="same")
    with pytest.raises(InputError, match="padding is -1"):
        conv2d(image, np.zeros((1, 3, 3, 3)), padding=-1)
    with pytest.raises(InputError, match="stride is 0"):
        output_size(8, 3, stride=0)
    with pytest.raises(InputError, match="dilation is -1"):
        conv2d(image, np.zeros((1, 3, 3, 3)), padding="same", dilation=-1)
    with pytest.raises(InputError, match=r"expected \(H, W\)"):
        pool2d(np.zeros(8), 2)
    with pytest.raises(InputError, match="'median'"):
        pool2d(image, 2, mode="median")  # type: ignore[arg-type]
