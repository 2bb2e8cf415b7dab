from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from cnnlab.errors import InputError
from cnnlab.imaging import EvalTransform, ImageError, LazyImage, cover_size, preprocess, resize


def scene(height: int = 60, width: int = 90) -> Image.Image:
    """Smooth colors that differ at each corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray((np.stack([y, x, 1 - y * x], axis=-1) * 255).astype(np.uint8))


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got.astype(float) - wanted.astype(float)).max())


def test_a_jpeg_has_the_pixels_that_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    scene().save(path)
    assert difference(LazyImage(path).read(), np.asarray(Image.open(path))) == 0


def test_exif_turns_the_image_and_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    scene().save(path, exif=exif, quality=100, subsampling=0)
    image = LazyImage(path)
    assert image.size == (90, 60)
    pixels = image.read()
    assert pixels.shape == (90, 60, 3)
    assert difference(pixels, np.rot90(np.asarray(scene()), -1)) < 12
    half = LazyImage(path).read(at_least=(45, 30))
    assert half.shape == (45, 30, 3)


@pytest.mark.parametrize(
    ("name", "made", "tolerance"),
    [
        ("cmyk.jpg", lambda: scene().convert("CMYK"), 12),
        ("palette.png", lambda: scene().quantize(256), 40),
        ("alpha.png", lambda: scene().convert("RGBA"), 0),
        ("animation.gif", None, 40),
    ],
)
def test_colors_of_all_kinds_become_rgb(
    tmp_path: Path, name: str, made: Callable[[], Image.Image] | None, tolerance: int
) -> None:
    path = tmp_path / name
    if made is None:
        scene().save(path, save_all=True, append_images=[Image.new("RGB", (90, 60))])
    else:
        made().save(path)
    pixels = LazyImage(path).read()
    assert pixels.shape == (60, 90, 3)
    assert pixels.dtype == np.uint8
    assert difference(pixels, np.asarray(scene())) <= tolerance


def test_transparency_becomes_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    half.putpixel((1, 0), (10, 20, 30, 0))
    half.save(tmp_path / "a.png")
    assert LazyImage(tmp_path / "a.png").read().tolist() == [[[10, 20, 30], [255, 255, 255]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert LazyImage(tmp_path / "p.png").read().tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert LazyImage(tmp_path / "deep.png").read(channels=1)[..., 0].tolist() == [[0, 1, 255]]
    assert LazyImage(tmp_path / "deep.png").read().shape == (1, 3, 3)


def test_floats_between_0_and_1_are_levels_and_others_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "unit.tif")
    assert LazyImage(tmp_path / "unit.tif").read(channels=1)[..., 0].tolist() == [[0, 128, 255]]
    Image.fromarray(np.array([[0.0, 500.0]], dtype=np.float32)).save(tmp_path / "kelvin.tif")
    with pytest.raises(ImageError, match=r"kelvin\.tif.*500"):
        LazyImage(tmp_path / "kelvin.tif").read()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A corrupt file raised without saying which (pytorch/vision#4925)."""
    scene().save(tmp_path / "whole.jpg", quality=95)
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for name, reason in [
        ("truncated", "truncated"),
        ("empty", "empty"),
        ("text", "known format"),
        ("absent", "no such"),
    ]:
        with pytest.raises(ImageError, match=rf"{name}\.jpg.*{reason}"):
            LazyImage(tmp_path / f"{name}.jpg").read()


def test_an_image_beyond_pillows_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene().save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"huge\.png: too large"):
        LazyImage(tmp_path / "huge.png").read()


def test_a_large_jpeg_is_decoded_smaller_but_never_too_small(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    scene(400, 533).save(path)
    assert LazyImage(path).read(at_least=(100, 100)).shape == (100, 134, 3)
    assert LazyImage(path).read(at_least=(101, 100)).shape == (200, 267, 3)
    assert LazyImage(path).read(at_least=(500, 500)).shape == (400, 533, 3)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (300, 200), (33, 33)])
@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear")])
def test_evaluation_is_that_of_timm(tmp_path: Path, shape: tuple[int, int], crop: float, interpolation: str) -> None:
    image = scene(*shape)
    transform = create_transform((3, 32, 32), crop_pct=crop, interpolation=interpolation, crop_mode="center")
    theirs = _pixels(transform, image)
    image.save(tmp_path / "image.png")
    ours = preprocess(LazyImage(tmp_path / "image.png"), EvalTransform(3, (32, 32), crop, interpolation))
    assert difference(ours, theirs) <= 1


def _pixels(transform: object, image: Image.Image) -> np.ndarray:
    for step in transform.transforms[:2]:  # type: ignore[attr-defined]
        image = step(image)
    return np.asarray(image)


def test_an_unknown_interpolation_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="bicubic"):
        resize(np.zeros((4, 4, 3), np.uint8), (2, 2), interpolation="bicubik")


def test_covering_keeps_proportions() -> None:
    assert cover_size((100, 50), (32, 32)) == (64, 32)
    assert cover_size((10, 10), (4, 8)) == (8, 8)
