"""What users' files did to a run without a word: what is right, shown by the command line on generated files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab import rle
from cnnlab.cli import main
from cnnlab.data import ImageFolder, MaskFolder
from cnnlab.image_files import EXTENSIONS
from cnnlab.imaging import LazyImage, Tones
from tests.conftest import Cnnlab

SIDE = 24
CLASSIFY = (
    *("--model", "Classification", "--model.network", "simple_cnn", "--trainer.max_epochs", "1"),
    *("--trainer.accelerator", "cpu", "--data", "ImageFolder", "--data.size", "16", "--data.num_workers", "0"),
    *("--data.batch_size", "4", "--data.augment", "none"),
)
SEGMENT = (
    *("--model", "Segmentation", "--model.network", "unet", "--model.network_args", '{"base": 2, "depth": 2}'),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--data", "MaskFolder", "--data.num_workers", "0", "--data.batch_size", "4", "--data.augment", "none"),
)


def noise(seed: int, low: int, high: int, kind: int = 0, shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> np.ndarray:
    """Noise low..high-1, with both ends, and half as bright in each ``kind + 2`` column."""
    values: np.ndarray = np.random.default_rng(seed).integers(low, high, shape)
    values[:, :: kind + 2] //= 2
    values[0, 0], values[0, 1] = low, high - 1
    return values


def save(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> None:
    """Write an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


_SEEDS = itertools.count(1000)
"""No two images are equal, since the check would tell of copies."""


def write_classes(root: Path, count: int = 8, names: tuple[str, ...] = ("a", "b"), ending: str = ".png") -> None:
    """Write RGB images in folders of classes."""
    for kind, name in enumerate(names):
        for i in range(count):
            save(root / name / f"{i}{ending}", noise(next(_SEEDS), 0, 256, kind).astype(np.uint8))


def square(value: int = 1, dtype: Any = np.uint8) -> np.ndarray:
    """A mask with a quarter of a value, else 0."""
    mask = np.zeros((SIDE, SIDE), dtype=dtype)
    mask[:12, :12] = value
    return mask


def write_pairs(root: Path, masks: list[np.ndarray | Image.Image], ending: str = ".png", **options: Any) -> None:
    """Write images with these masks."""
    for i, mask in enumerate(masks):
        save(root / f"images/{i:02}.png", noise(i, 0, 256).astype(np.uint8))
        save(root / f"masks/{i:02}{ending}", mask, **options)


def write_png16(path: Path, values: np.ndarray) -> None:
    """Write RGB of 16 bits (H, W, 3), which Pillow cannot."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def checked(cnnlab: Cnnlab, *flags: str | Path, code: int = 0) -> str:
    """What ``cnnlab data check`` prints, without the warnings of Python."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = cnnlab("data", "check", *flags)
    text = done.out + done.err + "\n".join(str(one.message) for one in said)
    assert done.code == code, text
    assert "Traceback" not in text
    return text


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as any reader of CSV files finds them."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on gray images of 12 bits, with an exported file."""
    folder = tmp_path_factory.mktemp("deep")
    for kind, name in enumerate("ab"):
        for i in range(8):
            values = noise(i, 0, 4096, kind, (SIDE, SIDE)).astype(np.uint16)
            save(folder / f"data/{name}/{i}.png", values)
    run = folder / "R"
    flags = [*CLASSIFY, "--data.root", str(folder / "data"), "--data.channels", "1", "--run", str(run)]
    assert main(["fit", *flags]) == 0
    assert main(["export", str(run)]) == 0
    return run


