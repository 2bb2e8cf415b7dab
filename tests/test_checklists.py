"""CONTRIBUTING's checklists: the code that stands there becomes the package toy, and every command takes it."""

from __future__ import annotations

import csv
import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cnnlab.callbacks.slots import SLOTS
from cnnlab.commands import COMMANDS
from cnnlab.outputs import OUTPUTS
from tests.conftest import TINY, Cnnlab, write_photos

_TEXT = Path(__file__).parents[1] / "CONTRIBUTING.md"
_SMALL = ("--trainer.accelerator", "cpu", "--data.size", "16", "--data.batch_size", "6", "--data.num_workers", "0")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package, as CONTRIBUTING has it; what it registers is forgotten afterwards."""
    package = tmp_path_factory.mktemp("checklists") / "toy"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, code in re.findall(r"```python\n# toy/(\w+\.py)[^\n]*\n(.*?)```", _TEXT.read_text(), flags=re.DOTALL):
        (package / name).write_text(code)
    # Its classes stay subclasses of cnnlab's, so that later tests must still be able to import them.
    sys.path.append(str(package.parent))
    before = {id(registry): set(registry) for registry in (SLOTS, COMMANDS, OUTPUTS)}
    yield package
    for registry in (SLOTS, COMMANDS, OUTPUTS):
        for name in set(registry) - before[id(registry)]:
            del registry[name]


def run_all(cnnlab: Cnnlab, images: Path, *flags: str) -> None:
    """fit, resume, test, predict, explain, export, infer and report."""
    done = cnnlab("fit", "--run", "R", "--trainer.max_epochs", "1", *flags, *_SMALL)
    assert done.code == 0, done.err
    for command in (
        ("resume", "R", "--trainer.max_epochs", "2"),
        ("test", "R"),
        ("predict", "R"),
        ("explain", "R", "--number", "2"),
        ("export", "R"),
        ("infer", "R/model.onnx", str(images), "--out", "inferred.csv"),
        ("report", "R"),
    ):
        done = cnnlab(*command)
        assert done.code == 0, (command, done.err)
    for name in (
        "predictions.csv",
        "report.html",
        "explain/gradcam.png",
        "pictures/predictions.png",
        "errors/test.csv",
    ):
        assert Path("R", name).is_file(), name


def write_named(folder: Path) -> None:
    """Images of three classes in one folder, the class in the file's name."""
    write_photos(folder / "aside", {"": 12}, size=(20, 20))
    for path in list((folder / "aside").rglob("*.jpg")):
        path.rename(folder / f"{path.parent.name}_{path.name}")


def test_a_network(toy: Path, cnnlab: Cnnlab, photos: Path) -> None:
    network = ("--model.network", "toy.network.Tiny", "--model.dropout", "0.1")
    run_all(cnnlab, photos / "test", "--config", "from_scratch", "--data.root", str(photos), *network)


def test_a_network_without_the_recipes_dropout_is_told_what_to_add(toy: Path, cnnlab: Cnnlab, photos: Path) -> None:
    """A network written by the checklist passed its tests, then a recipe ended in "unexpected keyword argument"."""
    code = (toy / "network.py").read_text()
    (toy / "plain.py").write_text(code.replace(", dropout: float = 0.0", "").replace("nn.Dropout(dropout), ", ""))
    flags = ("--data.root", str(photos), "--model.network", "toy.plain.Tiny", "--model.dropout", "0.1")
    done = cnnlab("fit", "--config", "from_scratch", *flags)
    assert done.code == 2
    assert "'toy.plain.Tiny' takes no dropout, and model.dropout is 0.1" in done.err


def test_a_data_set_of_files(toy: Path, cnnlab: Cnnlab, tmp_path: Path) -> None:
    write_named(tmp_path / "named")
    data = ("--data", "toy.data.NamedFiles", "--data.root", "named", "--model", "Classification")
    run_all(cnnlab, tmp_path / "named", *data, "--model.network", "small_resnet")


def test_a_task_with_an_existing_answer(toy: Path, cnnlab: Cnnlab, photos: Path) -> None:
    task = ("--model", "toy.task.Focused", "--model.network", "small_resnet", "--model.gamma", "1.5")
    run_all(cnnlab, photos / "test", *task, "--data", "ImageFolder", "--data.root", str(photos))


def test_a_new_kind_of_answer(toy: Path, cnnlab: Cnnlab, tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    rows = []
    for i in range(36):
        angle, image = i * 5.0, Image.new("L", (24, 24), i)
        end = (10 * math.cos(math.radians(angle)), 10 * math.sin(math.radians(angle)))
        ImageDraw.Draw(image).line([12 - end[0], 12 + end[1], 12 + end[0], 12 - end[1]], fill=255, width=2)
        Image.fromarray(np.asarray(image)).save(folder / f"{i:02}.png")
        rows.append([f"{i:02}.png", angle])
    with (folder / "angles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "angle"], *rows])
    table = ("--data.root", "lines", "--data.csv", "lines/angles.csv", "--data.values", "angle", "--data.channels", "1")
    task = ("--model", "toy.angles.AngleTask", "--model.network", "simple_cnn", "--data", "toy.angles.AngleTable")
    run_all(cnnlab, folder, *task, *table, "--data.augment", "none")
    with Path("R/predictions.csv").open() as file:
        assert all(0 <= float(row["angle"]) <= 180 for row in csv.DictReader(file))
    assert Path("inferred.csv").read_text().splitlines()[0] == "index,path,target,angle"


def test_a_callback_runs_in_its_stages(toy: Path, cnnlab: Cnnlab, mnist_root: Path) -> None:
    """A slot callback that was added by the checklist never ran in test or predict."""
    importlib.import_module("toy.callbacks")
    flags = ("--data.root", mnist_root, "--run", "R", "--trainer.max_epochs", "1")
    assert "tested" not in cnnlab("fit", "--config", TINY, *flags).out
    tested = cnnlab("test", "R")
    assert "tested 32 images" in tested.out
    assert "tested" not in cnnlab("test", "R", "--callbacks.counter", "false").out


def test_a_command(toy: Path, cnnlab: Cnnlab, tmp_path: Path) -> None:
    importlib.import_module("toy.commands")
    (tmp_path / "R").mkdir()
    (tmp_path / "R/a").write_bytes(b"12345")
    assert cnnlab("weigh", "R").out == "5 bytes\n"
    assert "say how large a run is" in cnnlab("--help").out
