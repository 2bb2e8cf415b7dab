"""Images with masks: what a mask's values mean, what does not fit, and whether augmentation keeps both in step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.data import MaskFolder, Shapes
from cnnlab.errors import InputError

SIDE = 48
LEVELS = np.array([0, 80, 160, 240], dtype=np.uint8)
"""What an image's pixels are, by their class."""


def stripes(offset: int, side: int = SIDE) -> np.ndarray:
    """Classes (side, side) in bars of 12 pixels along and across."""
    rows, columns = np.mgrid[:side, :side]
    classes: np.ndarray = ((rows + offset) // 12 + (columns + offset) // 12 * 2) % 4
    return classes


def write(root: Path, name: str, classes: np.ndarray, split: str = "train") -> tuple[Path, Path]:
    """An image that shows the classes as gray levels, and its mask."""
    image, mask = root / "images" / split / f"{name}.png", root / "masks" / split / f"{name}.png"
    for path, pixels in ((image, LEVELS[classes]), (mask, classes.astype(np.uint8))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return image, mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in {"train": 6, "val": 3, "test": 3}.items():
        for i in range(count):
            write(tmp_path, f"{i}", stripes(i * 5), split)
    return tmp_path


def made(root: Path, **kwargs: Any) -> MaskFolder:
    data = MaskFolder(root=str(root), **{"num_workers": 0, "batch_size": 3, **kwargs})
    data.setup("fit")
    return data


def batch(data: MaskFolder) -> tuple[torch.Tensor, torch.Tensor]:
    batch: Batch = next(iter(data.train_dataloader()))
    return batch.images, batch.targets


def test_images_and_masks_come_as_they_are(root: Path) -> None:
    data = made(root)
    found = next(iter(data.val_dataloader()))
    images, masks = found.images, found.targets
    assert [Path(path).name for path in found.paths] == ["0.png", "1.png", "2.png"]
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, SIDE, SIDE)
    assert masks.dtype == torch.int64
    assert masks.numpy().tolist() == [stripes(i * 5).tolist() for i in range(3)]
    assert data.class_names == ["0", "1", "2", "3"]


def in_step(images: torch.Tensor, masks: torch.Tensor) -> float:
    """The share of pixels whose image shows another class than the mask says, away from all borders."""
    levels = images[:, 0].float()
    spread = F.max_pool2d(levels[:, None], 5, 1, 2) + F.max_pool2d(-levels[:, None], 5, 1, 2)
    calm = (spread[:, 0] < 8) & (masks != 255)
    assert calm.float().mean() > 0.1
    shown = (levels / 80).round().long()
    return float((shown[calm] != masks[calm]).float().mean())


STILL = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "none"},
        {"augment": "light"},
        {"augment": "standard", "augment_args": {**STILL, "degrees": 40, "scale": [0.5, 1.0]}},
        {"augment": "strong", "augment_args": {**STILL, "vertical_flip": 0.5}},
        {"augment": "standard", "augment_args": STILL, "size": [64, 40]},
        {"augment": "standard", "augment_args": {**STILL, "ratio": [1, 1]}, "crop": 36},
        {"augment": "light", "crop": 36, "rare_crops": 1.0},
        {
            "augment": "albumentations",
            "augment_args": {
                "transforms": [
                    {"name": "HorizontalFlip"},
                    {"name": "Affine", "rotate": [-30, 30], "p": 1.0, "fill": 127},
                    {"name": "CoarseDropout", "p": 1.0, "fill": 127},
                ]
            },
        },
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_masks_go_in_step_with_their_images(root: Path, options: dict[str, Any]) -> None:
    if options["augment"] == "albumentations":
        pytest.importorskip("albumentations")
    images, masks = batch(made(root, batch_size=6, **options))
    assert images.shape[2:] == masks.shape[1:]
    assert set(masks.flatten().tolist()) <= {0, 1, 2, 3, 255}
    assert in_step(images, masks) == 0


