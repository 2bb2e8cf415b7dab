"""Where results lie: those of a run's own test set, those of other data, and those of earlier weights."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cnnlab, write_photos

ONE_EPOCH = (
    *("--callbacks.unfreezing", "false", "--trainer.max_epochs", "1"),
    *("--model.network", "small_resnet", "--model.head", "null"),
)


def paths(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_other_images_do_not_overwrite_the_table_of_the_test_set(
    fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    """Users lost the predictions of their test set to those of a handful of new images."""
    assert fit_photos(*ONE_EPOCH).code == 0
    assert cnnlab("predict", "R").code == 0
    own = (tmp_path / "R/predictions.csv").read_bytes()
    for folder in ("new", "more/new"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / folder / f"{folder.replace('/', '_')}.png")
    for source in ("new", "more/new", "new"):
        done = cnnlab("predict", "R", "--data.predict", source)
        assert done.code == 0, done.err
    assert (tmp_path / "R/predictions.csv").read_bytes() == own
    results = tmp_path / "R/results"
    assert sorted(path.name for path in results.iterdir()) == ["new", "new-2"]
    assert [Path(path).name for path in paths(results / "new/predictions.csv")] == ["new.png"]
    assert [Path(path).name for path in paths(results / "new-2/predictions.csv")] == ["more_new.png"]


def test_a_test_of_other_data_does_not_overwrite_the_metrics(
    fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path
) -> None:
    assert fit_photos(*ONE_EPOCH).code == 0
    assert cnnlab("test", "R").code == 0
    own = {path: path.read_bytes() for path in (tmp_path / "R").glob("*.json")}
    write_photos(tmp_path / "other", {"train": 1, "val": 1, "test": 2})
    done = cnnlab("test", "R", "--data.root", "other")
    assert done.code == 0, done.err
    assert (tmp_path / "R/test.json").read_bytes() == own[tmp_path / "R/test.json"]
    assert json.loads((tmp_path / "R/results/other/test.json").read_text())


def test_results_of_earlier_weights_are_set_aside(
    fit_photos: Cnnlab, cnnlab: Cnnlab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a run had gone on, its test.json and its exported file were still those of the old weights."""
    assert fit_photos(*ONE_EPOCH).code == 0
    for command in (("test", "R"), ("predict", "R"), ("export", "R")):
        assert cnnlab(*command).code == 0
    made = ("test.json", "predictions.csv", "report.html", "model.onnx", "model.onnx.json")
    before = {name: (tmp_path / "R" / name).read_bytes() for name in made}
    done = cnnlab("resume", "R", "--trainer.max_epochs", "2")
    assert done.code == 0, done.err
    (aside,) = (tmp_path / "R/earlier").iterdir()
    assert aside.name.startswith("step-")
    assert str(Path("R/earlier", aside.name)) in caplog.text
    for name in made:
        assert not (tmp_path / "R" / name).exists()
        assert (aside / name).read_bytes() == before[name]
    # A run that goes on with nothing measured leaves nothing behind.
    assert cnnlab("resume", "R", "--trainer.max_epochs", "3").code == 0
    assert len(list((tmp_path / "R/earlier").iterdir())) == 1
