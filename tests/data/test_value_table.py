"""ValueTable: values from a table, what is wrong with them, and how they are divided."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.data import ValueTable
from cnnlab.data.splits import folds
from cnnlab.errors import InputError

COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("values")
    for i in range(COUNT):
        Image.fromarray(np.full((12, 10, 3), 4 * i, np.uint8)).save(root / f"{i:02}.png")
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Defect from 0 to 1, whole grades from 1 to 4, modules of three neighbors as groups."""
    path = tmp_path / "scores.csv"
    rows = [f"{i:02}.png,{(i * 7 % COUNT) / (COUNT - 1)},{1 + i % 4},m{i // 3}" for i in range(COUNT)]
    path.write_text("\n".join(["path,defect,grade,group", *rows]))
    return path


def made(images: Path, table: Path, values: Any = "defect", **kwargs: Any) -> ValueTable:
    return ValueTable(str(images), str(table), values, **{"size": 8, "num_workers": 0, "seed": 0, **kwargs})


@pytest.mark.parametrize("values", ["defect,grade", "defect, grade", ["defect", "grade"]])
def test_targets_are_the_tables_numbers(images: Path, table: Path, values: Any) -> None:
    data = made(images, table, values)
    data.setup("fit")
    given = {row.split(",")[0]: row.split(",")[1:3] for row in table.read_text().splitlines()[1:]}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            expected = [[float(text) for text in given[Path(path).name]] for path in batch.paths]
            assert batch.targets.dtype == torch.float32
            assert batch.targets.equal(torch.tensor(expected))
    assert data.value_names == data.hparams["values"] == ["defect", "grade"]


def test_mean_std_and_levels_are_told_and_kept(images: Path, table: Path) -> None:
    data = made(images, table, "defect,grade")
    training = np.array([sample.values for sample in data.listing.of["train"]])
    assert data.value_mean == pytest.approx(training.mean(axis=0).tolist())
    assert data.value_std == pytest.approx(training.std(axis=0).tolist())
    assert data.value_levels == [None, [1, 2, 3, 4]]
    told = data.provided()
    assert list(told) == ["channels", "mean", "std", "value_names", "value_mean", "value_std", "value_levels"]
    assert data.kind == "values"
    kept = {name: data.hparams[name] for name in ValueTable.RESOLVED}
    assert all(kept[name] == told[name] for name in ("value_mean", "value_std", "value_levels"))
    # Other images, or none: the run's figures count.
    table.write_text("path,defect,grade\n00.png,5,9\n01.png,5,9\n")
    again = made(images, table, **kept)
    assert (again.value_mean, again.value_levels) == (data.value_mean, [None, [1, 2, 3, 4]])


def test_predicting_elsewhere_needs_no_table_and_knows_no_values(images: Path, tmp_path: Path) -> None:
    known = {"value_mean": [0.5], "value_std": [0.1], "value_levels": [None]}
    data = made(tmp_path / "gone", tmp_path / "gone.csv", predict=str(images / "03.png"), **known)
    data.setup("predict")
    [batch] = data.predict_dataloader()
    assert batch.targets.shape == (1, 1)
    assert batch.targets.isnan().all()


def test_splits_have_their_shares_and_whole_groups(images: Path, table: Path) -> None:
    data = made(images, table, val_size=0.2, test_size=0.2)
    parts = data.listing.of
    assert all(abs(len(parts[split]) - share) <= 6 for split, share in {"train": 36, "val": 12, "test": 12}.items())
    assert not {s.group for s in parts["train"]} & {s.group for s in [*parts["val"], *parts["test"]]}
    table.write_text(table.read_text().replace(",group", ",module"))
    alone = made(images, table, val_size=0.2, test_size=0.2).listing.of
    assert all(abs(len(alone[split]) - share) <= 6 for split, share in {"train": 36, "val": 12, "test": 12}.items())


def test_folds_validate_each_image_once_and_spread_the_values(images: Path, table: Path) -> None:
    table.write_text(table.read_text().replace(",group", ",module"))
    parts = [made(images, table, folds=4, fold=fold, test_size=0.2).listing.of for fold in range(4)]
    assert len({tuple(sample.path for sample in part["test"]) for part in parts}) == 1
    validated = [sample.path for part in parts for sample in part["val"]]
    assert len(set(validated)) == len(validated) == COUNT - len(parts[0]["test"])
    for part in parts:
        assert np.mean([sample.values[0] for sample in part["val"]]) == pytest.approx(0.5, abs=0.1)
    samples = made(images, table).samples
    assert np.bincount(folds(samples, 4, seed=0)) == pytest.approx(15, abs=2)


def test_a_column_split_counts(images: Path, table: Path) -> None:
    rows = table.read_text().splitlines()
    splits = ["split", *(("train", "val", "test")[i % 3] for i in range(COUNT))]
    rows[0] = rows[0].replace("group", "module")
    table.write_text("\n".join(f"{row},{split}" for row, split in zip(rows, splits, strict=True)))
    data = made(images, table)
    assert {Path(sample.path).name for sample in data.listing.of["val"]} == {f"{i:02}.png" for i in range(1, 60, 3)}
    table.write_text("path,defect,split\n00.png,1,val\n01.png,2,val\n")
    with pytest.raises(InputError, match=r"scores\.csv has no images for train: give .* a column split"):
        made(images, table)