def test_what_comes_in_from_outside_is_ignored_and_never_a_class(root: Path) -> None:
    data = made(root, batch_size=6, augment_args={**STILL, "degrees": 45, "erase": 1.0})
    images, masks = batch(data)
    fill = data.input_spec().fill.round().to(torch.uint8).view(1, 3, 1, 1)
    outside = (images == fill).all(dim=1)
    assert outside.float().mean() > 0.05
    assert (masks[outside] == 255).float().mean() > 0.98
    assert (masks == 255).float().mean() > 0.05


@pytest.mark.parametrize("options", [{}, {"crop": 64}, {"size": 32}])
def test_albumentations_own_steps_leave_masks_whole(root: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("albumentations")
    data = made(root, augment="albumentations", batch_size=6, **options)
    masks = torch.cat([batch.targets for _ in range(3) for batch in data.train_dataloader()])
    assert set(masks.flatten().tolist()) <= {0, 1, 2, 3, 255}
    again = made(root, augment="albumentations", batch_size=6, **options)
    assert all(one.equal(other) for one, other in zip(batch(data), batch(again), strict=True))
    if "crop" in options:
        # The images are smaller than the crop: what is around them counts for nothing.
        assert (masks == 255).float().mean() > 0.3


def test_albumentations_given_steps_keep_the_pixels_size(root: Path) -> None:
    pytest.importorskip("albumentations")
    flip = {"transforms": [{"name": "HorizontalFlip"}]}
    images, masks = batch(made(root, augment="albumentations", augment_args=flip, crop=24, batch_size=6))
    assert masks.shape == (6, 24, 24)
    for image, mask in zip(images, masks, strict=True):
        assert image[0].equal(torch.from_numpy(LEVELS)[mask])
        assert 1 <= (mask[0].diff() != 0).sum() <= 2


def test_workers_change_nothing(root: Path) -> None:
    batches = [list(made(root, num_workers=workers, rare_crops=0.5).train_dataloader()) for workers in (0, 2)]
    for one, other in zip(*batches, strict=True):
        assert one.images.equal(other.images)
        assert one.targets.equal(other.targets)


def test_crops_keep_the_pixels_size(root: Path) -> None:
    images, masks = batch(made(root, crop=24, augment="light", augment_args={"scale": [1, 1], "ratio": [1, 1]}))
    assert masks.shape == (3, 24, 24)
    for image, mask in zip(images, masks, strict=True):
        assert image[0].equal(torch.from_numpy(LEVELS)[mask])
        # A bar is 12 pixels wide: in 24 there are two borders along each row, or one where they fall together.
        assert 1 <= (mask[0].diff() != 0).sum() <= 2


def test_crops_prefer_rare_classes(tmp_path: Path) -> None:
    classes = np.zeros((96, 96), dtype=np.int64)
    classes[70:76, 10:16] = 1
    for split in ("train", "val"):
        for i in range(40):
            write(tmp_path, f"{i}", classes, split)
    shares = []
    for rare in (0.0, 1.0):
        _, masks = batch(made(tmp_path, crop=24, augment="light", rare_crops=rare, batch_size=40))
        shares.append((masks == 1).flatten(1).any(dim=1).float().mean().item())
    assert shares[0] < 0.3
    assert 0.4 < shares[1] < 0.85


@pytest.mark.parametrize("kind", ["palette", "gray", "16 bits", "colors", "binary", "binary 0/1"])
def test_masks_of_all_kinds(tmp_path: Path, kind: str) -> None:
    classes = stripes(0)
    options: dict[str, Any] = {}
    if kind.startswith("binary"):
        classes = classes % 2
    for split in ("train", "val"):
        _, path = write(tmp_path, "a", classes, split)
        mask = Image.fromarray(classes.astype(np.uint8))
        if kind == "palette":
            mask.putpalette([value for color in ((9, 9, 9), (9, 9, 9), (0, 0, 255), (3, 4, 5)) for value in color])
        elif kind == "16 bits":
            mask = Image.fromarray(classes.astype(np.uint16))
        elif kind == "colors":
            colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [1, 2, 3]], dtype=np.uint8)
            mask = Image.fromarray(colors[classes])
            options = {"mask_values": colors.tolist(), "ignore_index": None, "class_names": list("abcd")}
        elif kind == "binary":
            mask = Image.fromarray((classes * 255).astype(np.uint8))
            options = {"mask_values": [0, 255], "ignore_index": None}
        elif kind == "binary 0/1":
            mask = Image.fromarray(classes.astype(bool))
        mask.save(path)
    data = made(tmp_path, batch_size=1, **options)
    masks = next(iter(data.val_dataloader())).targets
    assert masks[0].numpy().tolist() == classes.tolist()
    assert data.num_classes == classes.max() + 1