def test_files_of_all_endings_are_read_or_named(cnnlab: Cnnlab, deep_run: Path, tmp_path: Path) -> None:
    """One row came back for five files, with exit status 0 (clip-interrogator-ext issue 50)."""
    place = tmp_path / "mixed"
    for name, options in {
        "a.avif": {},
        "b.jp2": {},
        "c": {"format": "png"},
        "d.png": {},
        "e.001": {"format": "png"},
    }.items():
        save(place / name, noise(0, 0, 256).astype(np.uint8), **options)
    (place / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (place / "notes.txt").write_text("x")
    os.mkfifo(place / "pipe.png")
    named = (
        r"3 files are no images .*1 not a regular file \(pipe\.png\), 1 with \.heic \(x\.heic\), 1 with \.txt"
        r".*HEIC needs pip install pillow-heif"
    )
    done = cnnlab("predict", deep_run, "--data.predict", place)
    assert (done.code, bool(re.search(named, done.err))) == (0, True)
    rows = rows_of(deep_run / "results/mixed/predictions.csv")
    assert [Path(row["path"]).name for row in rows] == ["a.avif", "b.jp2", "c", "d.png", "e.001"]
    done = cnnlab("infer", deep_run / "model.onnx", place, "--out", "out.csv")
    assert (done.code, bool(re.search(named, done.err))) == (0, True)
    assert len(rows_of(Path("out.csv"))) == 5
    done = cnnlab("explain", deep_run, place, "--out", "explained")
    assert (done.code, bool(re.search(named, done.err))) == (0, True)
    # A PostScript file would start another program, which Pillow finds by content.
    (place / "d.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    done = cnnlab("predict", deep_run, "--data.predict", place / "d.png")
    assert (done.code, "d.png: is no image of a known format" in done.err) == (2, True)


def test_heic_files_are_read_where_pillow_heif_is_installed(
    cnnlab: Cnnlab, deep_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs of a phone were left out, also where the package that opens them was installed."""
    save(tmp_path / "phone/a.heic", noise(0, 0, 256).astype(np.uint8), format="png")
    (tmp_path / "phone/a.heic").rename(tmp_path / "phone/b.png")
    plain = (tmp_path / "phone/b.png").read_bytes()
    (tmp_path / "phone/a.heic").write_bytes(b"\0\0\0\x18ftypheic" + plain)

    class Package(types.ModuleType):
        @staticmethod
        def register_heif_opener() -> None:
            def opened(file: Any, name: str) -> Image.Image:
                return Image.open(io.BytesIO(file.read()[12:]))

            Image.register_open("HEIF", opened, lambda start: start[4:12] == b"ftypheic")  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "pillow_heif", Package("pillow_heif"))
    monkeypatch.setattr("cnnlab.image_files._HAS_HEIF", True)
    monkeypatch.setattr("cnnlab.image_files.EXTENSIONS", EXTENSIONS | {".heic", ".heif"})
    done = cnnlab("predict", deep_run, "--data.predict", tmp_path / "phone")
    assert done.code == 0, done.err
    first, second = rows_of(deep_run / "results/phone/predictions.csv")
    assert [Path(row.pop("path")).name for row in (first, second)] == ["a.heic", "b.png"]
    assert first | {"index": ""} == second | {"index": ""}


def test_splits_in_any_case_and_what_is_beside_them(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Val and Test beside train were ignored, and test beside classes became one (fastai issue 1552)."""
    for name, count in (("train", 3), ("Val", 2), ("Testing", 1), ("old", 1)):
        write_classes(tmp_path / "cased" / name, count)
    for name in ("loose.png", "Val/loose.png"):
        save(tmp_path / "cased" / name, noise(next(_SEEDS), 0, 256).astype(np.uint8))
    text = checked(cnnlab, *CLASSIFY, "--data.root", "cased")
    assert "{'train': 6, 'val': 4, 'test': 2}" in text
    assert "what is beside them is left out: old, 1 images (loose.png)" in text
    assert "1 images in cased/Val are in no class's folder, and left out: loose.png" in text
    write_classes(tmp_path / "unclear", 4, ("a", "b", "test"))
    text = checked(cnnlab, *CLASSIFY, "--data.root", "unclear", code=2)
    assert "unclear/test stands beside the folders a, b: if it is a split, move them into unclear/train" in text
    names = re.search(r"'(\[.*\])'", text)
    assert names is not None
    text = checked(cnnlab, *CLASSIFY, "--data.root", "unclear", "--data.class_names", names[1])
    assert "a 3, b 3, test 3" in text or "test" in text


def test_one_class_is_an_error(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """An archive's folder in a folder of its name trained to 100 % accuracy."""
    write_classes(tmp_path / "photos/photos", 3)
    done = cnnlab("fit", *CLASSIFY, "--data.root", "photos", "--run", "R")
    assert done.code == 2
    assert done.err.rstrip().endswith(
        "one class, 'photos': nothing can be learned from one; did you mean --data.root photos/photos?"
    )
    assert not Path("R").exists()
    write_classes(tmp_path / "split/train/images", 3)
    done = cnnlab("fit", *CLASSIFY, "--data.root", "split", "--data.val_size", "0.4")
    assert (done.code, "are the classes the folders of split/train/images? Move them up" in done.err) == (2, True)


def test_the_range_is_found_and_travels(cnnlab: Cnnlab, deep_run: Path, tmp_path: Path) -> None:
    """Images of 12 bits in files of 16 had 17 gray levels (pytorch/vision issue 2218)."""
    kept = torch.load(deep_run / "checkpoints/best.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept["range"] == [0.0, 4095.0]
    data = str(deep_run.parent / "data")
    assert cnnlab("infer", deep_run / "model.onnx", f"{data}/a", "--out", "out.csv").code == 0
    assert cnnlab("predict", deep_run, "--data.predict", f"{data}/a").code == 0
    both = [rows_of(path) for path in (Path("out.csv"), deep_run / "results/a/predictions.csv")]
    assert [float(row["a"]) for row in both[0]] == pytest.approx([float(row["a"]) for row in both[1]], abs=1e-5)
    assert len({row["a"] for row in both[0]}) == 8
    text = checked(cnnlab, *CLASSIFY, "--data.root", data)
    levels = re.search(r"values 0 to 4095; 0 becomes black and 4095 white .* an image has (\d+) of 256 levels", text)
    assert levels is not None, text
    assert int(levels[1]) > 150
    text = checked(cnnlab, *CLASSIFY, "--data.root", data, "--data.range", "[0, 65535]")
    assert re.search(r"warning: only 1\d levels are left of the \d+ of an image: .* --data.range '\[0, 4095\]'", text)
    assert "expected two numbers" in checked(cnnlab, *CLASSIFY, "--data.root", data, "--data.range", "[5, 5]", code=2)


def test_deep_colors_and_floats_have_a_range_too(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Color of 16 bits lost its low byte, and floats beyond 1 were refused (Pillow issue 5248)."""
    for kind, name in enumerate("ab"):
        for i in range(4):
            write_png16(tmp_path / f"color/{name}/{i}.png", noise(i, 0, 300, kind))
            save(tmp_path / f"floats/{name}/{i}.tif", noise(i, 0, 4001, kind, (SIDE, SIDE)).astype(np.float32))
    assert re.search(r"299 white .* has 2\d\d of 256 levels", checked(cnnlab, *CLASSIFY, "--data.root", "color"))
    assert "0 becomes black and 4000 white" in checked(cnnlab, *CLASSIFY, "--data.root", "floats")
    pixels = LazyImage(tmp_path / "color/a/0.png", Tones((0.0, 299.0))).read()
    assert np.abs(pixels - noise(0, 0, 300) * (255 / 299)).max() <= 0.5


def test_deep_images_for_a_run_of_shallow_ones_are_said(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Values up to 4,095 were read as 16 gray levels, and nothing was said."""
    for kind, name in enumerate("ab"):
        for i in range(4):
            for number, split in enumerate(("train", "val", "test")):
                pixels = noise(10 * number + i, 0, 256, kind, (SIDE, SIDE))
                save(tmp_path / f"p/{split}/{name}/{i}.png", pixels.astype(np.uint8))
            save(tmp_path / f"deep/{name}/{i}.png", noise(50 + i, 0, 4096, kind, (SIDE, SIDE)).astype(np.uint16))
    done = cnnlab("fit", *CLASSIFY, "--data.root", "p", "--run", "R", "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    for command in (("test", "R", "--data.root", "deep"), ("predict", "R", "--data.predict", "deep/a")):
        with pytest.warns(UserWarning, match="images have more than 8 bits, and those of the training had not"):
            assert cnnlab(*command).code == 0


@pytest.mark.parametrize(
    ("value", "flags", "code", "said"),
    [
        ([1, 255], [], 2, r"6 of 12 masks have nothing but 0 and the ignored 255, .*'\[0, \[1, 255\]\]' --data.ignore"),
        (
            [1, 255],
            ["--data.mask_values", "[0, [1, 255]]", "--data.ignore_index", "null"],
            0,
            r"0 75.00%, 1 25.00%; ig",
        ),
        ([1, 255], ["--data.mask_values", "[0, 1]"], 0, r"0 \d\d.\d\d%, 1 1\d.\d\d%; ignored: (9|1\d).\d\d% of all"),
        ([255, 255], ["--data.class_names", "[x, y]"], 2, r"--data.mask_values '\[0, 255\]' --data.ignore_index null"),
        ([1, 2], ["--data.mask_values", "[0, [1, 2]]"], 0, r"0 75.00%, 1 25.00%; ignored: 0.00%"),
        ([1, 2], ["--data.mask_values", "[[0, 1, 2], 5]"], 0, r"0 100.00%, 5 0.00%.*[\s\S]*no training pixels: 5"),
        ([9, 8], ["--data.mask_values", "[0]", "--data.ignore_index", "[8, 9]"], 0, r"0 100.00%; ignored: 25.00% of"),
        ([1, 1], ["--data.mask_values", "[0, []]"], 2, r"\[\], so .*such as '\[0, \[1, 2\]\]'"),
        ([1, 1], ["--data.mask_values", "[0, [1, -1, 0.5]]"], 2, r"data.mask_values"),
    ],
)
def test_values_of_masks_are_judged_together(
    cnnlab: Cnnlab, tmp_path: Path, value: list[int], flags: list[str], code: int, said: str
) -> None:
    """Half of the foreground was ignored where masks of 0, 1 and of 0, 255 were mixed (PaddleSeg issue 1110).

    A list of two values for a class ended in 55 lines of traceback.
    """
    write_pairs(tmp_path, [square(value[i % 2]) for i in range(12)])
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", *flags, code=code)
    assert re.search(said, text)
    assert code == 0 or text.rpartition("cnnlab: ")[2].count("\n") == 1


def test_palettes_that_differ(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Numbers of palettes in another order made a class of 54 % from one of 7 % (DIGITS issue 1676)."""
    masks: list[np.ndarray | Image.Image] = []
    for i in range(12):
        mask = Image.fromarray(square() if i % 2 else 1 - square())
        mask.putpalette([0, 0, 0, 255, 0, 0] if i % 2 else [255, 0, 0, 0, 0, 0])
        masks.append(mask)
    write_pairs(tmp_path, masks)
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", code=2)
    assert "different palettes: 0 is [255, 0, 0]" in text
    colors = re.search(r"say --data.mask_values '(.*?)'", text)
    assert colors is not None
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", "--data.mask_values", colors[1])
    assert "#000000 75.00%, #ff0000 25.00%" in text


def test_masks_are_turned_like_their_images(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """An image was turned by its EXIF orientation, its mask with the same orientation was not (labelme issue 773)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.zeros((16, 32), dtype=np.uint8)
    mask[:4] = 1
    for i in range(8):
        pixels = mask[..., None] * [200 + i, 200 + 3 * i, 200]
        save(tmp_path / f"images/{i}.jpg", pixels.astype(np.uint8), exif=exif, quality=95)
        save(tmp_path / f"masks/{i}.png", mask, exif=exif)
    text = checked(cnnlab, *SEGMENT, "--data.root", ".")
    assert "8 images can be read" in text
    from cnnlab.data import MaskFolder

    data = MaskFolder(root=str(tmp_path), augment="none", num_workers=0)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert tuple(batch.targets.shape[1:]) == (32, 16)
    assert torch.equal(batch.images[:, 0] > 100, batch.targets == 1)
    for i in range(8):
        save(tmp_path / f"masks/{i}.png", mask)
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", code=2)
    assert "the EXIF orientation is 6 of the image and 1 of the mask" in text


def test_a_fourth_band_may_be_dropped(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Near infrared beside red, green and blue was taken for transparency (pytorch/vision issue 5510)."""
    for kind, name in enumerate(("lake", "wood")):
        for i in range(4):
            pixels = noise(10 * kind + i, 0, 256, kind, (SIDE, SIDE, 4)).astype(np.uint8)
            save(tmp_path / f"{name}/{i}.tif", Image.fromarray(pixels, "RGBA"))
    text = checked(cnnlab, *CLASSIFY, "--data.root", ".")
    assert "8 images have transparent pixels, and are laid on white (--data.alpha drop" in text
    path = tmp_path / "lake/0.tif"
    expected = noise(0, 0, 256, 0, (SIDE, SIDE, 4)).astype(np.uint8)[..., :3]
    data = ImageFolder(str(tmp_path), size=SIDE, crop=1.0, alpha="drop", num_workers=0)
    assert np.array_equal(data.read_image(str(path)).permute(1, 2, 0).numpy(), expected)
    blended = ImageFolder(str(tmp_path), size=SIDE, crop=1.0, num_workers=0).read_image(str(path))
    assert not np.array_equal(blended.permute(1, 2, 0).numpy(), expected)
    assert json.loads(json.dumps(data.eval_transform()._asdict()))["alpha"] == "drop"


def test_names_of_all_kinds(cnnlab: Cnnlab, deep_run: Path, tmp_path: Path) -> None:
    """A file name that was not UTF-8 ended a prediction in a traceback, a line break spoilt the manifest."""
    for name in ('=a,"b', " c;d "):
        write_classes(tmp_path / "odd", 6, (name,), ",'\".png")
    assert cnnlab("predict", deep_run, "--data.predict", "odd").code == 0
    rows = rows_of(deep_run / "results/odd/predictions.csv")
    assert sorted(row["path"] for row in rows) == sorted(str(path) for path in Path("odd").rglob("*.png"))
    assert '=a,"b' in checked(cnnlab, *CLASSIFY, "--data.root", "odd")
    save(tmp_path / "bad/a/x\udcff.png", noise(0, 0, 256).astype(np.uint8))
    for command in (("predict", deep_run, "--data.predict", "bad/a"), ("fit", *CLASSIFY, "--data.root", "bad")):
        done = cnnlab(*command)
        assert (done.code, "x\\udcff.png: the name is not UTF-8" in done.err) == (2, True)
    write_classes(tmp_path / "lines", 2, ("a\nb", "c"))
    done = cnnlab("fit", *CLASSIFY, "--data.root", "lines")
    assert (done.code, r"'lines/a\nb': the name has a line break" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("kind", "flags", "code", "said"),
    [
        ("transparent", [], 2, "the mask has transparent pixels, which are of no class: save it without transparency"),
        ("opaque", [], 0, "0 75.00%, 1 25.00%"),
        ("float", [], 2, "the mask's pixels are floats: save it as a PNG of whole numbers"),
        ("gray", [], 0, "0 75.00%, 1 25.00%"),
        ("jpeg", [], 2, "changes values: say which there were, and the nearest one counts"),
        ("jpeg", ["--data.mask_values", "[0, 255]", "--data.ignore_index", "null"], 0, "0 75.00%, 255 25.00%"),
    ],
)
def test_masks_of_unusual_formats(
    cnnlab: Cnnlab, tmp_path: Path, kind: str, flags: list[str], code: int, said: str
) -> None:
    """The check advised to leave out masks that a change of their format would have saved."""
    one = square()
    alpha = np.full_like(one, 255 if kind == "opaque" else 200)
    masks: dict[str, tuple[np.ndarray, str]] = {
        "transparent": (np.dstack([one, one, one, alpha]), ".png"),
        "opaque": (np.dstack([one, one, one, alpha]), ".png"),
        "float": (square(1, np.float32), ".tif"),
        "gray": (np.dstack([one, one, one]), ".png"),
        "jpeg": (square(255), ".jpg"),
    }
    mask, ending = masks[kind]
    write_pairs(tmp_path, [mask] * 8, ending)
    assert said in checked(cnnlab, *SEGMENT, "--data.root", ".", *flags, code=code)


def test_what_has_no_partner_is_named(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A mask without an image was ignored, and so was a table's row without a file."""
    write_pairs(tmp_path, [square()] * 12)
    Path("images/03.png").unlink()
    Path("masks/05.png").unlink()
    done = cnnlab("fit", *SEGMENT, "--data.root", ".", "--run", "R")
    assert done.code == 2
    assert "1 of 11 images have no mask: images/05.png (expected as masks/05.png)" in done.err
    assert "1 masks have no image: masks/03.png: add what is missing, or" in done.err
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", code=2)
    assert "10 images can be read" in text
    assert "broken: images/05.png: has no mask" in text
    rows = [f"images/{i:02}.png,masks/{i:02}.png" for i in range(3, 11)]
    Path("table.csv").write_text("\n".join(["path,mask", *rows]))
    done = cnnlab("fit", *SEGMENT, "--data.root", ".", "--data.csv", "table.csv", "--data.class_names", "[x, y]")
    assert (done.code, "table.csv: 2 files do not exist: images/03.png, masks/05.png" in done.err) == (2, True)
    Path("notes.txt").write_text("x")
    Path("table.csv").write_text("path,label\nimages/00.png,c\nimages/01.png,d\nimages/02.png,d\nnotes.txt,c\n")
    done = cnnlab("fit", *CLASSIFY, "--data.root", ".", "--data.csv", "table.csv", "--data.test_size", "0")
    assert (done.code, "1 file is no image that can be opened here" in done.err) == (2, True), done.err
    Path("table.csv").write_text("\n".join(["path,mask", *rows]))
    text = checked(cnnlab, *SEGMENT, "--data.root", ".", "--data.csv", "table.csv", code=2)
    assert "images have no row in table.csv: images/00.png" in text


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ("{split}/{i}.png", "{split}/{i}_mask.png", "masks are beside their images, as NAME_mask"),
        ("{split}/images/{i}.png", "{split}/labels/{i}.png", "each split has images and labels"),
        ("Images/{split}/{i}.png", "Masks/{split}/{i}.png", "6 images can be read"),
    ],
)
def test_layouts_of_images_and_masks(cnnlab: Cnnlab, tmp_path: Path, image: str, mask: str, said: str) -> None:
    """Images and masks in one folder, or in the folders of the splits, had to be moved by hand."""
    for split, count in (("train", 4), ("Val", 2)):
        for i in range(count):
            save(tmp_path / "set" / image.format(split=split, i=i), noise(next(_SEEDS), 0, 256).astype(np.uint8))
            save(tmp_path / "set" / mask.format(split=split, i=i), square())
    text = checked(cnnlab, *SEGMENT, "--data.root", "set")
    assert said in text
    assert "{'train': 4, 'val': 2, 'test': 0}" in text


def test_the_home_folder_is_meant_by_a_tilde(cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves ~ as it is in --data.root=~/photos."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_classes(tmp_path / "home/photos", 4)
    Path("home/table.csv").write_text("path,label\n" + "\n".join(f"a/{i}.png,{'xy'[i % 2]}" for i in range(4)))
    assert "8 images can be read" in checked(cnnlab, *CLASSIFY, "--data.root=~/photos")
    text = checked(cnnlab, *CLASSIFY, "--data.root=~/photos", "--data.csv=~/table.csv", "--data.test_size", "0")
    assert "4 images can be read" in text


def test_folders_and_shapes_that_cannot_be_read(
    cnnlab: Cnnlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without permission lost 10 of 30 images; a picture of one column filled the memory."""
    write_classes(tmp_path / "set", 8)
    save(tmp_path / "set/a/long.png", np.zeros((4000, 8), dtype=np.uint8))
    text = checked(cnnlab, *CLASSIFY, "--data.root", "set", code=2)
    assert "long.png: has 4,000 x 8 pixels (height x width), more than 100 times as long as wide" in text
    scan = os.scandir

    def refuse(path: Any) -> Any:  # Root, who often runs tests, may read all folders.
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    Path("set/b/closed").mkdir()
    monkeypatch.setattr("cnnlab.image_files.os.scandir", refuse)
    done = cnnlab("fit", *CLASSIFY, "--data.root", "set")
    assert (done.code, "set/b/closed: the folder cannot be read (Permission denied)" in done.err) == (2, True)


def test_augmentation_none_and_classes_without_samples(
    cnnlab: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A recipe's augment_args made --data.augment none an error; a class without images was not mentioned."""
    write_classes(tmp_path / "set", 8, ("c", "d"))
    flags = (*CLASSIFY, "--data.root", "set", "--data.class_names", "[c, d, e]")
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="1 of 3 classes have no training images: e"):
        done = cnnlab("fit", *flags, "--data.augment_args", '{"flip": 0.2}', "--run", "R")
    assert done.code == 0
    assert "data.augment is none: data.augment_args (flip) change nothing" in caplog.text
    assert "3 classes, 'c', 'd', 'e'; images: " in caplog.text


def write_outlines(root: Path, **changes: Any) -> None:
    """COCO files of the splits: a box of 8 x 8 pixels, and on it a crowd of 4 x 4 as run lengths; of 32 x 32 pixels."""
    generator = np.random.default_rng(0)
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for i in range(count):
            save(root / split / f"{i}.png", generator.integers(0, 255, (32, 32, 3), np.uint8))
        inside = np.zeros((32, 32), bool)
        inside[6:10, 5:9] = True
        small = {"size": [32, 32], "counts": rle.encode(inside).counts.tolist()}
        shapes = [(2, 1, small), (5, 0, [[4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0]])]
        content: dict[str, Any] = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(count)],
            "categories": [{"id": 5, "name": "cell"}, {"id": 2, "name": "dust"}],
            "annotations": [
                {
                    "id": 10 * i + n,
                    "image_id": i,
                    "category_id": own,
                    "iscrowd": crowd,
                    "segmentation": shape,
                    **changes,
                }
                for i in range(count)
                for n, (own, crowd, shape) in enumerate(shapes)
            ],
        }
        (root / f"{split}.json").write_text(json.dumps(content))


def test_masks_are_drawn_from_the_outlines_in_coco_files(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """A set in COCO's form had to be converted to masks by a script of one's own before it could be segmented."""
    write_outlines(tmp_path / "p")
    checked = cnnlab("data", "check", *SEGMENT, "--data.root", "p", "--data.size", "32")
    assert checked.code == 0, checked.err
    assert "3 classes, 'background', 'cell', 'dust'; COCO, p/train.json" in checked.out
    assert "background 93.75%, cell 4.69%, dust 1.56%; ignored: 0.00% of all" in checked.out
    done = cnnlab("fit", *SEGMENT, "--data.root", "p", "--data.size", "32", "--run", "R")
    assert done.code == 0, done.err
    for command in ("test", "predict"):
        assert cnnlab(command, "R").code == 0
    assert len(rows_of(Path("R/predictions.csv"))) == 2
    data = MaskFolder("p", size=32, num_workers=0, class_names=["ground", "dust"])
    with pytest.warns(UserWarning, match="leaves out are background: cell"):
        data.setup("test")
    drawn = data.test_set.__getitems__([0])
    expected = torch.zeros(32, 32, dtype=torch.int64)
    expected[6:10, 5:9] = 1
    assert torch.equal(drawn.targets[0], expected)


def test_outlines_that_cannot_be_drawn_are_named(cnnlab: Cnnlab, tmp_path: Path) -> None:
    """Boxes have no outlines; the first of the names is the background's."""
    write_outlines(tmp_path / "p")
    refused = cnnlab("data", "check", *SEGMENT, "--data.root", "p", "--data.class_names", "[cell, dust]")
    assert refused.code == 2
    assert "data.class_names begins with the category 'cell'" in refused.err.splitlines()[-1]
    assert "'[background, cell, dust]'" in refused.err
    write_outlines(tmp_path / "p", segmentation=[], bbox=[1, 1, 4, 4])
    refused = cnnlab("data", "check", *SEGMENT, "--data.root", "p")
    assert refused.code == 2
    assert re.search(r"16 of 16 objects have a box and no outline.*add their segmentation", refused.err)
    assert len(refused.err.splitlines()) <= 3
