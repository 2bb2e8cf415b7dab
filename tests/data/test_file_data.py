"""FileDataModule, by a data set of one's own: what a subclass gets for listing samples and reading annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.batch import Batch
from cnnlab.data import CenterCropDataModule, FileDataModule, ImageFolder, MaskFolder, VisionDataModule
from cnnlab.data.augmentation import InputSpec
from cnnlab.data.base import BatchDataset
from cnnlab.data.files import AugmentedFiles, FixedTargets
from cnnlab.data.samplers import TrainSampler
from cnnlab.data.samples import Sample
from cnnlab.errors import InputError
from cnnlab.imports import parameters_of


class Brightness(FileDataModule):
    """Images in one folder, named by their brightness."""

    kind: ClassVar[str | None] = "values"

    def __init__(self, root: str, side: int = 8, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.side = side

    def list_samples(self) -> list[Sample]:
        return [Sample(str(path), values=(float(path.stem),)) for path in sorted(self.root.glob("*.png"))]

    def read_annotations(self, samples: Sequence[Sample]) -> FixedTargets:
        return FixedTargets(torch.tensor([sample.values or (-1.0,) for sample in samples]))

    def input_spec(self) -> InputSpec:
        return InputSpec((self.side, self.side), self.channels, torch.zeros(self.channels), 1.0, "bilinear")

    def split_remedy(self, split: str) -> str:
        return "add images"

    def describe_targets(self) -> str:
        return "brightness"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for level in range(20):
        Image.fromarray(np.full((10, 12, 3), 10 * level, np.uint8)).save(tmp_path / f"{10 * level:03}.png")
    return tmp_path


def made(root: Path, **kwargs: Any) -> Brightness:
    return Brightness(str(root), **{"num_workers": 0, "batch_size": 4, "seed": 0, **kwargs})


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_yields_batches_with_paths_and_indices(root: Path, stage: str) -> None:
    data = made(root, augment="none")
    data.setup(stage)
    loaders = {
        "fit": data.train_dataloader,
        "validate": data.val_dataloader,
        "test": data.test_dataloader,
        "predict": data.predict_dataloader,
    }
    for batch in loaders[stage]():
        assert isinstance(batch, Batch)
        assert batch.targets.flatten().tolist() == [float(Path(path).stem) for path in batch.paths]
        assert batch.images[:, 0, 0, 0].tolist() == batch.targets.flatten().tolist()
        if stage == "fit":
            assert [data.train_set.paths[i] for i in batch.indices.tolist()] == list(batch.paths)


def test_splits_folds_and_manifest_come_from_the_base(root: Path) -> None:
    data = made(root)
    assert {split: len(samples) for split, samples in data.listing.of.items()} == {"train": 15, "val": 3, "test": 2}
    validated = [made(root, folds=3, fold=fold).listing.of["val"] for fold in range(3)]
    assert len({sample.path for part in validated for sample in part}) == sum(map(len, validated)) == 18
    rows = data.manifest()
    assert list(rows[0]) == ["path", "split", "group", "bytes", "sha256", "error"]
    assert len(rows) == 20
    assert isinstance(data, VisionDataModule)
    assert data.hparams["side"] == 8
    assert data.hparams["folds"] is None


def test_a_manifest_fixes_the_splits_and_new_images_have_none(root: Path) -> None:
    data = made(root)
    manifest = root / "manifest.csv"
    manifest.write_text("\n".join(["path,split", *(f"{row['path']},{row['split']}" for row in data.manifest())]))
    Image.new("RGB", (4, 4)).save(root / "255.png")
    again = made(root, splits=str(manifest), split_seed=9)
    with pytest.warns(UserWarning, match=r"1 images of .* are not the run's, and are left out: 255\.png"):
        again.setup("fit")
    found = again.manifest()
    rows = {row["path"]: row["split"] for row in found}
    assert rows.pop("255.png") == ""
    assert rows == {row["path"]: row["split"] for row in data.manifest()}
    assert again.hparams["splits"] is None


def test_broken_files_and_copies_are_found(root: Path) -> None:
    (root / "050.png").write_bytes(b"")
    Image.fromarray(np.full((10, 12, 3), 0, np.uint8)).save(root / "200.png")
    data = made(root, on_error="skip", split_seed=1)
    with pytest.warns(UserWarning, match=r"1 of 21 images cannot be read and are left out:\n  .*050\.png: the file is"):
        errors, copies = data.check()
    assert len(errors) == 1
    splits = {row["path"]: row["split"] for row in data.manifest()}
    assert copies == ([["000.png", "200.png"]] if splits["000.png"] != splits["200.png"] else [])


def test_images_elsewhere_are_predicted_without_the_data(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (9, 9)).save(other / "x.png")
    (other / "y.png").write_bytes(b"no image")
    data = made(tmp_path / "gone", predict=str(other), on_error="skip")
    with pytest.warns(UserWarning, match=r"left out: .*y\.png"):
        data.setup("predict")
    [batch] = data.predict_dataloader()
    assert batch.targets.tolist() == [[-1.0]]
    assert batch.paths == [str(other / "x.png")]


def test_evaluation_may_take_larger_batches(photos: Path) -> None:
    data = ImageFolder(str(photos), size=16, batch_size=2, eval_batch_size=5, num_workers=0)
    data.setup("fit")
    data.setup("test")
    assert len(next(iter(data.train_dataloader()))) == 2
    for loader, dataset in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        sizes = [len(batch) for batch in loader]
        assert sizes[0] == min(5, len(dataset))
        assert sum(sizes) == len(dataset)
    with pytest.raises(InputError, match="eval_batch_size is 0"):
        ImageFolder(str(photos), eval_batch_size=0)


def test_an_empty_split_says_the_remedy(root: Path) -> None:
    data = made(root, test_size=0)
    with pytest.raises(InputError, match="has no images for test: add images"):
        data.setup("test")


def test_a_sampler_and_several_views_of_ones_own(root: Path) -> None:
    """Episodes and contrastive views need no more than these two methods."""

    class TwoViews(AugmentedFiles):
        def create_sample(self, index: int, numbers: Sequence[float]) -> tuple[torch.Tensor, Any]:
            image, annotation = super().create_sample(index, numbers)
            return torch.cat([image, image.flip(2)]), annotation

    class Own(Brightness):
        def create_train_sampler(self) -> TrainSampler:
            return TrainSampler(2, 2, seed=0)

    data = Own(str(root), num_workers=0, seed=0)
    data.setup("fit")
    data.train_set = TwoViews(data.train_set.source, data.augmentation, data.input_spec(), data.seed)
    [batch] = data.train_dataloader()
    assert batch.images.shape == (2, 6, 8, 8)
    assert sorted(batch.indices.tolist()) == [0, 1]


@pytest.mark.parametrize(("kind", "batch_size"), [(ImageFolder, 32), (MaskFolder, 8), (CenterCropDataModule, 32)])
def test_a_class_has_its_bases_arguments(kind: type, batch_size: int) -> None:
    arguments = parameters_of(kind)
    assert {"root", "csv", "folds", "seed", "drop_last"} <= set(arguments)
    assert arguments["batch_size"].default == batch_size
    assert arguments["num_workers"].default is None
    assert ("cache" in arguments) == (kind is not MaskFolder)


def test_what_a_task_is_told_is_what_the_data_have(photos: Path) -> None:
    told = ImageFolder(str(photos), num_workers=0).provided()
    assert list(told) == ["channels", "mean", "std", "num_classes", "class_names", "multi_label"]
    assert (told["num_classes"], told["multi_label"]) == (3, False)


def test_a_plain_data_module_that_knows_its_classes_tells_them() -> None:
    class Own(VisionDataModule):
        channels, mean, std, class_names = 1, (0.5,), (0.5,), ("a", "b")

    data = Own()
    assert data.kind is None
    assert data.provided() == {
        "channels": 1,
        "mean": (0.5,),
        "std": (0.5,),
        "class_names": ("a", "b"),
        "num_classes": 2,
        "multi_label": False,
    }
    data.multi_label = True  # type: ignore[attr-defined]
    data.ignore_index = 7  # type: ignore[attr-defined]
    assert data.provided()["multi_label"]
    assert data.provided()["ignore_index"] == 7
    data.train_set = _Nothing()
    assert data.describe_training() == "training images: 3"


class _Nothing(BatchDataset):
    def __len__(self) -> int:
        return 3

    def __getitems__(self, draws: list[Any]) -> Batch:
        raise NotImplementedError