def test_an_ignored_value_among_the_classes(root: Path) -> None:
    data = made(root, ignore_index=3)
    assert data.num_classes == 3
    assert data.ignore_index == 3
    color = MaskFolder(root=str(root), mask_values=[0, 1, 2], ignore_index=3, num_workers=0)
    assert color.ignore_index == 3


def test_a_void_of_0_is_no_class(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, "a", stripes(0), split)
    data = made(tmp_path, ignore_index=0, batch_size=1)
    assert (data.class_names, data.ignore_index) == (["1", "2", "3"], 255)
    expected = torch.tensor([255, 0, 1, 2])[stripes(0)]
    assert next(iter(data.val_dataloader())).targets[0].equal(expected)
    # What was found out is kept, and goes back in where the masks are not looked at.
    kept = {name: data.hparams[name] for name in MaskFolder.RESOLVED}
    assert kept == {"class_names": ["1", "2", "3"], "mask_values": [1, 2, 3], "size": None, "range": None}
    assert next(iter(made(tmp_path, ignore_index=0, batch_size=1, **kept).val_dataloader())).targets[0].equal(expected)
    # Names alone would leave open whether the void is one of them.
    with pytest.raises(InputError, match=r"such as --data.mask_values '\[1, 2, 3\]'"):
        made(tmp_path, ignore_index=0, class_names=list("abc"))
    between = made(tmp_path, ignore_index=2, mask_values=[0, 1, 3], batch_size=1)
    assert next(iter(between.val_dataloader())).targets[0].equal(torch.tensor([0, 1, 255, 2])[stripes(0)])


@pytest.mark.parametrize("stray", [7, 128])
def test_a_stray_value_makes_no_classes(root: Path, stray: int) -> None:
    classes = stripes(0).astype(np.uint8)
    classes[0, 0] = stray
    Image.fromarray(classes).save(root / "masks/train/2.png")
    message = rf"values 0, 1, 2, 3, {stray} \(such as {stray} in .*masks/train/2\.png\), .* without gaps"
    with pytest.raises(InputError, match=message):
        MaskFolder(root=str(root))
    # Where the classes have names, it is the file's mistake.
    with pytest.raises(InputError, match=rf"masks/train/2\.png: the mask has {stray}"):
        list(made(root, class_names=list("abcd"), augment="none").train_dataloader())