def test_the_manifest_has_a_column_for_each_value(images: Path, table: Path, tmp_path: Path) -> None:
    data = made(images, table, "grade,defect")
    rows = data.manifest()
    assert list(rows[0]) == ["path", "grade", "defect", "split", "group", "bytes", "sha256", "error"]
    assert (rows[0]["path"], rows[0]["grade"], rows[0]["defect"]) == ("00.png", "1", "0")
    assert float(rows[3]["defect"]) == data.samples[3].values[1]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    again = made(images, table, splits=str(manifest), split_seed=5)
    assert [sample.split for sample in again.listing.samples] == [sample.split for sample in data.listing.samples]


def test_the_training_values_are_described(images: Path, table: Path) -> None:
    table.write_text("path,a,b,split\n00.png,0,5,train\n01.png,1,7,train\n02.png,9,9,val\n")
    data = made(images, table, "a,b")
    assert data.describe_training() == "training values: a 0 to 1, mean 0.5, std 0.5; b 5 to 7, mean 6, std 1"
    assert data.describe_targets() == "values: a, b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"scores\.csv, line 4: defect of 02\.png is missing: fill it in, or remove the row"),
        ("  ", r"line 4: defect of 02\.png is missing"),
        ("high", r"scores\.csv, line 4: defect of 02\.png is 'high', expected a finite number: correct it, or remove"),
        ("nan", r"line 4: defect of 02\.png is 'nan', expected a finite number"),
        ("-inf", r"line 4: defect of 02\.png is '-inf', expected a finite number"),
        ("1e39", r"line 4: defect of 02\.png is '1e39', expected a finite number"),
        ("0;5", r"line 4: defect of 02\.png is '0;5', expected a finite number"),
    ],
)
def test_a_value_that_is_no_number_is_named_with_its_row(images: Path, table: Path, text: str, message: str) -> None:
    rows = table.read_text().splitlines()
    path, _, *rest = rows[3].split(",")
    rows[3] = ",".join([path, text, *rest])
    table.write_text("\n".join(rows))
    with pytest.raises(InputError, match=message) as raised:
        made(images, table)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, r"data\.values is missing: say which columns of .*scores\.csv .*--data\.values defect .*'grade'"),
        ("", r"has no column ''"),
        ("defct", r"scores\.csv has no column 'defct' \(data\.values\): did you mean 'defect'\?"),
        ("defect,split", r"data\.values names 'split', which is no value"),
        ("path", r"data\.values names 'path', which is no value"),
        (["group"], r"data\.values names 'group', which is no value"),
        ("defect,defect", r"data\.values names 'defect' twice"),
    ],
)
def test_columns_that_do_not_fit_are_named(images: Path, table: Path, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(images, table, values)


def test_a_constant_value_is_refused(images: Path, table: Path) -> None:
    table.write_text("path,defect,split\n00.png,2,train\n01.png,2,train\n02.png,9,val\n")
    with pytest.raises(InputError, match=r"scores\.csv: defect is 2 for all 2 training images, so there is nothing"):
        made(images, table)


def test_figures_must_be_as_many_as_the_values(images: Path, table: Path) -> None:
    with pytest.raises(InputError, match=r"data\.value_mean has 1 items, but data\.values are \['defect', 'grade'\]"):
        made(images, table, "defect,grade", value_mean=[1.0])


@pytest.mark.parametrize(
    ("grades", "gap"),
    [
        ((0, 1, 2), None),
        ((1, 2, 3), None),
        ((0, 1, 3), r"scores\.csv, line 4: grade is 3, but no image has 2"),
        ((3, 0, 1), r"scores\.csv, line 2: grade is 3, but no image has 2"),
        ((0.5, 1, 3), None),
    ],
)
def test_a_gap_between_levels_is_found(images: Path, table: Path, grades: tuple[float, ...], gap: str | None) -> None:
    rows = [f"{i:02}.png,{i},{grades[i % 3]}" for i in range(30)]
    table.write_text("\n".join(["path,defect,grade", *rows]))
    found = made(images, table, "defect,grade", val_size=0.1, test_size=0).level_gap()
    if gap is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(gap, found)


def test_a_hundred_whole_numbers_are_levels_and_more_are_not(images: Path, table: Path) -> None:
    for count, expected in ((COUNT, list(range(COUNT))), (101, None)):
        rows = [f"x{i:03}.png,{i},{i / 2}" for i in range(count)]
        table.write_text("\n".join(["path,n,half", *rows]))
        assert made(images, table, "n,half").value_levels == [expected, None]


def test_the_cache_and_workers_change_nothing(images: Path, table: Path) -> None:
    batches = []
    for options in ({}, {"cache": "memory"}, {"num_workers": 2}):
        data = made(images, table, batch_size=8, augment="none", **options)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for others in batches[1:]:
        for one, other in zip(batches[0], others, strict=True):
            assert one.images.equal(other.images)
            assert one.targets.equal(other.targets)
