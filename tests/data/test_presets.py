"""Augmentation against the same steps done one after the other, and its random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cnnlab.data.annotations import FixedTarget
from cnnlab.data.augmentation import Augmentation, InputSpec, RandomTransform
from cnnlab.data.presets import create_augmentation
from cnnlab.data.warp import (
    Box,
    Color,
    Geometry,
    color_matrix,
    decode_size,
    fill_shifted,
    random_box,
    recolor,
    to_bytes,
    warp,
)
from cnnlab.errors import InputError
from cnnlab.imaging import LazyImage
from cnnlab.random import uniform

SIZE = (224, 224)
GRAY = torch.tensor([127.0, 127.0, 127.0])
LABEL = FixedTarget(torch.tensor(0))
SPEC = InputSpec(SIZE, 3, GRAY, 0.875, "bilinear")


def image_with_shapes(height: int = 533, width: int = 400) -> Image.Image:
    """Broad shapes with edges and shades, about as detailed as an enlarged photograph."""
    y, x = np.mgrid[0:height, 0:width]
    red = 120 + 90 * np.sin(x / 37) * np.cos(y / 53)
    green = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (width / 3) ** 2, 190, 70) + 20 * np.sin(y / 11)
    blue = 60 + 150 * y / height
    pixels = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photograph.jpg"
    image_with_shapes().save(path, quality=92)
    return path


def draws(count: int, samples: int = 20) -> list[list[float]]:
    rows: list[list[float]] = uniform(0, np.zeros(samples, np.int64), np.arange(samples), count).tolist()
    return rows


def psnr(one: Tensor, other: Tensor) -> float:
    return 10 * math.log10(255**2 / float((one.float() - other.float()).square().mean()))


def one_after_the_other(path: Path, geometry: Geometry, color: Color) -> Tensor:
    """The sequential, antialiased pipeline of torchvision, on a PIL image, with the hue of YIQ."""
    box = geometry.box
    image = functional.resized_crop(
        Image.open(path), int(box.top), int(box.left), int(box.height), int(box.width), list(SIZE), antialias=True
    )
    image = functional.horizontal_flip(image) if geometry.flip else image
    gray = GRAY.tolist()
    image = functional.rotate(
        image, geometry.angle, interpolation=functional.InterpolationMode.BILINEAR, fill=[int(g) for g in gray]
    )
    image = functional.adjust_brightness(image, color.brightness)
    image = functional.adjust_contrast(image, color.contrast)
    image = functional.adjust_saturation(image, color.saturation)
    pixels = to_bytes(recolor(functional.pil_to_tensor(image).float(), Color(hue=color.hue)))
    shifted: Tensor = functional.affine(pixels, 0, [geometry.shift[1], geometry.shift[0]], 1, [0, 0], fill=gray)
    return shifted


def test_one_warp_and_one_matrix_equal_the_steps_one_after_the_other(file: Path) -> None:
    found = []
    for row in draws(32, samples=40):
        image = LazyImage(file)
        box = random_box(row[:22], image.size, (0.8, 1.0), (3 / 4, 4 / 3))
        angle, down, right, *colors = (2 * number - 1 for number in row[22:29])
        geometry = Geometry(box, row[29] < 0.5, False, 15 * angle, (round(22 * down), round(22 * right)))
        brightness, contrast, saturation = (1 + 0.2 * change for change in colors[:3])
        color = Color(brightness, contrast, saturation, hue=0.1 * colors[3])
        pixels = image.read(at_least=decode_size(image.size, box, SIZE))
        scale = pixels.shape[0] / image.size[0]
        scaled = geometry._replace(box=Box(*(value * scale for value in box)))
        result = to_bytes(recolor(warp(torch.from_numpy(pixels.copy()), scaled, SIZE, GRAY), color))
        fill_shifted(result, geometry.shift, GRAY)
        found.append(psnr(result, one_after_the_other(file, geometry, color)))
    assert min(found) > 30
    assert float(np.median(found)) > 33


def test_a_large_image_that_is_no_jpeg_is_not_aliased(tmp_path: Path) -> None:
    """Stripes of one pixel are gray from afar, not stripes of another width."""
    stripes = np.zeros((1100, 1300, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    augmentation = RandomTransform(degrees=5.0, translate=0.01)
    for row in draws(augmentation.draws, 3):
        image = sample(augmentation, tmp_path / "stripes.png", row)[:, 30:-30, 30:-30]
        assert image.float().std() < 12


def test_brightness_contrast_and_saturation_are_torchvisions() -> None:
    pixels = (torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 120 + 60).round()
    for color, theirs in [
        (Color(brightness=1.2), functional.adjust_brightness(pixels / 255, 1.2)),
        (Color(contrast=0.7), functional.adjust_contrast(pixels / 255, 0.7)),
        (Color(saturation=1.3), functional.adjust_saturation(pixels / 255, 1.3)),
    ]:
        assert (recolor(pixels, color) - theirs * 255).abs().max() < 0.2
    both = Color(brightness=1.2, contrast=0.8)
    contrast_first = both._replace(order=(1, 0, 2, 3))
    sequential = functional.adjust_contrast(functional.adjust_brightness(pixels / 255, 1.2), 0.8) * 255
    assert (recolor(pixels, both) - sequential).abs().max() < 0.2
    assert torch.allclose(recolor(pixels, contrast_first), recolor(pixels, both), atol=1e-3)


def test_hue_turns_like_torchvisions_and_keeps_the_luma() -> None:
    red = torch.tensor([200.0, 60.0, 50.0]).view(3, 1, 1)
    turned = recolor(red, Color(hue=1 / 3)).flatten()
    assert turned.argmax() == functional.adjust_hue(red / 255, 1 / 3).flatten().argmax() == 1
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert float(turned @ luma) == pytest.approx(float(red.flatten() @ luma), abs=0.1)
    assert np.allclose(color_matrix(Color(hue=1.0), [1.0, 2.0, 3.0]), np.eye(3, 4), atol=1e-9)


def test_boxes_are_distributed_as_torchvisions() -> None:
    """Faster does not mean weaker."""
    ours = np.array([random_box(row, (533, 400), (0.8, 1.0), (3 / 4, 4 / 3)) for row in draws(22, 4000)])
    image = torch.empty(3, 533, 400)
    torch.manual_seed(0)
    theirs = np.array(
        [
            v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(224, (0.8, 1.0)), [image])[key]
            for _ in range(4000)
            for key in ("top", "left", "height", "width")
        ]
    ).reshape(-1, 4)
    for column, scale in zip(range(4), (533, 400, 533, 400), strict=True):
        for quantile in (0.1, 0.5, 0.9):
            one, other = (np.quantile(boxes[:, column], quantile) for boxes in (ours, theirs))
            assert abs(one - other) < 0.015 * scale


def sample(augmentation: Augmentation, file: Path, numbers: Sequence[float]) -> Tensor:
    pixels, annotation = augmentation(LazyImage(file), LABEL, SPEC, numbers)
    assert annotation is LABEL
    return pixels


@pytest.mark.parametrize("name", ["none", "light", "standard", "strong", "albumentations"])
def test_the_same_numbers_give_the_same_image_and_others_another(name: str, file: Path) -> None:
    if name == "albumentations":
        pytest.importorskip("albumentations")
    augmentation = create_augmentation(name)
    first, second = draws(augmentation.draws, 2)
    image = sample(augmentation, file, first)
    assert image.shape == (3, *SIZE)
    assert image.dtype == torch.uint8
    torch.rand(3)
    assert torch.equal(image, sample(augmentation, file, first))
    assert torch.equal(image, sample(augmentation, file, second)) == (name == "none")


def test_random_states_are_left_alone(file: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    augmentation = create_augmentation("strong")
    sample(augmentation, file, draws(augmentation.draws, 1)[0])
    assert torch.equal(torch.rand(1), expected)


def test_amounts_of_the_standard_preset_are_reached_and_not_exceeded(file: Path) -> None:
    """Erasing has the probability 0.2 and flips 0.5: frequencies over many draws."""
    erased = RandomTransform(scale=(1, 1), flip=0.0, erase=0.2)
    plain = RandomTransform(scale=(1, 1), flip=0.0)
    rows = draws(erased.draws, 300)
    changed = [not torch.equal(sample(erased, file, row), sample(plain, file, row)) for row in rows[:150]]
    assert 0.1 < np.mean(changed) < 0.32
    flipped = RandomTransform(scale=(1, 1), ratio=(0.75, 0.7500001), flip=0.5)
    base = sample(RandomTransform(scale=(1, 1), ratio=(0.75, 0.7500001), flip=0.0), file, rows[0])
    results = [sample(flipped, file, row) for row in rows[:60]]
    mirrored = [torch.equal(result, base.flip(2)) for result in results]
    assert all(torch.equal(result, base) or mirror for result, mirror in zip(results, mirrored, strict=True))
    assert 0.25 < np.mean(mirrored) < 0.75


def test_an_oblong_target_and_gray_work(file: Path) -> None:
    augmentation = create_augmentation("standard")
    target = InputSpec((48, 96), 1, torch.tensor([100.0]), 1.0, "bilinear")
    pixels, _ = augmentation(LazyImage(file), LABEL, target, draws(augmentation.draws, 1)[0])
    assert pixels.shape == (1, 48, 96)


def test_upside_down_turn_and_shift_do_what_they_say() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).view(4, 4, 1)
    box, fill = Box(0, 0, 4, 4), torch.tensor([99.0])
    plane = pixels.permute(2, 0, 1).float()
    assert torch.allclose(warp(pixels, Geometry(box), (4, 4), fill), plane)
    assert torch.allclose(warp(pixels, Geometry(box, upside_down=True), (4, 4), fill), plane.flip(1))
    assert torch.allclose(warp(pixels, Geometry(box, angle=90), (4, 4), fill), plane.rot90(1, (1, 2)), atol=1e-3)
    shifted = warp(pixels, Geometry(box, shift=(1, 0)), (4, 4), fill)
    fill_shifted(shifted, (1, 0), fill)
    assert torch.allclose(shifted, torch.cat([torch.full((1, 1, 4), 99.0), plane[:, :3]], dim=1))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("standart", {}, "standard"),
        ("standard", {"degree": 5}, "degrees"),
        ("standard", {"degrees": 200}, "degrees is 200"),
        ("light", {"scale": [0.9, 0.5]}, "scale"),
        ("standard", {"degrees": "abc"}, "degrees is 'abc', expected a number"),
        ("standard", {"scale": 0.5}, "do not fit"),
        ("strong", {"policy": "autoaugment"}, "policy"),
    ],
)
def test_a_wrong_name_or_amount_is_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_augmentation(name, args)


def test_albumentations_refuses_what_it_would_drop() -> None:
    pytest.importorskip("albumentations")
    with pytest.raises(InputError, match="p_flip"):
        create_augmentation("albumentations", {"transforms": [{"name": "HorizontalFlip", "p_flip": 0.5}]})
    with pytest.raises(InputError, match="one_of has no 'q', only p"):
        create_augmentation("albumentations", {"transforms": [{"one_of": [{"name": "HorizontalFlip"}], "q": 1}]})
    with pytest.raises(InputError, match="HorizontalFlip"):
        create_augmentation("albumentations", {"transforms": [{"name": "HorizontalFlop"}]})