def test_masks_that_cannot_be_read_do_not_hide_the_classes(root: Path) -> None:
    (root / "masks/train/1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"masks/train/1\.png: the file is empty"):
        MaskFolder(root=str(root))
    with pytest.warns(UserWarning, match=r"1 of 12 images cannot be read"):
        data = made(root, on_error="skip")
    assert data.class_names == ["0", "1", "2", "3"]
    assert len(data.train_set) == 5


def test_predicting_elsewhere_needs_no_training_images(root: Path, tmp_path: Path) -> None:
    data = MaskFolder(root=str(tmp_path / "gone"), class_names=list("abcd"), predict=str(root / "images/val"))
    data.setup("predict")
    assert len(data.predict_set) == 3
    with pytest.raises(InputError, match="there is no folder"):
        data.setup("test")


@pytest.mark.parametrize("augment", ["none", "light"])
def test_every_part_of_an_image_is_met(tmp_path: Path, augment: str) -> None:
    # Lower than the crop: no attempt at a part of its proportions can fit.
    classes = np.arange(200)[None].repeat(20, axis=0) // 50
    for split in ("train", "val"):
        for i in range(20):
            write(tmp_path, f"{i}", classes, split)
    args = {} if augment == "none" else {"augment_args": {"scale": [1, 1], "ratio": [1, 1]}}
    _, masks = batch(made(tmp_path, crop=40, augment=augment, batch_size=20, **args))
    assert set(masks.flatten().tolist()) == {0, 1, 2, 3}
    assert len({tuple(mask[0].tolist()) for mask in masks}) > 5


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", r"images/train/0\.png has 48 x 48 pixels .* its mask .*masks/train/0\.png 24 x 48: make them equal"),
        ("label", r"masks/train/0\.png: the mask has 7 \(4 pixels\), expected 0, 1, 2, 3, 255: correct it"),
        ("colors", r"masks/train/0\.png: the mask has colors: say in data.mask_values"),
        ("broken mask", r"masks/train/0\.png: the file is empty"),
        ("broken image", r"images/train/0\.png: cannot be read as an image"),
        ("transparent", r"masks/train/0\.png: the mask has transparent pixels"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(root: Path, kind: str, message: str) -> None:
    image, mask = root / "images/train/0.png", root / "masks/train/0.png"
    if kind == "size":
        Image.fromarray(np.zeros((24, 48), dtype=np.uint8)).save(mask)
    elif kind == "label":
        classes = stripes(0).astype(np.uint8)
        classes[:2, :2] = 7
        Image.fromarray(classes).save(mask)
    elif kind in ("colors", "transparent"):
        spoilt = Image.open(mask).convert("RGB" if kind == "colors" else "RGBA")
        spoilt.putpixel((0, 0), (0, 9, 0) if kind == "colors" else (0, 0, 0, 9))
        spoilt.save(mask)
    elif kind == "broken mask":
        mask.write_bytes(b"")
    else:
        image.write_bytes(image.read_bytes()[:60])
    names = list("abcd")
    with pytest.raises(InputError, match=message):
        list(made(root, class_names=names).train_dataloader())
    with pytest.warns(UserWarning, match=r"1 of 12 images cannot be read and are left out:\n.*0\.png"):
        data = made(root, class_names=names, on_error="skip", batch_size=2)
    assert len(data.train_set) == 5
    assert len(list(data.train_dataloader())) == 2
    assert [row["path"] for row in data.manifest() if row["error"]] == ["images/train/0.png"]


def test_an_image_without_a_mask_is_named(root: Path) -> None:
    (root / "masks/val/1.png").unlink()
    with pytest.raises(
        InputError, match=r"1 of 12 images have no mask: .*images/val/1\.png \(expected as .*masks/val/1\.png\)"
    ):
        MaskFolder(root=str(root))


def test_masks_may_be_called_by_their_images_names_and_more(root: Path) -> None:
    mask = root / "masks/val/1.png"
    mask.rename(mask.with_name("1_mask.png"))
    data = made(root)
    assert len(data.val_set) == 3
    (root / "masks/val/1.gif").write_bytes(b"")
    with pytest.raises(InputError, match="has several masks"):
        MaskFolder(root=str(root))


def test_folders_without_splits_are_divided(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path, f"{i:02}", stripes(i), ".")
    counts = {split: len(samples) for split, samples in made(tmp_path).listing.of.items()}
    assert all(abs(counts[split] - share) <= 1 for split, share in {"train": 14, "val": 3, "test": 3}.items())


def test_a_table_says_which_mask_is_whose(root: Path) -> None:
    lines = ["path,mask,split,group"]
    lines += [f"images/train/{i}.png,masks/train/{i}.png,{'val' if i < 2 else 'train'},g{i // 2}" for i in range(6)]
    table = root / "table.csv"
    table.write_text("\n".join(lines))
    data = made(root, csv=str(table))
    assert {split: len(samples) for split, samples in data.listing.of.items()} == {"train": 4, "val": 2, "test": 0}
    table.write_text("path,mask\nimages/train/0.png,")
    with pytest.raises(InputError, match=r"table\.csv, line 2: images/train/0\.png has no mask"):
        made(root, csv=str(table))
    table.write_text("path,label\nimages/train/0.png,3")
    with pytest.raises(InputError, match="has no column 'mask'"):
        made(root, csv=str(table))


def test_images_of_several_sizes(root: Path) -> None:
    write(root, "9", stripes(0, 30), "val")
    with pytest.raises(InputError, match=r"differ in size: say data\.size"):
        made(root)
    data = made(root, crop=32)
    assert [tuple(batch.targets.shape) for batch in data.val_dataloader()] == [(1, 48, 48)] * 3 + [(1, 30, 30)]
    data = made(root, size=[20, 30])
    assert [tuple(batch.targets.shape) for batch in data.val_dataloader()] == [(3, 20, 30), (1, 20, 30)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32, "crop": 32}, "exclude each other"),
        ({"size": 0}, "data.size is 0"),
        ({"rare_crops": 2}, "rare_crops is 2"),
        ({"rare_crops": 0.5, "augment": "none", "size": 32}, "data.augment none takes none of cnnlab's"),
        ({"rare_crops": 0.5, "augment": "albumentations"}, "data.augment albumentations takes none of cnnlab's"),
        ({"augment_args": {"policy": "randaugment"}}, "without their masks"),
        ({"mask_values": [0, [[1, 2, 3]]]}, "partly numbers and partly colors"),
        ({"mask_values": [[0, 0, 300]], "ignore_index": None}, "is no color"),
        ({"mask_values": [0, 1, 1]}, "twice"),
        ({"mask_values": [0, 1], "class_names": ["a"]}, "one for each class"),
        ({"interpolation": "cubic"}, "interpolation"),
    ],
)
def test_what_an_option_cannot_be_is_said(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskFolder(root=str(root), **options)


def test_large_images_that_are_trained_whole_are_told_of(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, "a", stripes(0, 1100), split)
    with pytest.warns(UserWarning, match="whole images of 1100 x 1100 pixels, .* say data.crop"):
        made(tmp_path)
    made(tmp_path, crop=64)


def test_binary_masks_of_0_and_255_are_explained(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, "a", np.zeros((8, 8), dtype=np.int64), split)
    with pytest.raises(InputError, match=r"--data.mask_values '\[0, 255\]' --data.ignore_index null"):
        MaskFolder(root=str(tmp_path))


def test_missing_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have the folders images and masks"):
        MaskFolder(root=str(tmp_path))


def test_shapes_are_the_same_each_time(tmp_path: Path) -> None:
    kinds = []
    for name in ("a", "b"):
        data = Shapes(root=str(tmp_path / name), images=8, side=32, num_workers=0, batch_size=4)
        data.setup("fit")
        kinds.append(next(iter(data.train_dataloader())))
    assert kinds[0].images.equal(kinds[1].images)
    assert set(kinds[0].targets.flatten().tolist()) > {0}
    assert data.class_names == ["background", "circle", "square", "triangle"]
    with pytest.raises(InputError, match="has 8 training images of 32 pixels, not the 9 of 32"):
        Shapes(root=str(tmp_path / "a"), images=9, side=32)
    with pytest.raises(InputError, match="not the 8 of 64"):
        Shapes(root=str(tmp_path / "a"), images=8, side=64)
    shares = data.class_shares()
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > 0.5
    assert data.describe_training().startswith(f"training pixels by class: background {shares[0]:.2%}, circle ")
    assert data.provided()["ignore_index"] == 255
